"""Pseudo-labels: the categories of a wide vocabulary that Cluster-CLIP sees in an image (section 3.2, eq. 4).

They depend on nothing that is trained, so they are computed once for a dataset and kept on disk.
Shapes: M images, B of them at once, N embeddings an image, V names of the vocabulary, Co joint width.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from for_model.data.miniscenes.concepts import CONCEPTS
from for_model.errors import UsageError
from for_model.files import sha256_json
from for_model.methods.clip_method import ClipMethod
from for_model.tensor_files import write_weights
from for_model.text import cached_category_embeddings
from for_model.training.features import Features

log = logging.getLogger(__name__)

_BATCH = 64


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


def vocabulary(name: str) -> list[str]:
    """The names of a vocabulary: `imagenet21k`, `miniscenes` (all 236 nouns that are drawn), or a text file's lines.

    Names that occur twice are kept once, at their first place: a softmax would share one thing's probability between
    them. Raises UsageError for a file that can't be read or holds no name.
    """
    if name == "imagenet21k":
        names = imagenet21k_names()
    elif name == "miniscenes":
        names = [concept.name for concept in CONCEPTS]
    else:
        try:
            names = [line.strip() for line in Path(name).expanduser().read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"vocabulary {name!r} can't be read ({error}): expected imagenet21k, miniscenes or a file of names"
            ) from error
    names = list(dict.fromkeys(line for line in names if line))
    if not names:
        raise UsageError(f"vocabulary {name!r} holds no names: expected one a line")
    return names


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


@dataclass(frozen=True)
class StoredLabels:
    """The pseudo-labels of a dataset's M images.

    names: the vocabulary.  starts: [M + 1] int64; image m has the labels from starts[m] up to starts[m + 1], the most
    probable first.  name: int32, positions in `names`.  probability: float32.  embedding: int16, the cluster's number.
    """

    names: list[str]
    starts: NDArray[np.int64]
    name: NDArray[np.int32]
    probability: NDArray[np.float32]
    embedding: NDArray[np.int16]

    def of(self, row: int, limit: int | None = None) -> NDArray[np.int32]:
        """The names of an image's labels, at most `limit` of them, the most probable first."""
        start, end = self.starts[row], self.starts[row + 1]
        return self.name[start : end if limit is None else min(end, start + limit)]


def stored_labels(
    features: Features, method: ClipMethod, names: Sequence[str], threshold: float, folder: Path
) -> StoredLabels:
    """The pseudo-labels of every image that `features` has, made on the first call and read from `folder` afterwards.

    method: Cluster-CLIP on the backbone that made the features.  Images that can't be decoded have none.
    Raises UsageError as `pseudo_labels` does.
    """
    key = sha256_json(
        [method.info.to_json(), list(names), threshold, len(features.usable), method.prompts, features.identity]
    )
    path = folder / f"labels-{key[:16]}.safetensors"
    found = _read_labels(path, names, len(features.usable))
    if found is not None:
        log.info("pseudo-labels: read from %s", path)
        return found
    texts = cached_category_embeddings(method, names)
    labels: list[list[PseudoLabel]] = [[] for _ in features.usable]
    order = [np.arange(start, min(start + _BATCH, len(labels))) for start in range(0, len(labels), _BATCH)]
    device = method.backbone.device
    texts = texts.to(device)
    for rows, X in tqdm(features.batches(order), total=len(order), desc="pseudo-labels", unit="batch", disable=None):
        Y = method.encode_features(X).to(device)
        for row, of_image in zip(rows, pseudo_labels(Y, texts, method.backbone.logit_scale, threshold), strict=True):
            labels[row] = of_image
    stored = StoredLabels(
        list(names),
        np.cumsum([0, *map(len, labels)]).astype(np.int64),
        np.array([label.name for image in labels for label in image], np.int32),
        np.array([label.probability for image in labels for label in image], np.float32),
        np.array([label.embedding for image in labels for label in image], np.int16),
    )
    tensors = {key: torch.from_numpy(getattr(stored, key)) for key in _ARRAYS}
    write_weights(path, tensors, {"threshold": str(threshold), "method": sha256_json(method.info.to_json())})
    log.info("pseudo-labels: %.1f an image, kept in %s", len(stored.name) / max(1, len(labels)), path)
    return stored


_ARRAYS = ("starts", "name", "probability", "embedding")


def _read_labels(path: Path, names: Sequence[str], n_images: int) -> StoredLabels | None:
    """What `stored_labels` kept, or None when it isn't there or is damaged."""
    try:
        with safe_open(path, "np") as file:
            stored = StoredLabels(list(names), *(file.get_tensor(key) for key in _ARRAYS))
    except (SafetensorError, OSError):
        return None
    starts, name = stored.starts, stored.name
    sound = len(starts) == n_images + 1 and starts[0] == 0 and starts[-1] == len(name) and (np.diff(starts) >= 0).all()
    return stored if sound and ((name >= 0) & (name < len(names))).all() else None
