"""Searches of a large index for what no single vector says: one vector leads to images that are then scored themselves.

How far an image's score may be ahead of the vector's is read off the catalogue's sample, so what is left out is an
image that is further ahead than each sampled one and some more.

Legend: M images of an index, S sampled images, Co joint width.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from for_search.index.index import SearchIndex
from for_search.refine.catalogue_sample import CatalogueSample
from for_search.refine.learners.refiner_protocol import LinearScorer, Scorer, image_scores

_ROOM = 1.3  # times what the sampled images are ahead, from their mean on
_MOST = 0.25  # of the index's images that the vector may lead to: of more, all are looked at
_AT_ONCE = 1024  # images
_FIRST = 50  # images that are looked at besides those that are asked for


@dataclass(frozen=True, eq=False)
class GuidedSearch:
    """Searches an index by a scorer.

    guide: [Co] float32, what is most like the scorer.
    sample: of the index.
    marked: places of the images that were learnt from: they are looked at in any case, and say nothing of others.
    """

    index: SearchIndex
    scorer: Scorer
    guide: NDArray[np.float32]
    sample: CatalogueSample
    marked: NDArray[np.int64]

    @cached_property
    def _others(self) -> NDArray[np.float32]:
        """The sampled images that aren't marked, [S, N, Co]."""
        if len(self.sample.places) != len(self.sample.images):
            return self.sample.images
        return self.sample.images[~np.isin(self.sample.places, self.marked)]

    @cached_property
    def _guided(self) -> NDArray[np.float32]:
        """[S], their scores by the guide."""
        return image_scores(LinearScorer(self.guide), self._others)

    @cached_property
    def _ahead(self) -> float:
        """How much larger than the guide's an image's score may be."""
        ahead = image_scores(self.scorer, self._others) - self._guided
        return float(ahead.mean() + _ROOM * (ahead.max() - ahead.mean()))

    def at_least(self, score: float) -> tuple[NDArray[np.int64], NDArray[np.float32]] | None:
        """The images of that score or more: their places [m] and scores [m]. None where a guide is of no use."""
        if not len(self._others):
            return None
        least = score - self._ahead
        share = float((self._guided >= least).mean())
        if share > _MOST:
            return None
        found, _ = self.index.at_least(self.guide, least, int(1.2 * share * len(self.index.images)))
        places = np.union1d(found, self.marked)
        scores = self._scores(places)
        return places[scores >= score], scores[scores >= score]

    def best(self, k: int, allowed: NDArray[np.bool_] | None = None) -> NDArray[np.int64] | None:
        """The places of the k best images, the best first, ties in order of place; None where a guide is of no use.

        allowed: [M], the images to choose from; None for all.
        """
        n_images = len(self.index.images) if allowed is None else int(allowed.sum())
        if k + _FIRST > _MOST * n_images:
            return None
        hits = self.index.search(self.guide[None], k + _FIRST, allowed)[0]
        scores = self._scores(np.array([self.index.position(hit.image.id) for hit in hits], np.int64))
        found = self.at_least(float(np.sort(scores)[-k]))
        if found is None:
            return None
        places, scores = found
        if allowed is not None:
            places, scores = places[allowed[places]], scores[allowed[places]]
        return places[np.lexsort((places, -scores))[:k]]

    def _scores(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """Of some images by their places, [m] -> [m] float32."""
        blocks = [places[start : start + _AT_ONCE] for start in range(0, len(places), _AT_ONCE)]
        scores = [image_scores(self.scorer, self.index.take(block.tolist())) for block in blocks]
        return np.concatenate(scores) if scores else np.empty(0, np.float32)
