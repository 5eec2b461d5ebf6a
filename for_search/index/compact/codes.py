"""Codes of rows, in memory, each looked at by a search less often than the one before, and finer.

Rows of an image that are alike are a group (see `groups`), of one row where that is faster. Of each group's mean,
projected onto up to 128 dimensions (see `projection`), there are two codes. The short one is product quantisation, 40
parts of 4 bits, 20 bytes, which a query reads of all groups, at a nanosecond or two each, as fast as memory gives them
(FAISS `IndexPQFastScan`). The finer one (see `finer_codes`), 80 bytes, is read of the groups whose short codes score
best. Of the rows of those that are best by both, what they differ by from their group's mean has a code of 48 bytes.

Each part of the short code has dimensions of large and of small variance, so that all 4 bits carry about as much (the
allocation that optimised product quantisation starts from; its rotation, learnt from there, found no more).
There are no partitions: as texts lie apart from all rows, they needed half of them to find what is asked for, and to
pass over the other half costs as much as to read its codes.
Legend: R rows, N rows an image, G groups, Q queries, Co joint width, D dimensions kept, F groups chosen by their short
codes, P places of rows.
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
from for_search.index.compact.finer_codes import FinerCodes
from for_search.index.compact.groups import Groups
from for_search.index.compact.large_pages import ask_for_large_pages
from for_search.index.compact.projection import Projection, train_projection
from for_search.index.compact.rows_file import ReadableRows, rows_of, values_at

_SEED = 0
_TRAINING_ROWS = 1 << 15
_TRAINING_IMAGES = (1 << 17, 32)  # of so many rows in all, and at least so many
_PARTS = 40  # of the short code
_WIDTHS = (40, 80, 120, 128)  # that D may have; the short code leaves the last 8 of 128 out
_WIDE_OF_GROUPS = 32  # dimensions of 8 bits in a group's finer code
_OF_ROWS, _WIDE_OF_ROWS = 64, 32  # dimensions in the finer code of a row, and of these those of 8 bits
_BLOCK_ROWS = 1 << 16
_CHECKPOINTS = 8  # in the course of encoding
_BATCH = 1 << 22  # groups chosen at once, over all queries: 24 bytes each
_ENOUGH = 0.8  # of the groups wanted, when only some rows are allowed: there are sometimes fewer among the best
_SECOND = 3  # the finer codes of groups leave one in so many
# What it takes to read a short code; to choose a group by it and look at its finer code; to look at a row's; to read a
# row and score it, when it is in the page cache.
_NS_A_GROUP, _NS_A_FIRST, _NS_A_SECOND, _NS_A_ROW = 1, 230, 45, 2500
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

    short: of G groups; of_groups: the finer codes of these.
    of_rows: the finer codes of what R rows differ by from what their group's stands for, in the order of `groups`; of
        no dimensions where every row is a group.
    """

    file_names: ClassVar[tuple[str, ...]] = (
        "codes.faiss",
        "groups.npy",
        "of_groups.npy",
        "of_rows.npy",
        "projection.npy",
    )

    def __init__(
        self,
        short: faiss.IndexPQFastScan,
        of_groups: FinerCodes,
        of_rows: FinerCodes,
        projection: Projection,
        groups: Groups,
    ) -> None:
        self._short, self._of_groups, self._of_rows = short, of_groups, of_rows
        self._projection, self._groups = projection, groups
        # Part p of the short code has dimensions p, 2 * 40 - 1 - p, 2 * 40 + p: there and back.
        rounds = np.arange(short.d).reshape(-1, _PARTS)
        rounds[1::2] = rounds[1::2, ::-1]
        self._order = rounds.T.reshape(-1)

    @property
    def n_rows(self) -> int:
        return self._groups.n_rows

    @property
    def n_groups(self) -> int:
        return len(self._groups)

    @property
    def _in_groups(self) -> bool:
        return bool(self._of_rows.codes.shape[1])

    def n_second(self, n_first: int, n_rows: int) -> int:
        """How many of so many groups their finer codes leave, where so many rows are wanted."""
        return max(n_rows, -(-n_first // _SECOND)) if self._in_groups else n_first

    def nanoseconds(self, n_first: int, n_rows: int) -> float:
        """About what a search takes, to compare settings with: as measured with rows in the page cache."""
        of_rows = self.n_second(n_first, n_rows) * self.n_rows / max(1, self.n_groups) if self._in_groups else 0
        costs = (_NS_A_GROUP, _NS_A_FIRST, _NS_A_SECOND, _NS_A_ROW)
        return sum(cost * n for cost, n in zip(costs, (self.n_groups, n_first, of_rows, n_rows), strict=True))

    @classmethod
    def train(cls, rows: ReadableRows, texts: NDArray[np.float32] | None, n_embeddings: int, alike: float) -> "Codes":
        """Learn projection and codes from a sample of the rows; there is no row yet.

        texts: [T, Co], texts as they will be searched for, or None.
        alike: see `groups`.
        """
        sample = values_at(rows, sample_rows(rows.n_rows, _TRAINING_ROWS, _SEED))
        projection = train_projection(sample, texts, _WIDTHS)
        n_images = max(_TRAINING_IMAGES[0] // n_embeddings, _TRAINING_IMAGES[1])
        images = sample_rows(rows.n_rows // n_embeddings, n_images, _SEED)
        whole = projection.rows(values_at(rows, rows_of(images, n_embeddings).reshape(-1)))
        groups, in_order, means = Groups.none_yet(n_embeddings).with_more(whole, alike)
        of_groups = FinerCodes.train(means, _WIDE_OF_GROUPS).resized(len(groups))
        differences = in_order - groups.for_rows(of_groups.encode(0, means))
        short = faiss.IndexPQFastScan(means.shape[1] // _PARTS * _PARTS, _PARTS, 4, faiss.METRIC_INNER_PRODUCT)
        short.pq.cp.min_points_per_centroid = 1  # FAISS warns on stdout of few; tiny indexes have no more
        of_rows = FinerCodes.train(differences[:, : _OF_ROWS if alike else 0], _WIDE_OF_ROWS)
        made = cls(short, of_groups.resized(0), of_rows, projection, Groups.none_yet(n_embeddings))
        points = np.resize(means, (max(len(means), short.pq.ksub), means.shape[1]))  # FAISS refuses fewer
        with one_thread():
            short.train(np.ascontiguousarray(points[:, made._order]))
        return made

    def encode(
        self, rows: ReadableRows, alike: float, checkpoint: Callable[["Codes"], None], what: str = "encode"
    ) -> None:
        """Add the codes of the rows that have none yet; `checkpoint` is called now and then. `alike` is that of
        `train`, `what` is said beside the progress bar."""
        bar = tqdm(total=rows.n_rows, initial=self.n_rows, desc=what, unit="row", unit_scale=True, disable=None)
        every = max(_BLOCK_ROWS, rows.n_rows // _CHECKPOINTS)
        saved, n_embeddings = self.n_rows, self._groups.n_embeddings
        at_once = max(1, _BLOCK_ROWS // n_embeddings) * n_embeddings
        self._of_rows = self._of_rows.resized(rows.n_rows)
        with bar:
            while self.n_rows < rows.n_rows:
                start = self.n_rows
                block = self._projection.rows(rows.block(start, min(at_once, rows.n_rows - start)))
                self._add(block, alike)
                bar.update(len(block))
                if self.n_rows - saved >= every and self.n_rows < rows.n_rows:
                    checkpoint(self)
                    saved = self.n_rows
        self._of_groups = self._of_groups.resized(self.n_groups)

    def _add(self, rows: NDArray[np.float32], alike: float) -> None:
        """Add the codes of the next rows [m, D], of whole images."""
        start, first_group = self.n_rows, self.n_groups
        self._groups, in_order, means = self._groups.with_more(rows, alike)
        if self.n_groups > len(self._of_groups.codes):
            self._of_groups = self._of_groups.resized(self.n_groups * 5 // 4)
        stood_for = self._of_groups.encode(first_group, means)
        differences = in_order - self._groups.for_rows(stood_for, first_group)
        self._of_rows.encode(start, differences[:, : self._of_rows.ranges.shape[1]])
        self._short.add(np.ascontiguousarray(means[:, self._order]))

    def by_short_codes(self, queries: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        """The `count` groups whose short codes score highest, [Q, count], best first; -1 for none."""
        return self._by_short_codes(self._projection.queries(queries), count)

    def by_group_codes(self, query: NDArray[np.float32], groups: NDArray[np.int64]) -> NDArray[np.int64]:
        """Some groups [F] in the order in which their finer codes choose them for a query [Co]."""
        scores = self._of_groups.scores(self._projection.queries(query[None])[0], groups)
        ordered: NDArray[np.int64] = groups[np.argsort(-scores)]
        return ordered

    def by_row_codes(self, query: NDArray[np.float32], groups: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of some groups [F], ascending, in the order in which their finer codes choose them for a query
        [Co]."""
        places, scores = self._scored_rows(self._projection.queries(query[None])[0], groups)
        return self._groups.rows_at(places[np.argsort(-self._with_others_below(scores, places))])

    def group_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The group of each of some rows [P]."""
        return self._groups.group_of(rows)

    def best(
        self, queries: NDArray[np.float32], n_first: int, n_rows: int, allowed: NDArray[np.bool_] | None = None
    ) -> NDArray[np.int64] | None:
        """Of the F groups whose short codes score highest, those that their finer codes choose, `n_second` of them; of
        their rows, those that the rows' finer codes choose: [Q, n_rows], ascending.

        n_first: F.
        allowed: [R], the rows to choose from; None for all. F of the groups have some of these, or nearly.
        Returns None where the short codes can't tell so many from the others: so many of them are equal, or the
        allowed ones are so far from the best that there is nothing to gain.
        """
        projected = self._projection.queries(queries)
        found = np.empty((len(queries), n_rows), np.int64)
        wanted, enough = n_first, 1
        if allowed is not None:
            wanted = n_first * self.n_rows // max(1, int(np.count_nonzero(allowed)))
            enough = int(_ENOUGH * n_first)
        step = max(1, _BATCH // wanted)
        waiting = [np.arange(len(queries))[start : start + step] for start in range(0, len(queries), step)]
        while waiting:
            part, unfinished = waiting.pop(), list[int]()
            first = self._by_short_codes(projected[part], min(wanted, self.n_groups))
            for query, groups in zip(part.tolist(), first, strict=True):
                some = self._with_some(np.sort(groups[groups >= 0]), allowed)
                chosen = None
                if len(some) >= enough:
                    chosen = self._best_rows(projected[query], some, self.n_second(n_first, n_rows), n_rows, allowed)
                if chosen is None:
                    unfinished.append(query)
                else:
                    found[query] = chosen
            if unfinished:
                if first.min() < 0 or wanted >= self.n_groups // 4:
                    return None
                wanted *= 2
                waiting.append(np.array(unfinished))
        return found

    def _with_some(self, groups: NDArray[np.int64], allowed: NDArray[np.bool_] | None) -> NDArray[np.int64]:
        """Those of some groups [F] that have allowed rows."""
        if allowed is None or not len(groups):
            return groups
        places, begins = self._groups.places_of(groups)
        return groups[np.logical_or.reduceat(allowed[self._groups.rows_at(places)], begins)]

    def _by_short_codes(self, projected: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        found: NDArray[np.int64] = self._short.search(np.ascontiguousarray(projected[:, self._order]), count)[1]
        return found

    def _scored_rows(
        self, projected: NDArray[np.float32], groups: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The places of the rows of some groups [F], ascending, and what their finer codes say of their scores."""
        without_reach = np.concatenate([[0], projected[1:]]).astype(np.float32)
        if not self._in_groups:
            return groups, self._of_groups.scores(without_reach, groups)
        places, begins = self._groups.places_of(groups)
        of_means = self._of_groups.scores(without_reach, groups)
        scores = self._of_rows.scores(without_reach[: self._of_rows.ranges.shape[1]], places)
        return places, scores + np.repeat(of_means, np.diff(begins, append=len(places)))

    def _best_rows(
        self,
        projected: NDArray[np.float32],
        groups: NDArray[np.int64],
        n_groups: int,
        n_rows: int,
        allowed: NDArray[np.bool_] | None,
    ) -> NDArray[np.int64] | None:
        """Of the rows of the `n_groups` best of some groups [F], ascending, the first `n_rows` in the order of
        `by_row_codes`, ascending; None where there are fewer."""
        if len(groups) > n_groups:
            scores = self._of_groups.scores(projected, groups)
            groups = groups[np.sort(np.argpartition(-scores, n_groups - 1)[:n_groups])]
        places, scores = self._scored_rows(projected, groups)
        if allowed is not None:
            kept = allowed[self._groups.rows_at(places)]
            places, scores = places[kept], scores[kept]
        if len(places) < n_rows:
            return None
        n_looked_at = _LOOK_AT * n_rows
        while n_looked_at < len(places):  # most often so few are enough, and what is done with them is faster
            best = np.sort(np.argpartition(-scores, n_looked_at - 1)[:n_looked_at])
            priorities = self._with_others_below(scores[best], places[best])
            order = np.argpartition(-priorities, n_rows - 1)[:n_rows]
            if priorities[order].min() >= scores[best].min():  # no image's sixth row or later among them
                return np.sort(self._groups.rows_at(places[best[order]]))
            n_looked_at *= _LOOK_AT
        priorities = self._with_others_below(scores, places)
        return np.sort(self._groups.rows_at(places[np.argpartition(-priorities, n_rows - 1)[:n_rows]]))

    def _with_others_below(self, scores: NDArray[np.float32], places: NDArray[np.int64]) -> NDArray[np.float32]:
        """The scores of the rows at some places [P], ascending, where those of an image that has enough better ones are
        below all others."""
        images = places // self._groups.n_embeddings
        starts = np.flatnonzero(np.diff(images, prepend=-1))  # of each image's rows
        counts = np.diff(starts, append=len(places))
        left = scores.copy()
        for _ in range(min(_OF_AN_IMAGE, int(counts.max())) - 1):
            best = np.repeat(np.maximum.reduceat(left, starts), counts)
            left[left >= best] = -np.inf
        enough = np.repeat(np.maximum.reduceat(left, starts), counts)
        below = scores.max() - scores.min() + 1
        return np.where(scores >= enough, scores, scores - below)

    def write(self, folder: Path) -> None:
        """Write the files `file_names` to a folder: the short codes last, which say how many groups there are."""
        short, groups, of_groups, of_rows, projection = (folder / name for name in self.file_names)
        self._projection.write(projection)
        self._groups.write(groups)
        self._of_groups.write(of_groups, self.n_groups)
        self._of_rows.write(of_rows, self.n_rows)
        with atomic_path(short) as temporary:
            faiss.write_index(self._short, str(temporary))

    @classmethod
    def read(cls, folder: Path, n_rows: int | None, dim: int, n_embeddings: int) -> "Codes | Path":
        """The codes in the files of a folder, or the file that isn't there, can't be read, or isn't of rows of that
        width.

        n_rows: how many rows there have to be; None for any number.
        """
        short, groups, of_groups, of_rows, projection = (folder / name for name in cls.file_names)
        maps = Projection.read(projection, dim)
        if maps is None:
            return projection
        width = maps.of_rows.shape[1]
        try:
            codes: Any = faiss.read_index(str(short))
        except (RuntimeError, MemoryError) as error:
            log.debug("faiss could not read %s", short, exc_info=error)
            return short
        if not isinstance(codes, faiss.IndexPQFastScan) or codes.d != width // _PARTS * _PARTS:
            return short
        _into_large_pages(codes.codes)  # before the finer ones take what there is of them
        its_groups = Groups.read(groups, codes.ntotal, n_embeddings)
        if its_groups is None or n_rows not in {None, its_groups.n_rows}:
            return groups
        group_codes = FinerCodes.read(of_groups, len(its_groups), (width,), _WIDE_OF_GROUPS)
        if group_codes is None:
            return of_groups
        row_codes = FinerCodes.read(of_rows, its_groups.n_rows, (0, min(_OF_ROWS, width)), _WIDE_OF_ROWS)
        if row_codes is None or (not row_codes.codes.shape[1] and len(its_groups) < its_groups.n_rows):
            return of_rows
        return cls(codes, group_codes, row_codes, maps, its_groups)


def _into_large_pages(table: Any) -> None:
    """Move what a table of FAISS's (`AlignedTableUint8`) holds to memory in large pages."""
    n_bytes = table.size()
    content = faiss.rev_swig_ptr(table.get(), n_bytes).copy()
    table.resize(0)
    table.resize(n_bytes)  # memory that nothing was written to yet
    ask_for_large_pages(int(table.get()), n_bytes)
    faiss.rev_swig_ptr(table.get(), n_bytes)[:] = content
