"""Two codes of each row, in memory: a short one that is read of every row, and a finer one of those that it leaves.

A row is projected onto up to 128 dimensions (see `projection`). The short code is product quantisation, 40 parts of 4
bits, 20 bytes, which a query reads of all rows, at one to two nanoseconds each, as fast as memory gives them (FAISS
`IndexPQFastScan`). The finer one (see `finer_codes`), 80 bytes, is read of the rows whose short codes score best.

Each part of the short code has dimensions of large and of small variance, so that all 4 bits carry about as much (the
allocation that optimised product quantisation starts from; its rotation, learnt from there, found no more).
There are no partitions: as texts lie apart from all rows, they needed half of them to find what is asked for, and to
pass over the other half costs as much as to read its codes.
Legend: R rows, N rows an image, Q queries, Co joint width, D dimensions kept, F rows chosen by their short codes.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import faiss
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from for_model.files import atomic_path
from for_search.index.compact.finer_codes import FinerCodes, code_bytes
from for_search.index.compact.large_pages import ask_for_large_pages
from for_search.index.compact.projection import Projection, train_projection
from for_search.index.compact.rows_file import RowsFile

_SEED = 0
_TRAINING_ROWS = 1 << 15
_PARTS = 40  # of the short code
_WIDTHS = (40, 80, 120, 128)  # that D may have; the short code leaves the last 8 of 128 out
_BLOCK_ROWS = 1 << 16
_CHECKPOINTS = 8  # in the course of encoding
_BATCH = 1 << 22  # rows chosen at once, over all queries: 24 bytes each
_ENOUGH = 0.8  # of the rows wanted, when only some are allowed: there are sometimes fewer among the best than in all
# Rows of an image that are read before all others are. Many rows of a good image score high, and only its best one
# counts; by the finer codes that one is among so many (docs/scale.md).
_OF_AN_IMAGE = 6
_LOOK_AT = 4  # times as many rows as are wanted

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
    """The codes of rows, and the projection that they are made in. Threads may share one that nothing is added to.

    n_embeddings: N.
    """

    file_names: ClassVar[tuple[str, ...]] = ("codes.faiss", "finer.npy", "ranges.npy", "projection.npy")

    def __init__(
        self, short: faiss.IndexPQFastScan, finer: FinerCodes, projection: Projection, n_embeddings: int
    ) -> None:
        self._short, self._finer, self._projection, self._n_embeddings = short, finer, projection, n_embeddings
        # Part p of the short code has dimensions p, 2 * 40 - 1 - p, 2 * 40 + p: there and back.
        rounds = np.arange(short.d).reshape(-1, _PARTS)
        rounds[1::2] = rounds[1::2, ::-1]
        self._order = rounds.T.reshape(-1)

    @property
    def n_rows(self) -> int:
        return int(self._short.ntotal)

    @classmethod
    def train(cls, rows: RowsFile, texts: NDArray[np.float32] | None, n_embeddings: int) -> "Codes":
        """Learn projection and codes from a sample of the rows; there is no row yet.

        texts: [T, Co], texts as they will be searched for, or None.
        """
        chosen = sample_rows(rows.n_rows, _TRAINING_ROWS, _SEED)
        sample = rows.at(chosen).view("<f2").astype(np.float32)
        projection = train_projection(sample, texts, _WIDTHS)
        sample = sample @ projection.of_rows
        width = sample.shape[1] // _PARTS * _PARTS
        short = faiss.IndexPQFastScan(width, _PARTS, 4, faiss.METRIC_INNER_PRODUCT)
        short.pq.cp.min_points_per_centroid = 1  # FAISS warns on stdout of few; tiny indexes have no more
        made = cls(short, FinerCodes.train(sample, rows.n_rows), projection, n_embeddings)
        with one_thread():
            short.train(np.ascontiguousarray(sample[:, made._order]))
        return made

    def encode(self, rows: RowsFile, checkpoint: Callable[["Codes"], None]) -> None:
        """Add the codes of the rows that have none yet; `checkpoint` is called now and then."""
        bar = tqdm(total=rows.n_rows, initial=self.n_rows, desc="encode", unit="row", unit_scale=True, disable=None)
        every = max(_BLOCK_ROWS, rows.n_rows // _CHECKPOINTS)
        saved = self.n_rows
        self._finer = self._finer.resized(rows.n_rows)
        with bar:
            while self.n_rows < rows.n_rows:
                block = rows.block(self.n_rows, min(_BLOCK_ROWS, rows.n_rows - self.n_rows)) @ self._projection.of_rows
                self._finer.encode(self.n_rows, block)
                self._short.add(np.ascontiguousarray(block[:, self._order]))
                bar.update(len(block))
                if self.n_rows - saved >= every and self.n_rows < rows.n_rows:
                    checkpoint(self)
                    saved = self.n_rows

    def by_short_codes(self, queries: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        """The `count` rows whose short codes score highest, [Q, count], best first; -1 for none."""
        return self._by_short_codes(queries @ self._projection.of_queries, count)

    def by_finer_codes(self, query: NDArray[np.float32], chosen: NDArray[np.int64]) -> NDArray[np.int64]:
        """Some rows [F], ascending, in the order in which their finer codes choose them for a query [Co]."""
        scores = self._finer.scores(query @ self._projection.of_queries, chosen)
        ordered: NDArray[np.int64] = chosen[np.argsort(-self._with_others_below(scores, chosen))]
        return ordered

    def best(
        self, queries: NDArray[np.float32], n_first: int, n_rows: int, allowed: NDArray[np.bool_] | None = None
    ) -> NDArray[np.int64] | None:
        """Of the F rows whose short codes score highest, those that the finer codes choose: [Q, n_rows], ascending.

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
            first = self._by_short_codes(projected[part], min(wanted, self.n_rows))
            usable = first >= 0 if allowed is None else (first >= 0) & allowed[first]
            counts = usable.sum(axis=1)
            if counts.min() < n_rows or (allowed is not None and counts.min() < _ENOUGH * n_first):
                if allowed is None or wanted >= self.n_rows // 4:
                    return None
                wanted *= 2
                waiting.append(part)
                continue
            for query, its_first, its_usable in zip(part, first, usable, strict=True):
                found[query] = self._best_by_finer_codes(projected[query], np.sort(its_first[its_usable]), n_rows)
        return found

    def _by_short_codes(self, projected: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        found: NDArray[np.int64] = self._short.search(np.ascontiguousarray(projected[:, self._order]), count)[1]
        return found

    def _best_by_finer_codes(
        self, projected: NDArray[np.float32], chosen: NDArray[np.int64], n_rows: int
    ) -> NDArray[np.int64]:
        """The first `n_rows` of some rows [F], ascending, in the order of `by_finer_codes`; themselves ascending."""
        scores = self._finer.scores(projected, chosen)
        n_looked_at = _LOOK_AT * n_rows
        while n_looked_at < len(chosen):  # most often so few are enough, and what is done with them is faster
            best = np.sort(np.argpartition(-scores, n_looked_at - 1)[:n_looked_at])
            priorities = self._with_others_below(scores[best], chosen[best])
            order = np.argpartition(-priorities, n_rows - 1)[:n_rows]
            if priorities[order].min() >= scores[best].min():  # no image's sixth row or later among them
                return chosen[best[np.sort(order)]]
            n_looked_at *= _LOOK_AT
        priorities = self._with_others_below(scores, chosen)
        best_of_all: NDArray[np.int64] = chosen[np.sort(np.argpartition(-priorities, n_rows - 1)[:n_rows])]
        return best_of_all

    def _with_others_below(self, scores: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The scores of some rows [F], ascending, where those of an image that has enough better ones are below all
        others."""
        images = rows // self._n_embeddings
        starts = np.flatnonzero(np.diff(images, prepend=-1))  # of each image's rows
        counts = np.diff(starts, append=len(rows))
        left = scores.copy()
        for _ in range(min(_OF_AN_IMAGE, int(counts.max())) - 1):
            best = np.repeat(np.maximum.reduceat(left, starts), counts)
            left[left >= best] = -np.inf
        enough = np.repeat(np.maximum.reduceat(left, starts), counts)
        below = scores.max() - scores.min() + 1
        return np.where(scores >= enough, scores, scores - below)

    def write(self, folder: Path) -> None:
        """Write the files `file_names` to a folder: the short codes last, which say how many rows there are."""
        short, finer, ranges, projection = (folder / name for name in self.file_names)
        self._projection.write(projection)
        for path, values in ((ranges, self._finer.ranges), (finer, self._finer.codes[: self.n_rows])):
            with atomic_path(path) as temporary, temporary.open("wb") as stream:
                np.save(stream, values, allow_pickle=False)
        with atomic_path(short) as temporary:
            faiss.write_index(self._short, str(temporary))

    @classmethod
    def read(cls, folder: Path, n_rows: int | None, dim: int, n_embeddings: int) -> "Codes | Path":
        """The codes in the files of a folder, or the file that isn't there, can't be read, or isn't of rows of that
        width.

        n_rows: how many rows there have to be; None for any number.
        """
        short, finer, ranges, projection = (folder / name for name in cls.file_names)
        maps = Projection.read(projection, dim)
        if maps is None:
            return projection
        width = maps.of_rows.shape[1]
        try:
            codes: Any = faiss.read_index(str(short))
        except (RuntimeError, MemoryError) as error:
            log.debug("faiss could not read %s", short, exc_info=error)
            return short
        if (
            not isinstance(codes, faiss.IndexPQFastScan)
            or codes.d != width // _PARTS * _PARTS
            or n_rows not in {None, codes.ntotal}
        ):
            return short
        _into_large_pages(codes.codes)  # before the finer ones take what there is of them
        steps = _loaded(ranges, np.float32, (2, width))
        if steps is None:
            return ranges
        its_codes = _loaded(finer, np.uint8, (-1, code_bytes(width)))
        if its_codes is None or len(its_codes) < codes.ntotal:
            return finer
        return cls(codes, FinerCodes(steps, its_codes), maps, n_embeddings)


def _into_large_pages(table: Any) -> None:
    """Move what a table of FAISS's (`AlignedTableUint8`) holds to memory in large pages."""
    n_bytes = table.size()
    content = faiss.rev_swig_ptr(table.get(), n_bytes).copy()
    table.resize(0)
    table.resize(n_bytes)  # memory that nothing was written to yet
    ask_for_large_pages(int(table.get()), n_bytes)
    faiss.rev_swig_ptr(table.get(), n_bytes)[:] = content


def _loaded(path: Path, kind: type, shape: tuple[int, int]) -> NDArray[Any] | None:
    """The array in a file; None when it isn't there, can't be read, or isn't of that type and shape (-1: any)."""
    try:
        values: NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    fits = values.ndim == 2 and all(want in (-1, have) for want, have in zip(shape, values.shape, strict=True))
    return values if fits and values.dtype == kind else None
