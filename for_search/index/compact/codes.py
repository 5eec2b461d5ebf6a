"""Two codes of each row, in memory: a short one that is read of every row, and a finer one of those that it leaves.

A row is projected onto up to 128 dimensions (see `projection`). The short code is product quantisation, 32 parts of 4
bits, 16 bytes, which a query reads of all rows, at about a nanosecond each (FAISS `IndexPQFastScan`). The finer one has
4 bits for each dimension, 64 bytes (`IndexScalarQuantizer`), read of the rows whose short codes score best.
`IndexRefine` holds both.

Each part of the short code has dimensions of large and of small variance, so that all 4 bits carry about as much (the
allocation that optimised product quantisation starts from).
There are no partitions: as texts lie apart from all rows, they needed half of them to find what is asked for, and to
pass over the other half costs as much as to read its codes.
Legend: R rows, Q queries, Co joint width, D dimensions kept, F rows chosen by their short codes.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from for_model.files import atomic_path
from for_search.index.compact.projection import Projection, train_projection
from for_search.index.compact.rows_file import RowsFile

_SEED = 0
_TRAINING_ROWS = 1 << 15
_PARTS = 32  # of the short code
_BLOCK_ROWS = 1 << 16
_CHECKPOINTS = 8  # in the course of encoding
_BATCH = 1 << 22  # rows chosen at once, over all queries: 24 bytes each
_ENOUGH = 0.8  # of the rows wanted, when only some are allowed: there are sometimes fewer among the best than in all

log = logging.getLogger(__name__)


def sample_rows(n_rows: int, count: int, seed: int) -> NDArray[np.int64]:
    """About `count` different rows at random, ascending; all rows where there are no more.

    At random, not evenly spaced: those could all be the same embedding of their images.
    """
    if count >= n_rows:
        return np.arange(n_rows)
    return np.unique(np.random.default_rng(seed).integers(0, n_rows, count))


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """FAISS uses only the thread that calls it. Where there is little to do, others cost more than they help."""
    before = faiss.omp_get_max_threads()  # OpenMP keeps this number for each thread
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


class Codes:
    """The codes of rows, and the projection that they are made in. Threads may share one that nothing is added to."""

    def __init__(self, index: faiss.IndexRefine, projection: Projection) -> None:
        self._index, self._projection = index, projection

    @property
    def n_rows(self) -> int:
        return int(self._index.ntotal)

    @classmethod
    def train(cls, rows: RowsFile, texts: NDArray[np.float32] | None) -> "Codes":
        """Learn projection and codes from a sample of the rows; there is no row yet.

        texts: [T, Co], texts as they will be searched for, or None.
        """
        chosen = sample_rows(rows.n_rows, _TRAINING_ROWS, _SEED)
        sample = rows.at(chosen).view("<f2").astype(np.float32)
        trained = train_projection(sample, texts, _PARTS)
        width = trained.of_rows.shape[1]
        # Part p holds dimensions p, 2 * 32 - 1 - p, 2 * 32 + p, ...: there and back, as the variance descends.
        rounds = np.arange(width).reshape(-1, _PARTS)
        rounds[1::2] = rounds[1::2, ::-1]
        order = rounds.T.reshape(-1)
        projection = Projection(trained.of_rows[:, order], trained.of_queries[:, order])
        short = faiss.IndexPQFastScan(width, _PARTS, 4, faiss.METRIC_INNER_PRODUCT)
        short.pq.cp.min_points_per_centroid = 1  # FAISS warns on stdout of few; tiny indexes have no more
        fine = faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_4bit, faiss.METRIC_INNER_PRODUCT)
        sample = sample @ projection.of_rows
        with one_thread():
            short.train(sample)
            fine.train(sample)
        copy: Any = faiss.clone_index(faiss.IndexRefine(short, fine))  # one that owns its parts
        return cls(copy, projection)

    def encode(self, rows: RowsFile, checkpoint: Callable[["Codes"], None]) -> None:
        """Add the codes of the rows that have none yet; `checkpoint` is called now and then."""
        bar = tqdm(total=rows.n_rows, initial=self.n_rows, desc="encode", unit="row", unit_scale=True, disable=None)
        every = max(_BLOCK_ROWS, rows.n_rows // _CHECKPOINTS)
        saved = self.n_rows
        with bar:
            while self.n_rows < rows.n_rows:
                block = rows.block(self.n_rows, min(_BLOCK_ROWS, rows.n_rows - self.n_rows))
                self._index.add(block @ self._projection.of_rows)
                bar.update(len(block))
                if self.n_rows - saved >= every and self.n_rows < rows.n_rows:
                    checkpoint(self)
                    saved = self.n_rows

    def by_short_codes(self, queries: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        """The `count` rows whose short codes score highest, [Q, count], best first; -1 for none."""
        projected = queries @ self._projection.of_queries
        found: NDArray[np.int64] = self._index.base_index.search(projected, count)[1]
        return found

    def by_finer_codes(self, query: NDArray[np.float32], chosen: NDArray[np.int64], n_rows: int) -> NDArray[np.int64]:
        """Of some rows, ascending, the `n_rows` whose finer codes score highest for a query [Co], best first."""
        with one_thread():
            return self._by_finer_codes(query @ self._projection.of_queries, chosen, n_rows)

    def best(
        self, queries: NDArray[np.float32], n_first: int, n_rows: int, allowed: NDArray[np.bool_] | None = None
    ) -> NDArray[np.int64] | None:
        """Of the F rows whose short codes score highest, those whose finer codes do: [Q, n_rows], best first.

        n_first: F, at least n_rows.
        allowed: [R], the rows to choose from; None for all. F of these are chosen, or nearly.
        Returns None where the short codes can't tell so many from the others: so many of them are equal, or the
        allowed ones are so far from the best that there is nothing to gain.
        """
        projected = queries @ self._projection.of_queries
        found = np.empty((len(queries), n_rows), np.int64)
        wanted = n_first
        if allowed is not None:
            wanted = n_first * self.n_rows // max(1, int(np.count_nonzero(allowed)))
        step = max(1, _BATCH // wanted)
        waiting = [np.arange(len(queries))[start : start + step] for start in range(0, len(queries), step)]
        while waiting:
            part = waiting.pop()
            first = self._index.base_index.search(projected[part], min(wanted, self.n_rows))[1]
            usable = first >= 0 if allowed is None else (first >= 0) & allowed[first]
            counts = usable.sum(axis=1)
            if counts.min() < n_rows or (allowed is not None and counts.min() < _ENOUGH * n_first):
                if allowed is None or wanted >= self.n_rows // 4:
                    return None
                wanted *= 2
                waiting.append(part)
                continue
            with one_thread():
                for query, its_first, its_usable in zip(part, first, usable, strict=True):
                    found[query] = self._by_finer_codes(projected[query], np.sort(its_first[its_usable]), n_rows)
        return found

    def _by_finer_codes(
        self, projected: NDArray[np.float32], chosen: NDArray[np.int64], n_rows: int
    ) -> NDArray[np.int64]:
        """The same for a query that is projected."""
        fine = self._fine
        codes = faiss.rev_swig_ptr(fine.codes.data(), fine.ntotal * fine.code_size).reshape(fine.ntotal, -1)
        # Three times as fast as FAISS's own refinement, which computes them one by one.
        part = faiss.IndexScalarQuantizer(fine.d, faiss.ScalarQuantizer.QT_4bit, faiss.METRIC_INNER_PRODUCT)
        part.sq.trained = fine.sq.trained
        part.is_trained = True
        part.add_sa_codes(codes[chosen])
        order = part.search(projected[None], n_rows)[1][0]
        best: NDArray[np.int64] = chosen[order]
        return best

    @property
    def _fine(self) -> faiss.IndexScalarQuantizer:
        fine: Any = faiss.downcast_index(self._index.refine_index)
        return fine

    def write(self, index: Path, projection: Path) -> None:
        self._projection.write(projection)
        with atomic_path(index) as temporary:
            faiss.write_index(self._index, str(temporary))

    @classmethod
    def read(cls, index: Path, projection: Path, n_rows: int | None, dim: int) -> "Codes | None":
        """The codes in two files; None when they aren't there, can't be read, or aren't of `n_rows` rows of that width.

        n_rows: None for any number.
        """
        maps = Projection.read(projection, dim)
        if maps is None:
            return None
        try:
            codes = faiss.read_index(str(index))
        except (RuntimeError, MemoryError) as error:
            log.debug("faiss could not read %s", index, exc_info=error)
            return None
        if not isinstance(codes, faiss.IndexRefine) or codes.d != maps.of_rows.shape[1]:
            return None
        return cls(codes, maps) if n_rows is None or codes.ntotal == n_rows else None
