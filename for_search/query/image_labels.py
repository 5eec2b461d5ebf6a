"""Pseudo-labels of one image, with where each comes from and, where the image is labelled, whether it is right.

They are those of training (section 3.2, eq. 4): Cluster-CLIP on an index's backbone, and a vocabulary.
Shapes: N clusters, g cells a side (K = g * g), V names of the vocabulary, Co joint width.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from for_model.data.dataset import Dataset, ImageId
from for_model.errors import UsageError
from for_model.methods.protocol import Method
from for_model.methods.registry import METHODS, built_in_methods

if TYPE_CHECKING:
    from torch import Tensor

    from for_model.methods.clip_method import ClipMethod

Verdict = Literal["right", "wrong", "unknown"]

MAX_LABELS = 50  # that are shown of one image; more are counted
MAX_NAMES = 1000  # of a list of one's own
MAX_NAME_CHARACTERS = 100
DATASET, OWN = "dataset", "own"
VOCABULARIES = ("imagenet21k", "miniscenes", DATASET, OWN)


@dataclass(frozen=True)
class ImageLabel:
    """A name seen in an image.

    name: as the vocabulary has it.
    probability: in 0..1 (eq. 4).
    cluster: the number of the cluster that shows it.
    verdict: `right` if the annotations say that it is in the image, `wrong` if they say that it isn't, `unknown` if the
        image isn't judged for it (it isn't among the dataset's categories, say); None for an image without annotations.
    """

    name: str
    probability: float
    cluster: int
    verdict: Verdict | None = None


@dataclass(frozen=True)
class ImageLabels:
    """The pseudo-labels of one image.

    labels: the most probable first, at most MAX_LABELS.
    n_found: names above the threshold, shown or not.
    cells: [g, g] int, the number of each cell's cluster.
    missed: annotated categories of the image that no label names; None for an image without annotations.
    """

    labels: tuple[ImageLabel, ...]
    n_found: int
    threshold: float
    cells: NDArray[np.int64]
    missed: tuple[str, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "labels": [
                {
                    "name": label.name,
                    "probability": round(label.probability, 6),
                    "cluster": label.cluster,
                    "verdict": label.verdict,
                }
                for label in self.labels
            ],
            "found": self.n_found,
            "threshold": self.threshold,
            "cells": self.cells.tolist(),
            "missed": None if self.missed is None else list(self.missed),
        }


def vocabulary_names(choice: str, dataset: Dataset | None = None, own: str | Sequence[str] = "") -> list[str]:
    """The V names of a vocabulary, each once.

    choice: one of VOCABULARIES.
    dataset: the labelled one that `dataset` stands for.
    own: the names of `own`, see `own_names`.
    Raises UsageError for another choice, an index without labelled categories, and a list of one's own that is too
    short or too long.
    """
    if choice == DATASET:
        if dataset is None or not dataset.categories:
            raise UsageError("this index has no labelled categories here: choose another vocabulary")
        return list(dict.fromkeys(category.name for category in dataset.categories))
    if choice == OWN:
        return own_names(own)
    if choice not in VOCABULARIES:  # `vocabulary` would read a file of that name
        raise UsageError(f"unknown vocabulary {choice[:60]!r}: expected one of {', '.join(VOCABULARIES)}")
    from for_model.training.pseudo_labels import vocabulary

    return vocabulary(choice)


def own_names(typed: str | Sequence[str]) -> list[str]:
    """Names of one's own, each once, without what UTF-8 can't hold.

    typed: a list, or a text with one a line or with commas between.

    Raises UsageError for fewer than two names, since the probability of a single one would always be 1, more than
    MAX_NAMES, or one of more than MAX_NAME_CHARACTERS.
    """
    if isinstance(typed, str):
        if len(typed) > MAX_NAMES * (MAX_NAME_CHARACTERS + 2):
            raise UsageError(f"the list has {len(typed):,} characters: give at most {MAX_NAMES:,} names")
        typed = typed.replace(",", "\n").splitlines()
    readable = (str(name).encode("utf-8", "replace").decode().strip() for name in typed[: MAX_NAMES + 1])
    names = list(dict.fromkeys(name for name in readable if name))
    if not 2 <= len(names) <= MAX_NAMES:
        raise UsageError(f"got {len(names):,} names: type 2 to {MAX_NAMES:,}, one a line or with commas between")
    longest = max(names, key=len)
    if len(longest) > MAX_NAME_CHARACTERS:
        raise UsageError(
            f"the name {longest[:40]!r}... has {len(longest)} characters: at most {MAX_NAME_CHARACTERS} are accepted"
        )
    return names


def labelling_method(method: Method) -> "ClipMethod":
    """What makes the pseudo-labels for a method's text space: Cluster-CLIP on its backbone, as in training.

    Raises UsageError for a method without a backbone whose cells can be grouped.
    """
    from for_model.heads.cluster import ClusterHead, default_clusters
    from for_model.methods.clip_method import ClipMethod

    if not isinstance(method, ClipMethod):
        titles = [METHODS[name].title for name in built_in_methods()]
        raise UsageError(
            f"{method.info.method} on {method.info.backbone} has no feature map to label: choose an index of "
            f"{', '.join(titles[:-1])} or {titles[-1]}"
        )
    return ClipMethod(method.backbone, ClusterHead(default_clusters(method.backbone.n_cells)))


def find_labels(
    method: "ClipMethod", image: Image.Image, names: Sequence[str], texts: "Tensor", threshold: float
) -> ImageLabels:
    """The pseudo-labels of an image (eq. 4).

    method: of `labelling_method`.
    image: RGB.
    names, texts: the vocabulary and its [V, Co] unit-norm embeddings.
    threshold: in 0..1; names above it are labels.
    Raises UsageError when the threshold makes no sense.
    """
    from for_model.training.pseudo_labels import pseudo_labels

    if not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
        raise UsageError(f"the threshold is {threshold!r}: expected a probability, 0 to 1")
    Y, shares = method.explain_images(method.preprocess(image)[None])  # [1, N, Co], [1, N, K]
    (found,) = pseudo_labels(Y, texts, method.backbone.logit_scale, threshold)
    # a cluster without cells repeats the largest one, and shares its cells: they count for the first of the two
    of_cells = shares[0].argmax(dim=0)  # [K]
    first = of_cells[shares[0].argmax(dim=1)].tolist()  # [N], a cluster's number, or that of the one it repeats
    side = math.isqrt(len(of_cells))
    labels = tuple(ImageLabel(names[f.name], f.probability, first[f.embedding]) for f in found[:MAX_LABELS])
    return ImageLabels(labels, len(found), float(threshold), of_cells.reshape(side, side).numpy())


def judged(found: ImageLabels, dataset: Dataset, image_id: ImageId) -> ImageLabels:
    """The same labels, each compared with the image's annotations; case doesn't count. See `ImageLabel.verdict`."""
    present = _folded(dataset, dataset.labels.get(image_id, ()))
    absent = range(len(dataset.categories)) if dataset.negatives is None else dataset.negatives.get(image_id, ())
    known = _folded(dataset, absent)
    labels = tuple(replace(label, verdict=_verdict(label.name.casefold(), present, known)) for label in found.labels)
    named = {label.name.casefold() for label in found.labels}
    return replace(found, labels=labels, missed=tuple(name for key, name in present.items() if key not in named))


def _folded(dataset: Dataset, positions: Iterable[int]) -> dict[str, str]:
    """The names of some categories, by their case-folded form, which names are compared by."""
    names = (dataset.categories[position].name for position in sorted(positions))
    return {name.casefold(): name for name in names}


def _verdict(name: str, present: Mapping[str, str], absent: Mapping[str, str]) -> Verdict:
    if name in present:
        return "right"
    return "wrong" if name in absent else "unknown"
