"""A random sample of an index: what its embeddings are like, whatever is searched for.

Legend: S sampled images, N embeddings an image, Co joint width.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from for_model.errors import StoreError
from for_search.index.index import SearchIndex
from for_search.index.sketches.sketch_files import Sketches, make_sketches, open_sketches

_EMBEDDINGS = 4096  # enough for a covariance of some hundred dimensions once it is shrunk
_SEED = 0
_log = logging.getLogger(__name__)
_SMALL = 1 << 18  # embeddings of an index all of which are scanned in some tens of milliseconds


def is_small(index: SearchIndex) -> bool:
    """Whether an index is scanned for a whole answer; of a larger one only what may belong to it is looked at."""
    return len(index.images) * index.info.n_embeddings <= _SMALL


def _no_sketches() -> None:
    return None


@dataclass(frozen=True, eq=False)
class CatalogueSample:
    """Embeddings of images drawn at random, and how all embeddings lie around their mean.

    images: [S, N, Co] float32.
    mean: [Co] float32, of all sampled embeddings.
    axes: [Co, Co] float32, the principal axes as columns, those of the largest variance first.
    variances: [Co] float32, along the axes.
    places: [S] int64, of the images in the index; [0] where they are of none.
    sketches: gives the index's sketches, None where it has none; a large index that has none gets them.
    """

    images: NDArray[np.float32]
    mean: NDArray[np.float32]
    axes: NDArray[np.float32]
    variances: NDArray[np.float32]
    places: NDArray[np.int64]
    sketches: Callable[[], Sketches | None] = _no_sketches


def sample_catalogue(index: SearchIndex) -> CatalogueSample:
    """Draw about 4,096 embeddings of an index, whole images at a time; the same ones at every call."""
    n_embeddings = index.info.n_embeddings
    count = min(len(index.images), max(1, _EMBEDDINGS // n_embeddings))
    chosen = np.sort(np.random.default_rng(_SEED).choice(len(index.images), count, replace=False))
    return catalogue_sample(index.take(chosen), cache(partial(_sketches_of, index)), chosen)


def _sketches_of(index: SearchIndex) -> Sketches | None:
    if is_small(index):
        return open_sketches(index)
    try:
        return make_sketches(index)
    except StoreError as error:
        _log.warning("%s; all embeddings are scanned instead", error)
        return None


def catalogue_sample(
    images: NDArray[np.float32],
    sketches: Callable[[], Sketches | None] = _no_sketches,
    places: NDArray[np.int64] | None = None,
) -> CatalogueSample:
    """The sample that consists of some images, [S, N, Co] float32.

    sketches, places: see `CatalogueSample`.
    """
    rows = images.reshape(-1, images.shape[-1])
    mean = rows.mean(axis=0)
    centred = rows - mean
    variances, axes = np.linalg.eigh(centred.T @ centred / len(rows))
    of_none = np.empty(0, np.int64) if places is None else places
    return CatalogueSample(
        images, mean, np.ascontiguousarray(axes[:, ::-1]), np.maximum(variances[::-1], 0).copy(), of_none, sketches
    )
