"""A refiner: what learns from marks; and what it learns, a scorer of embeddings.

Legend: R embeddings, N embeddings an image, Co joint width.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from for_search.refine.catalogue_sample import CatalogueSample
from for_search.refine.feedback import Examples


class Scorer(Protocol):
    """Scores embeddings; an image's score is that of its best one."""

    def score(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """[R, Co] -> [R] float32, larger for what is rather meant."""
        ...


@dataclass(frozen=True, eq=False)
class LinearScorer:
    """The inner product with one vector, so that an index can search for it as for a text.

    query: [Co] float32, of any length.
    """

    query: NDArray[np.float32]

    def score(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        return rows @ self.query


class Refiner(Protocol):
    """Learns a scorer from a text and marks, in less than a second from some hundred marks.

    Fitting is deterministic and keeps nothing. Without any example the answer is the text's, which the caller sees to.

    name: in the registry, and in a concept's file.
    title: for people.
    """

    name: ClassVar[str]
    title: ClassVar[str]

    def fit(self, text: NDArray[np.float32] | None, examples: Examples, sample: CatalogueSample) -> Scorer:
        """Learn from marks.

        text: [Co] float32, unit-norm; None for a concept without a text, which then has at least one right image.
        examples: at least one.
        sample: of the index.
        """
        ...


def image_scores(scorer: Scorer, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """The scores of some images, those of their best embeddings: [m, N, Co] -> [m] float32."""
    n_images, n_embeddings, dim = images.shape
    return scorer.score(images.reshape(-1, dim)).reshape(n_images, n_embeddings).max(axis=1)


def best_parts(parts: tuple[NDArray[np.float32], ...], scorer: Scorer, dim: int) -> NDArray[np.float32]:
    """The best part of each right image under a scorer: P arrays [n, Co] -> [P, Co] float32."""
    if not parts:
        return np.zeros((0, dim), np.float32)
    return np.stack([rows[int(scorer.score(rows).argmax())] for rows in parts])
