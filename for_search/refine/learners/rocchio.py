"""Rocchio (1971): the text moved towards what is right, and away from what is wrong."""

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from for_search.refine.catalogue_sample import CatalogueSample
from for_search.refine.feedback import Examples
from for_search.refine.learners.refiner_protocol import LinearScorer, best_parts

_RIGHT, _WRONG = 0.75, 0.15  # of 1 for the text: the weights of the SMART system


class RocchioRefiner:
    """text + 0.75 x mean of the right parts - 0.15 x mean of the wrong images' parts."""

    name: ClassVar[str] = "rocchio"
    title: ClassVar[str] = "Rocchio"

    def fit(self, text: NDArray[np.float32] | None, examples: Examples, sample: CatalogueSample) -> LinearScorer:
        dim = len(sample.mean)
        if text is None:
            text = np.concatenate(examples.right).mean(axis=0)  # the parts of right images have most in common
        query = text.copy()
        if examples.right:
            query += _RIGHT * best_parts(examples.right, LinearScorer(text), dim).mean(axis=0)
        if examples.wrong:
            query -= _WRONG * np.mean([parts.mean(axis=0) for parts in examples.wrong], axis=0)
        return LinearScorer(query.astype(np.float32))
