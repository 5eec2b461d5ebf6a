"""A segment of an index: the rows of some images, an engine that finds the best of them, and which are still there.

Legend: S images of the segment, N embeddings per image, Q queries, Co joint width, F rows fetched for a query.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from for_model.errors import StoreError
from for_search.index.checked_file import CheckedFile
from for_search.index.engine_protocol import Engine, ImageEngine, RowEngine

_FETCH_GROWTH = 4
_FETCH_BUDGET = 1 << 22  # rows fetched at once over all queries, 12 bytes each
_BLOCK_ROWS = 1 << 14  # rows scored at once, when all are


@dataclass(frozen=True)
class Best:
    """The best images of a segment for one query, best first; equal scores in ascending order of rank.

    scores: [k] float32.
    ranks: [k] int64, the images' places among all of the index, in ascending order of id.
    embeddings: [k] int64, in 0..N-1, the lowest-numbered one that reaches the score.
    """

    scores: NDArray[np.float32]
    ranks: NDArray[np.int64]
    embeddings: NDArray[np.int64]


@dataclass(frozen=True)
class Segment:
    """A segment, open. Searching changes nothing in it, so several threads may share one.

    engine: over S * N rows; row r is embedding r % N of the segment's image r // N.
    n_embeddings: N.
    ranks: [S] int64, the place of each image among all of the index in ascending order of id; -1 for one that isn't in
        the index any more.
    files: of the engine, which are checked before the first search, see `check`.
    """

    engine: Engine
    n_embeddings: int
    ranks: NDArray[np.int64]
    files: tuple[CheckedFile, ...] = ()

    @cached_property
    def _of_images(self) -> ImageEngine | None:
        """The engine, where it finds whole images. Told once, as a search shouldn't wait for it: it takes 20 us."""
        return self.engine if isinstance(self.engine, ImageEngine) else None

    @cached_property
    def _n_there(self) -> int:
        return int(np.count_nonzero(self.ranks >= 0))

    @property
    def folder(self) -> Path:
        """Where its files lie."""
        return self.files[0].path.parent

    def check(self, whole: bool = False) -> None:
        """Compare every byte with what was written, unless that is done. Raises StoreError when one differs.

        What the engine reads in parts is compared in the background, unless `whole`: the first answers of a large index
        needn't wait for it, and once damage is found there are no more.
        """
        for file in self.files:
            if file.path.name in self.engine.read_in_parts and not whole:
                file.check_behind()
            else:
                file.check()

    def best(
        self, queries: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None = None, exact: bool = False
    ) -> list[Best]:
        """The k images that match each query best, of those that are still in the index, as far as the engine finds
        them; their scores and order are exact.

        queries: [Q, Co] float32, finite.
        allowed: by rank, the images to choose from; None for all.
        exact: let an approximate engine look at every row.
        k: at least 1; fewer images are given where the segment has no more.
        """
        self.check(whole=exact)
        ranks = self.ranks if allowed is None else np.where(allowed[self.ranks], self.ranks, -1)  # -1 stays -1
        k = min(k, self._n_there if allowed is None else int(np.count_nonzero(ranks >= 0)))
        if not k:
            return [Best(np.empty(0, np.float32), np.empty(0, np.int64), np.empty(0, np.int64))] * len(queries)
        if self._of_images is not None:
            return self._best_images(self._of_images, queries, k, ranks, exact)
        # Few images are gone, and what the engine finds of them is dropped; a filter may leave few.
        return self._best_rows(cast(RowEngine, self.engine), queries, k, ranks, allowed is not None, exact)

    def _best_images(
        self, engine: ImageEngine, queries: NDArray[np.float32], k: int, ranks: NDArray[np.int64], exact: bool
    ) -> list[Best]:
        there = ranks >= 0
        results = []
        for found in engine.search_images(queries, k, None if there.all() else there, exact):
            of_found = ranks[found.images]
            order = np.lexsort((of_found, -found.scores))[:k]
            results.append(Best(found.scores[order], of_found[order], found.embeddings[order]))
        return results

    def _best_rows(
        self,
        engine: RowEngine,
        queries: NDArray[np.float32],
        k: int,
        ranks: NDArray[np.int64],
        filtered: bool,
        exact: bool,
    ) -> list[Best]:
        """Asks for more and more rows, until those that were not given can't change the answer."""
        allowed_rows = np.repeat(ranks >= 0, self.n_embeddings) if filtered else None
        total = len(self.ranks) * self.n_embeddings
        results: dict[int, Best] = {}
        waiting = np.arange(len(queries))
        fetch = engine.first_fetch(k)
        while waiting.size:
            fetch = min(fetch, total)
            step = max(1, _FETCH_BUDGET // fetch)
            unfinished = []
            for part in (waiting[start : start + step] for start in range(0, len(waiting), step)):
                all_scores, all_rows = engine.search_rows(queries[part], fetch, allowed_rows, exact)
                for query, scores, rows in zip(part.tolist(), all_scores, all_rows, strict=True):
                    best = self._best_of(ranks, scores, rows, k)
                    # A later row could still reach an image's score, or tie with the last image, unless it must be
                    # worse than the k-th image; so only then (or with nothing left to fetch) is the answer final.
                    if fetch == total or rows[-1] < 0 or (len(best.ranks) == k and scores[-1] < best.scores[-1]):
                        results[query] = best
                    else:
                        unfinished.append(query)
            waiting = np.array(unfinished, dtype=np.int64)
            fetch *= _FETCH_GROWTH
        return [results[query] for query in range(len(queries))]

    def _best_of(self, ranks: NDArray[np.int64], scores: NDArray[np.float32], rows: NDArray[np.int64], k: int) -> Best:
        """The best row of each of the k best images among [F] fetched rows; a row of -1 is none."""
        images, embeddings = np.divmod(rows, self.n_embeddings)
        found = np.where(rows >= 0, ranks[images], -1)
        order = np.lexsort((embeddings, found, -scores))
        order = order[found[order] >= 0]
        _, first = np.unique(found[order], return_index=True)
        chosen = order[np.sort(first)[:k]]
        return Best(scores[chosen], found[chosen], embeddings[chosen])

    def blocks(self) -> Iterator[tuple[int, int]]:
        """The segment's images in blocks of about as many rows as are scored at once: first image and number."""
        size = max(1, _BLOCK_ROWS // self.n_embeddings)
        for start in range(0, len(self.ranks), size):
            yield start, min(size, len(self.ranks) - start)

    def score(
        self, queries: NDArray[np.float32], start: int, count: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The scores [Q, m] float32 of the m images in a block that are still in the index, and their ranks [m]."""
        self.check(whole=True)
        there = self.ranks[start : start + count] >= 0
        if self._of_images is not None:
            scores = self._of_images.score_images(queries, start, count)
            _refuse_missing(np.isfinite(scores).all(axis=0)[there])
        else:
            rows = self.engine.rows(start * self.n_embeddings, count * self.n_embeddings)  # [count * N, Co]
            scores = (queries @ rows.T).reshape(len(queries), count, self.n_embeddings).max(axis=2)
        return scores[:, there], self.ranks[start : start + count][there]

    def block(self, start: int, count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The embeddings [m, N, Co] float32 of the m images in a block that are still in the index, and their ranks."""
        self.check()
        rows = self.engine.rows(start * self.n_embeddings, count * self.n_embeddings)
        ranks = self.ranks[start : start + count]
        embeddings = rows.reshape(count, self.n_embeddings, -1)[ranks >= 0]
        _refuse_missing(np.isfinite(embeddings[:, 0, 0]))
        return embeddings, ranks[ranks >= 0]

    def take(self, images: NDArray[np.int64]) -> NDArray[np.float32]:
        """The embeddings of the segment's images of these numbers, [m, N, Co] float32; m at least 1."""
        self.check()
        if self._of_images is not None:
            embeddings = self._of_images.images(images)
            _refuse_missing(np.isfinite(embeddings[:, 0, 0]))
            return embeddings
        return np.stack([self.engine.rows(image * self.n_embeddings, self.n_embeddings) for image in images.tolist()])


def _refuse_missing(there: NDArray[np.bool_]) -> None:
    """Raise StoreError unless all images that were asked for are there."""
    if not there.all():
        raise StoreError(
            f"{int((~there).sum())} images of the index are not on its server any more: open it again, as it may have "
            "changed; if that doesn't help, build it again with --rebuild"
        )
