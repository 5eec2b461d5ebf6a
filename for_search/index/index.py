"""The search index: an embedding store arranged for search, and the ranking of distinct images.

An index is a folder: the engine's file and `manifest.json`, which repeats what a searcher needs of the store, so that
the store itself may be deleted. Row r of the engine is embedding r % N of image r // N, images in ascending id order.
Legend: M images, N embeddings per image, Q queries, Co joint width, F rows fetched for a query.
"""

import bisect
import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from for_model.data.dataset import ImageId, ImageRecord
from for_model.errors import StoreError, UsageError
from for_model.methods.protocol import MethodInfo
from for_search.index.engine_protocol import Engine, Recall
from for_search.store.store import SkippedImage

_FETCH_GROWTH = 4
_FETCH_BUDGET = 1 << 22  # rows fetched at once over all queries, 12 bytes each
_BLOCK_ROWS = 1 << 14  # rows scored at once, when all are


@dataclass(frozen=True)
class Hit:
    """An image that was found: its score (its best embedding's inner product with the query), and which embedding.

    embedding: in 0..N-1, the lowest-numbered one that reaches the score.
    """

    image: ImageRecord
    score: float
    embedding: int


@dataclass(frozen=True)
class SearchIndex:
    """An open index. Searching changes nothing in it, so several threads may share one.

    images: M records in ascending order of id.
    skipped: those the store left out, with reasons.
    n_bytes: size of the engine's files on disk.
    """

    path: Path
    info: MethodInfo
    dataset: str
    split: str
    image_root: str
    images: tuple[ImageRecord, ...]
    skipped: tuple[SkippedImage, ...]
    n_bytes: int
    vectors: Engine

    @property
    def kind(self) -> str:
        return self.vectors.kind

    @property
    def recall(self) -> Recall | None:
        """How complete the answers are; None where they are exact."""
        return self.vectors.recall

    def check_method(self, info: MethodInfo) -> None:
        """Raise StoreError unless texts encoded by the method of `info` can be compared with this index."""
        if info.text_space != self.info.text_space:
            raise StoreError(
                f"{self.path} needs queries from {_describe(self.info)}, got {_describe(info)}: "
                "search it with its own backbone and weights, or embed and index the images again"
            )

    def search(
        self, queries: ArrayLike, k: int, allowed: NDArray[np.bool_] | None = None, exact: bool = False
    ) -> list[list[Hit]]:
        """The k images that match each query best, by maximum similarity over an image's embeddings.

        Exact, but where the index's engine has a `recall`: it may then leave out one of them, as seldom as that says.
        Scores and order are exact in any case.

        queries: [Q, Co] float32, unit-norm (scores are then cosines).
        allowed: [M], the images to choose from, in the order of `images`; None for all.
        exact: look at every embedding, whatever the engine.
        Returns Q lists of k hits, or of all images that are allowed where these are fewer, distinct images, by
        descending score; equal scores in order of image id.
        An empty `queries` gives an empty list.
        Raises UsageError for k < 1 or queries that aren't finite vectors, StoreError for another width than Co.
        """
        checked = self._checked(queries)
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
            raise UsageError(f"k is {k!r}: ask for at least 1 image")
        k = min(int(k), len(self.images))
        total = len(self.images) * self.info.n_embeddings
        allowed_rows = None if allowed is None else np.repeat(allowed, self.info.n_embeddings)
        results: list[list[Hit]] = [[] for _ in checked]
        waiting = np.arange(len(checked))
        fetch = self.vectors.first_fetch(k)
        while waiting.size:
            fetch = min(fetch, total)
            step = max(1, _FETCH_BUDGET // fetch)
            unfinished = []
            for part in (waiting[start : start + step] for start in range(0, len(waiting), step)):
                all_scores, all_rows = self.vectors.search_rows(checked[part], fetch, allowed_rows, exact)
                for query, scores, rows in zip(part, all_scores, all_rows, strict=True):
                    best = _best_rows(scores, rows, self.info.n_embeddings, k)
                    # A later row could still reach an image's score, or tie with the last image, unless it must be
                    # worse than the k-th image; so only then (or with nothing left to fetch) is the answer final.
                    if fetch == total or rows[-1] < 0 or (len(best) == k and scores[-1] < scores[best[-1]]):
                        results[query] = [self._hit(int(rows[i]), float(scores[i])) for i in best]
                    else:
                        unfinished.append(query)
            waiting = np.array(unfinished, dtype=np.int64)
            fetch *= _FETCH_GROWTH
        return results

    def score_images(self, queries: NDArray[np.float32], at_most: int | None = None) -> NDArray[np.float32]:
        """The score of every image for every query, as `search` scores them, up to rounding.

        queries: [Q, Co] float32.
        at_most: of a larger index, score about so many embeddings only, of blocks of images spread evenly over it:
            enough for a histogram.
        Returns [Q, M] float32, columns in the order of `images`; fewer columns where `at_most` leaves images out.
        """
        n_images, n_embeddings = len(self.images), self.info.n_embeddings
        block = max(1, _BLOCK_ROWS // n_embeddings)
        starts = np.arange(0, n_images, block)
        if at_most is not None and n_images * n_embeddings > at_most:
            n_blocks = max(1, at_most // (block * n_embeddings))
            starts = starts[np.linspace(0, len(starts) - 1, min(n_blocks, len(starts))).astype(np.int64)]
        parts = []
        for start in starts.tolist():
            count = min(block, n_images - start)
            rows = self.vectors.rows(start * n_embeddings, count * n_embeddings)  # [count * N, Co]
            parts.append((queries @ rows.T).reshape(len(queries), count, n_embeddings).max(axis=2))
        return np.concatenate(parts, axis=1)

    def image(self, image_id: ImageId) -> ImageRecord:
        """The image of that id; `"7"` will do for 7, as in an address. Raises UsageError when there is none."""
        return self.images[self._position(image_id)]

    def embeddings(self, image_id: ImageId) -> NDArray[np.float32]:
        """The N embeddings of an image, [N, Co] float32, unit-norm. Raises UsageError for an unknown id."""
        return self.vectors.rows(self._position(image_id) * self.info.n_embeddings, self.info.n_embeddings)

    def _position(self, image_id: ImageId) -> int:
        wanted = type(self.images[0].id)
        with contextlib.suppress(ValueError):
            key: Any = wanted(image_id)
            position = bisect.bisect_left(self.images, key, key=lambda image: image.id)
            if position < len(self.images) and self.images[position].id == key:
                return position
        raise UsageError(f"no image of the index has the id {image_id!r}: take one that a search gave")

    def _hit(self, row: int, score: float) -> Hit:
        image, embedding = divmod(row, self.info.n_embeddings)
        return Hit(self.images[image], score, embedding)

    def _checked(self, queries: ArrayLike) -> NDArray[np.float32]:
        array = np.ascontiguousarray(queries, dtype=np.float32)
        if array.ndim != 2:
            raise UsageError(f"queries have the shape {list(array.shape)}, expected [Q, {self.info.dim}]")
        if array.shape[1] != self.info.dim:
            raise StoreError(
                f"queries of width {array.shape[1]} can't search {self.path}, made by {_describe(self.info)}"
            )
        if not np.isfinite(array).all():
            raise UsageError("queries hold NaN or infinity, expected unit-norm vectors: check the text encoder")
        return array


def _best_rows(scores: NDArray[np.float32], rows: NDArray[np.int64], n_embeddings: int, k: int) -> NDArray[np.int64]:
    """Positions in [F] `rows` of the best row of each of the k best images, by score and then by row; -1 is no row."""
    order = np.lexsort((rows, -scores))
    order = order[rows[order] >= 0]
    _, first = np.unique(rows[order] // n_embeddings, return_index=True)
    return order[np.sort(first)[:k]]


def _describe(info: MethodInfo) -> str:
    return f"{info.backbone} ({info.weights}, sha256 {info.weights_sha256[:12]}, width {info.dim})"
