"""Pseudo-labels: the categories of a wide vocabulary that Cluster-CLIP sees in an image (section 3.2, eq. 4).

Shapes: B images, N embeddings an image, V names of the vocabulary, Co joint width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from for_model.errors import UsageError


@dataclass(frozen=True)
class PseudoLabel:
    """A name seen in an image: its position in the vocabulary, its probability, the number of the embedding that shows
    it."""

    name: int
    probability: float
    embedding: int


def imagenet21k_names() -> list[str]:
    """The 21,841 classes of ImageNet-21K in timm's order: the first lemma of each; several classes share a lemma."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet22k")
    return [info.index_to_description(i).split(",")[0].strip() for i in range(info.num_classes())]


def without(names: Sequence[str], left_out: Sequence[str]) -> list[str]:
    """The vocabulary without some names (`IN21/novel` of Table 3); case and spaces at the ends don't count."""
    dropped = {name.strip().casefold() for name in left_out}
    return [name for name in names if name.strip().casefold() not in dropped]


@torch.no_grad()
def pseudo_labels(
    Y: Tensor, texts: Tensor, scale: float, threshold: float, limit: int | None = None
) -> list[list[PseudoLabel]]:
    """The pseudo-labels of each image, the most probable first; equal ones by their position in the vocabulary.

    Each embedding's cosines with the V texts become probabilities by softmax over the vocabulary, and a name's
    probability is its largest over the N embeddings (eq. 4); names above `threshold` are kept.

    Y: [B, N, Co] unit-norm, of Cluster-CLIP.  texts: [V, Co] unit-norm.  scale: CLIP's own factor of the cosines.
    threshold: in 0..1, 5e-4 in the paper, whose vocabulary is ImageNet-21K.  limit: at most so many an image, say the
    number of queries that can be matched; None for all.
    Raises UsageError when shapes don't fit together or the threshold or limit makes no sense.
    """
    if Y.ndim != 3 or texts.ndim != 2 or Y.shape[-1] != texts.shape[-1] or not len(texts):
        raise UsageError(f"got embeddings {list(Y.shape)} and texts {list(texts.shape)}; expected [B, N, Co], [V, Co]")
    if not 0 <= threshold <= 1 or (limit is not None and limit < 1):
        raise UsageError(f"threshold {threshold}, limit {limit}: expected 0..1, and 1 or more (or None)")
    found = []
    for image in Y:  # one by one: N x 21,841 numbers are many enough
        probability, embedding = (scale * image.float() @ texts.float().T).softmax(-1).max(0)  # [V] each
        order = torch.argsort(probability, descending=True, stable=True)[:limit].cpu()
        values, shown = probability.cpu()[order].tolist(), embedding.cpu()[order].tolist()
        labels = (PseudoLabel(*row) for row in zip(order.tolist(), values, shown, strict=True))
        found.append([label for label in labels if label.probability > threshold])
    return found
