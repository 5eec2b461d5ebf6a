"""The text, what `linear` learnt, and how similar an embedding is to the marked parts.

    f(y) = w . y + a near(y, right parts) - b near(y, wrong parts)

w is the mean of the text's embedding and of `linear`'s vector, each scaled so that the scores of the catalogue's images
have a standard deviation of 1; near is the mean cosine with the two nearest of some parts, in standard deviations of
the cosines of the catalogue's embeddings. One vector says in which direction more is meant; what is near a marked part
needs no direction: the wrong things that a text finds are of a few kinds, and so are the right ones.

A right image gives the part that its mark names or its best one by w; a wrong one all of its parts, or the one that its
mark names. Similarity counts as far as an image's embeddings are about different things: a and b are smaller where
little of the embeddings' variance lies within images, and 0 where an image has a single embedding, for two images of
many things are alike for reasons that nobody meant.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from for_search.refine.catalogue_sample import CatalogueSample
from for_search.refine.feedback import Examples
from for_search.refine.learners.linear import LinearRefiner
from for_search.refine.learners.refiner_protocol import LinearScorer, best_parts

# Chosen on MiniScenes' and Flickr8k's dev splits.
_RIGHT, _WRONG = 1.0, 0.5  # a and b
_APART = 0.5  # of the variance, within images, from which on similarity counts in full
_NEAREST = 2
_COMPARED = 500  # sampled embeddings whose cosines tell how alike embeddings are
_MAX_WRONG_PARTS = 256  # the ones that w scores best: a scan compares every embedding with each
_BLOCK = 8192  # rows scored at once


@dataclass(frozen=True, eq=False)
class SimilarityScorer:
    """f above.

    query: w [Co] float32.
    right, wrong: [P, Co] and [Q, Co] float32, the parts, times a and b over the deviation of cosines.
    """

    query: NDArray[np.float32]
    right: NDArray[np.float32]
    wrong: NDArray[np.float32]

    def score(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        scores = rows @ self.query
        for start in range(0, len(rows), _BLOCK):
            part = rows[start : start + _BLOCK]
            scores[start : start + _BLOCK] += _near(part, self.right) - _near(part, self.wrong)
        return scores

    @cached_property
    def guide(self) -> NDArray[np.float32]:
        """[Co], the vector that is most like f: with all parts in the place of the nearest ones."""
        means = [parts.mean(axis=0) if len(parts) else np.zeros_like(self.query) for parts in (self.right, self.wrong)]
        return np.asarray(self.query + means[0] - means[1])


def _near(rows: NDArray[np.float32], parts: NDArray[np.float32]) -> NDArray[np.float32] | float:
    """[R, Co], [P, Co] -> [R], the mean inner product with the nearest parts; 0 without any."""
    if not len(parts):
        return 0.0
    products = rows @ parts.T  # [R, P]
    count = min(_NEAREST, len(parts))
    total = np.zeros(len(rows), np.float32)
    every = np.arange(len(rows))
    for _ in range(count):
        nearest = products.argmax(axis=1)
        total += products[every, nearest]
        products[every, nearest] = -np.inf
    return total / np.float32(count)


class SimilarityRefiner:
    """`linear`, and similarity to the marked parts."""

    name: ClassVar[str] = "similarity"
    title: ClassVar[str] = "Logistic regression and similarity to the marked parts"

    def fit(
        self, text: NDArray[np.float32] | None, examples: Examples, sample: CatalogueSample
    ) -> SimilarityScorer | LinearScorer:
        learnt = LinearRefiner().fit(text, examples, sample)
        guides = [learnt.query] if text is None else [learnt.query, text]
        query = np.mean([each / _deviation(sample, each) for each in guides], axis=0).astype(np.float32)
        dim, share = len(query), min(1.0, _within_images(sample.images) / _APART)
        if share == 0:
            return LinearScorer(query)
        right = best_parts(examples.right, LinearScorer(query), dim)
        wrong = np.concatenate(examples.wrong) if examples.wrong else np.zeros((0, dim), np.float32)
        if len(wrong) > _MAX_WRONG_PARTS:
            wrong = wrong[np.argsort(-(wrong @ query), kind="stable")[:_MAX_WRONG_PARTS]]
        unit = np.float32(share / _deviation_of_cosines(sample))
        return SimilarityScorer(query, right * unit * np.float32(_RIGHT), wrong * unit * np.float32(_WRONG))


def _within_images(images: NDArray[np.float32]) -> float:
    """The share of the embeddings' variance that lies within images: 0 where those of an image are all alike, about 1
    where they are no more alike than those of two images. [S, N, Co] -> 0 or more; 0 for N = 1."""
    n_embeddings = images.shape[1]
    if n_embeddings == 1:
        return 0.0
    within = float(images.var(axis=1).sum(axis=-1).mean()) * n_embeddings / (n_embeddings - 1)
    return within / max(float(images.var(axis=(0, 1)).sum()), 1e-12)


def _deviation(sample: CatalogueSample, query: NDArray[np.float32]) -> float:
    """Of the sampled images' scores."""
    return max(float((sample.images @ query).max(axis=1).std()), 1e-6)


def _deviation_of_cosines(sample: CatalogueSample) -> float:
    """Of each two of some sampled embeddings."""
    rows = sample.images.reshape(-1, len(sample.mean))
    some = rows[:: max(1, len(rows) // _COMPARED)][:_COMPARED]
    cosines = (some @ some.T)[~np.eye(len(some), dtype=bool)]
    return max(float(cosines.std()), 1e-6) if len(cosines) else 1.0
