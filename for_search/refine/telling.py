"""Which images' marks would tell most: those of which the answer is least sure, apart from each other.

What was learnt is least sure of the images at the edge of the whole answer, whose probability is nearest to its
threshold. Of the nearest, each further one is the one that is least like those chosen already, so that a second mark
doesn't say what the first one did. Where nothing is marked yet, the best images by the text are chosen among.
"""

import numpy as np
from numpy.typing import NDArray

from for_model.errors import UsageError
from for_search.index.index import Hit
from for_search.refine.answer import Refinement

_NEAREST = 10  # images that are chosen among, for each that is asked for


def telling_images(
    refinement: Refinement, count: int = 3, threshold: float = 0.5, allowed: NDArray[np.bool_] | None = None
) -> list[Hit]:
    """The images to mark next, none of them marked; fewer where there are fewer, ties in order of image id.

    threshold: the least probability of an image of the whole answer.
    allowed: [M], the images to choose from, see `SearchIndex.where`; None for all.
    Raises UsageError for count < 1.
    """
    if count < 1:
        raise UsageError(f"count is {count}: ask for at least 1 image")
    index, scores = refinement.index, refinement.scores()  # [M]
    if refinement.calibration is None:
        unsure = -scores.astype(np.float64)
    else:
        probabilities = np.clip(refinement.calibration.probabilities(scores), 1e-12, 1 - 1e-12)
        logits = np.log(probabilities) - np.log1p(-probabilities)
        unsure = np.abs(logits - (np.log(threshold) - np.log1p(-threshold)))
    open_to = np.ones(len(scores), bool) if allowed is None else allowed.copy()
    open_to[[index.position(image) for image in refinement.marked]] = False
    places = np.flatnonzero(open_to)
    nearest = places[np.argsort(unsure[places], kind="stable")[: _NEAREST * count]]
    hits = [refinement.hit(int(place)) for place in nearest]
    if not hits:
        return []
    parts = np.stack([index.embeddings(hit.image.id)[hit.embedding] for hit in hits])  # [n, Co]
    alike = parts @ parts.T
    chosen = [0]
    while len(chosen) < min(count, len(hits)):
        likest = alike[:, chosen].max(axis=1)  # to those that are chosen
        likest[chosen] = np.inf
        chosen.append(int(likest.argmin()))
    return [hits[i] for i in chosen]
