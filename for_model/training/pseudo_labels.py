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

from for_model.data.miniscenes.concepts import CONCEPTS
from for_model.errors import UsageError
from for_model.files import sha256_json
from for_model.methods.clip_method import ClipMethod
from for_model.tensor_files import write_weights
from for_model.text import cached_category_embeddings
from for_model.training.features import Features, every_image

log = logging.getLogger(__name__)

_BATCH = 64


@dataclass(frozen=True)
class PseudoLabel:
    """A name seen in an image.

    name: its position in the vocabulary.
    probability: in 0..1 (eq. 4).
    embedding: the number of the embedding that shows it, in 0..N-1.
    """

    name: int
    probability: float
    embedding: int


def imagenet21k_classes() -> list[tuple[str, ...]]:
    """The 21,841 classes of ImageNet-21K in timm's order, each as its lemmas: `("necktie", "tie")`.

    Several classes share a lemma.
    """
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet22k")
    lemmas = (info.index_to_description(i).split(",") for i in range(info.num_classes()))
    return [tuple(lemma.strip() for lemma in each) for each in lemmas]


def vocabulary(name: str, without: Sequence[str] = ()) -> list[str]:
    """The names of a vocabulary, each once.

    A class of several lemmas is named by its first. Names that occur twice are kept once, at their first place: a
    softmax would share one thing's probability between them.

    name: `imagenet21k`, `miniscenes` (all 236 nouns that are drawn), or the path of a text file with a name a line.
    without: names to leave out (`IN21/novel` of Table 3), whatever their case. A class is left out if any of its
        lemmas is one of them, and so is every other class that has its name: without `tie`, there is no `necktie`.
    Raises UsageError for a file that can't be read, or when no name is there or left.
    """
    if name == "imagenet21k":
        classes = imagenet21k_classes()
    elif name == "miniscenes":
        classes = [(concept.name,) for concept in CONCEPTS]
    else:
        try:
            lines = Path(name).expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"vocabulary {name!r} can't be read ({error}): expected imagenet21k, miniscenes or a file of names"
            ) from error
        classes = [(line.strip(),) for line in lines]
    unwanted = {each.strip().casefold() for each in without}
    dropped = {lemmas[0] for lemmas in classes if any(lemma.casefold() in unwanted for lemma in lemmas)}
    names = list(dict.fromkeys(lemmas[0] for lemmas in classes if lemmas[0] and lemmas[0] not in dropped))
    if not names:
        raise UsageError(f"vocabulary {name!r} holds no names{' but those left out' * bool(dropped)}: expected some")
    return names


@torch.no_grad()
def pseudo_labels(
    Y: Tensor, texts: Tensor, scale: float, threshold: float, limit: int | None = None
) -> list[list[PseudoLabel]]:
    """The pseudo-labels of each image, the most probable first; equal ones by their position in the vocabulary.

    Each embedding's cosines with the V texts become probabilities by softmax over the vocabulary, and a name's
    probability is its largest over the N embeddings (eq. 4); names above `threshold` are kept.

    Y: [B, N, Co] float32, unit-norm, of Cluster-CLIP.
    texts: [V, Co] float32, unit-norm.
    scale: the factor of the cosines in the softmax. The paper leaves it out "for clarity"; CLIP's own is 100.
    threshold: in 0..1, 5e-4 in the paper, whose vocabulary is ImageNet-21K.
    limit: at most so many an image, say the number of queries that can be matched; None for all.

    Raises UsageError when shapes don't fit together or the threshold or limit makes no sense.
    """
    if Y.ndim != 3 or texts.ndim != 2 or Y.shape[-1] != texts.shape[-1] or not len(texts):
        raise UsageError(f"got embeddings {list(Y.shape)} and texts {list(texts.shape)}; expected [B, N, Co], [V, Co]")
    if not 0 <= threshold <= 1 or (limit is not None and limit < 1):
        raise UsageError(f"threshold {threshold}, limit {limit}: expected 0..1, and 1 or more (or None)")
    found = []
    for image in Y:  # one image at a time bounds the memory, as it takes N x 21,841 numbers
        probability, embedding = (scale * image.float() @ texts.float().T).softmax(-1).max(0)  # [V] each
        order = torch.argsort(probability, descending=True, stable=True)[:limit].cpu()
        values, shown = probability.cpu()[order].tolist(), embedding.cpu()[order].tolist()
        labels = (PseudoLabel(*row) for row in zip(order.tolist(), values, shown, strict=True))
        found.append([label for label in labels if label.probability > threshold])
    return found


@dataclass(frozen=True)
class StoredLabels:
    """The pseudo-labels of a dataset's M images.

    names: the vocabulary.
    starts: [M + 1] int64; image m has the labels from starts[m] up to starts[m + 1], the most probable first.
    name: int32, positions in `names`.
    probability: float32.
    embedding: int16, the cluster's number.
    """

    names: list[str]
    starts: NDArray[np.int64]
    name: NDArray[np.int32]
    probability: NDArray[np.float32]
    embedding: NDArray[np.int16]

    def described(self, limit: int) -> str:
        """How many labels an image has, and how many of them a limit an image cuts, in words for a log."""
        counts = np.diff(self.starts)
        share = np.maximum(counts - limit, 0).sum() / max(1, counts.sum())
        return (
            f"{counts.mean() if len(counts) else 0:.1f} pseudo-labels an image, of which {share:.0%} are cut: "
            f"no more than {limit} can be matched"
        )

    def of(self, row: int, limit: int | None = None) -> NDArray[np.int32]:
        """The names of an image's labels, at most `limit` of them, the most probable first."""
        start, end = self.starts[row], self.starts[row + 1]
        return self.name[start : end if limit is None else min(end, start + limit)]


def stored_labels(
    features: Features,
    method: ClipMethod,
    names: Sequence[str],
    threshold: float,
    folder: Path,
    scale: float = 1.0,
) -> StoredLabels:
    """The pseudo-labels of every image that `features` has, made on the first call and read from `folder` afterwards.

    Images that can't be decoded have none.

    features: the feature maps of the dataset.
    method: Cluster-CLIP on the backbone that made the features.
    names: the vocabulary.
    threshold: in 0..1, the least probability of a label, see `pseudo_labels`.
    folder: where they are kept.
    scale: of the cosines in the softmax, as a multiple of the backbone's own.

    Raises UsageError as `pseudo_labels` does.
    """
    identity = [method.info.to_json(), list(names), threshold, len(features.usable), method.prompts, features.identity]
    key = sha256_json(identity if scale == 1 else [*identity, scale])
    path = folder / f"labels-{key[:16]}.safetensors"
    found = _read_labels(path, names, len(features.usable))
    if found is not None:
        log.info("pseudo-labels: read from %s", path)
        return found
    texts = cached_category_embeddings(method, names)
    labels: list[list[PseudoLabel]] = [[] for _ in features.usable]
    device = method.backbone.device
    texts = texts.to(device)
    for rows, X in every_image(features, _BATCH, "pseudo-labels"):
        Y = method.encode_features(X).to(device)
        of_batch = pseudo_labels(Y, texts, scale * method.backbone.logit_scale, threshold)
        for row, of_image in zip(rows, of_batch, strict=True):
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
    log.info("pseudo-labels: kept in %s", path)
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
