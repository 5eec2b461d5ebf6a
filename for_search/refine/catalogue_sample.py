"""A random sample of an index: what its embeddings are like, whatever is searched for.

Legend: S sampled images, N embeddings an image, Co joint width.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from for_search.index.index import SearchIndex

_EMBEDDINGS = 4096  # enough for a covariance of some hundred dimensions once it is shrunk
_SEED = 0


@dataclass(frozen=True, eq=False)
class CatalogueSample:
    """Embeddings of images drawn at random, and how all embeddings lie around their mean.

    images: [S, N, Co] float32.
    mean: [Co] float32, of all sampled embeddings.
    axes: [Co, Co] float32, the principal axes as columns, those of the largest variance first.
    variances: [Co] float32, along the axes.
    """

    images: NDArray[np.float32]
    mean: NDArray[np.float32]
    axes: NDArray[np.float32]
    variances: NDArray[np.float32]


def sample_catalogue(index: SearchIndex) -> CatalogueSample:
    """Draw about 4,096 embeddings of an index, whole images at a time; the same ones at every call."""
    n_embeddings = index.info.n_embeddings
    count = min(len(index.images), max(1, _EMBEDDINGS // n_embeddings))
    chosen = np.sort(np.random.default_rng(_SEED).choice(len(index.images), count, replace=False))
    return catalogue_sample(index.take(chosen))


def catalogue_sample(images: NDArray[np.float32]) -> CatalogueSample:
    """The sample that consists of some images, [S, N, Co] float32."""
    rows = images.reshape(-1, images.shape[-1])
    mean = rows.mean(axis=0)
    centred = rows - mean
    variances, axes = np.linalg.eigh(centred.T @ centred / len(rows))
    return CatalogueSample(images, mean, np.ascontiguousarray(axes[:, ::-1]), np.maximum(variances[::-1], 0).copy())
