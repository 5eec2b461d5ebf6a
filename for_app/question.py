"""What a visitor asks for, as it was read from a request."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from for_model.data.dataset import ImageId
from for_search.query.combination import Combination, Thing
from for_search.query.searcher import Query, Searcher
from for_search.refine.answer import Refinement


@dataclass(frozen=True, eq=False)
class Question:
    """What a request asks for.

    searcher: of the index.
    query: what is searched for; of what was learnt, if something was.
    learnt: from marks or a concept; None for neither.
    marked: ids of images that this visitor marked; not those of a concept.
    n_gone: marks of images that the index doesn't have.
    combination: several things at once; None for one. `things` has those of them that were learnt.
    allowed: [M], the images to choose from; None for all.
    """

    searcher: Searcher
    query: Query
    learnt: Refinement | None = None
    marked: frozenset[ImageId] = frozenset()
    n_gone: int = 0
    combination: Combination | None = None
    things: Mapping[str, Thing] = field(default_factory=dict)
    allowed: NDArray[np.bool_] | None = None

    @property
    def unmarked(self) -> NDArray[np.bool_] | None:
        """[M], `allowed` without the images that this visitor marked; None for all."""
        if not self.marked:
            return self.allowed
        index = self.searcher.index
        left = np.ones(len(index.images), bool) if self.allowed is None else self.allowed.copy()
        left[[index.position(image) for image in self.marked]] = False
        return left
