"""Short codes of rows: partitions of the space, and product-quantised residuals of half a byte for every four values.

A row is projected onto the half of the dimensions that holds most of the rows' variance, given to the nearest of P
partition centres, and what remains is product-quantised: 16 centres for each pair of dimensions, 4 bits. A query looks
at the partitions whose centres have the largest inner products with it (FAISS `IndexIVFPQFastScan`).

Three details decide about the recall (measured: docs/scale.md):

- The projection shifts nothing. FAISS's own `PCAMatrix` subtracts the rows' mean from the queries too, which adds to
  every row's score its inner product with the mean: small for images, large for texts, which lie far from images.
- The dimensions are those of the residuals' covariance, and each pair has one of large and one of small variance, so
  that every 4 bits carry about as much (the allocation that optimised product quantisation starts from).
- Rows are given to the nearest centre, as k-means made it, and queries go to the centres of largest inner product.

Subtracting the mean from rows alone would change nothing: k-means and product quantisation move with the rows.
Legend: R rows, Co joint width, D dimensions kept, P partitions.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from for_model.files import atomic_path
from for_search.index.compact.rows_file import RowsFile

_SEED = 0
_PCA_ROWS = 1 << 15
_ROWS_PER_PARTITION = 64  # for k-means; more change little and take their time
_KMEANS_ROUNDS = 8
_MAX_PARTITIONS = 1 << 14
_BLOCK_ROWS = 1 << 16
_CHECKPOINTS = 8  # in the course of encoding

log = logging.getLogger(__name__)


def n_partitions(n_rows: int) -> int:
    """P: the power of two that is next to the square root of R, 16 at the least."""
    return int(min(_MAX_PARTITIONS, max(16, 2 ** round(np.log2(n_rows) / 2))))


def sample_rows(n_rows: int, count: int, seed: int) -> NDArray[np.int64]:
    """About `count` different rows at random, ascending; all rows where there are no more.

    At random, not evenly spaced: those could all be the same embedding of their images.
    """
    if count >= n_rows:
        return np.arange(n_rows)
    return np.unique(np.random.default_rng(seed).integers(0, n_rows, count))


def train_codes(rows: RowsFile) -> faiss.IndexPreTransform:
    """Train projection, partitions and product quantiser on a sample of the rows; the index holds no row yet."""
    partitions = n_partitions(rows.n_rows)
    chosen = sample_rows(rows.n_rows, max(_PCA_ROWS, _ROWS_PER_PARTITION * partitions), _SEED)
    # In blocks, as the bytes and the float32 values of all would lie in memory together.
    sample = np.concatenate([_values(rows, part) for part in np.array_split(chosen, 1 + len(chosen) // _BLOCK_ROWS)])
    n_pairs = -(-rows.dim // 4)
    kept = min(rows.dim, 2 * n_pairs)
    if kept % 2:  # a width of 1: there is no pair
        n_pairs = kept
    basis = _principal(sample[:_PCA_ROWS], kept)  # [Co, D]
    sample = sample @ basis
    kmeans = faiss.Kmeans(
        kept, partitions, niter=_KMEANS_ROUNDS, seed=_SEED, max_points_per_centroid=_ROWS_PER_PARTITION
    )
    # FAISS warns on stdout of few rows to a centre; tiny indexes have no more.
    kmeans.cp.min_points_per_centroid = 1
    kmeans.train(sample)
    found: Any = kmeans.centroids  # [P, D] float32
    _, nearest = kmeans.assign(sample[:_PCA_ROWS])
    rotation = _principal(sample[:_PCA_ROWS] - found[nearest], kept)  # [D, D]
    order = np.stack([np.arange(n_pairs), kept - 1 - np.arange(n_pairs)], axis=1)[:, : max(1, kept // n_pairs)]
    rotation = rotation[:, order.reshape(-1)]
    centres = faiss.IndexFlat(kept, faiss.METRIC_L2)
    centres.add(np.ascontiguousarray(found @ rotation))
    coded = faiss.IndexIVFPQFastScan(centres, kept, partitions, n_pairs, 4, faiss.METRIC_INNER_PRODUCT)
    coded.by_residual = True
    coded.pq.cp.min_points_per_centroid = 1
    coded.train(np.ascontiguousarray(sample @ rotation))
    projection = faiss.LinearTransform(rows.dim, kept, False)
    faiss.copy_array_to_vector(np.ascontiguousarray((basis @ rotation).T).ravel(), projection.A)
    projection.is_trained = True
    copy: Any = faiss.clone_index(faiss.IndexPreTransform(projection, coded))  # one that owns its parts
    return copy


def encode(
    codes: faiss.IndexPreTransform, rows: RowsFile, checkpoint: Callable[[faiss.IndexPreTransform], None]
) -> None:
    """Add the codes of the rows that aren't in the index yet; `checkpoint` is called with it now and then."""
    bar = tqdm(total=rows.n_rows, initial=codes.ntotal, desc="encode", unit="row", unit_scale=True, disable=None)
    every = max(_BLOCK_ROWS, rows.n_rows // _CHECKPOINTS)
    saved = codes.ntotal
    with bar:
        while codes.ntotal < rows.n_rows:
            block = rows.block(codes.ntotal, min(_BLOCK_ROWS, rows.n_rows - codes.ntotal))
            codes.add(block)
            bar.update(len(block))
            if codes.ntotal - saved >= every and codes.ntotal < rows.n_rows:
                checkpoint(codes)
                saved = codes.ntotal


def finish(codes: faiss.IndexPreTransform) -> None:
    """Let queries choose partitions by inner product, once all rows are in the nearest one."""
    centres = faiss.downcast_index(partitioned(codes).quantizer)
    centres.metric_type = faiss.METRIC_INNER_PRODUCT


def partitioned(codes: faiss.IndexPreTransform) -> faiss.IndexIVFPQFastScan:
    """The part of the index that holds the partitions."""
    inner: Any = faiss.downcast_index(codes.index)
    return inner


def write(codes: faiss.IndexPreTransform, path: Path) -> None:
    with atomic_path(path) as temporary:
        faiss.write_index(codes, str(temporary))


def read(path: Path, n_rows: int | None, dim: int) -> faiss.IndexPreTransform | None:
    """The codes in a file; None when it isn't there, can't be read, or isn't of `n_rows` rows of that width.

    n_rows: None for any number.
    """
    try:
        codes = faiss.read_index(str(path))
    except (RuntimeError, MemoryError) as error:
        log.debug("faiss could not read %s", path, exc_info=error)
        return None
    if not isinstance(codes, faiss.IndexPreTransform) or codes.d != dim:
        return None
    if not isinstance(partitioned(codes), faiss.IndexIVFPQFastScan):
        return None
    return codes if n_rows is None or codes.ntotal == n_rows else None


def _values(rows: RowsFile, chosen: NDArray[np.int64]) -> NDArray[np.float32]:
    return rows.at(chosen).view("<f2").astype(np.float32)


def _principal(values: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """The `count` directions of largest variance, [dim, count] float32, orthonormal, the largest first."""
    if len(values) < 2:
        return np.eye(values.shape[1], count, dtype=np.float32)
    _, vectors = np.linalg.eigh(np.cov(values.T.astype(np.float64)).reshape(values.shape[1], values.shape[1]))
    return np.ascontiguousarray(vectors[:, ::-1][:, :count], dtype=np.float32)
