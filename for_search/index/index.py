"""The search index: an embedding store arranged for search, and the ranking of distinct images.

An index is a folder: segments, each with the files of an engine, and `manifest.json`, which repeats what a searcher
needs of the store, so that searching doesn't need the store.
Legend: M images, N embeddings per image, Q queries, Co joint width.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from for_model.data.dataset import ImageId, ImageRecord
from for_model.errors import StoreError, UsageError
from for_model.methods.protocol import MethodInfo
from for_search.index.engine_protocol import Recall
from for_search.index.segment import Best, Segment
from for_search.store.image_table import ImageTable
from for_search.store.store import SkippedImage

_AT_LEAST = 50  # images that `at_least` asks for at first


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
    """An open index. Searching changes nothing in it, so several threads may share one. It stays what it was when it
    was opened, whatever becomes of its folder.

    kind: of the engine that it was built with.
    images: M records in ascending order of id, and what filters can name of them.
    skipped: those the store left out, with reasons.
    segments: hold the images' rows; each image is in one of them.
    places: [M] int64, the place of each image among those of all segments, in their order.
    n_bytes: size of the engines' files on disk.
    """

    path: Path
    info: MethodInfo
    dataset: str
    split: str
    image_root: str
    kind: str
    images: ImageTable
    skipped: tuple[SkippedImage, ...]
    segments: tuple[Segment, ...]
    places: NDArray[np.int64]
    n_bytes: int

    def check_method(self, info: MethodInfo) -> None:
        """Raise StoreError unless texts encoded by the method of `info` can be compared with this index."""
        if info.text_space != self.info.text_space:
            raise StoreError(
                f"{self.path} needs queries from {_describe(self.info)}, got {_describe(info)}: "
                "search it with its own backbone and weights, or embed and index the images again"
            )

    @property
    def recall(self) -> Recall | None:
        """How complete the answers are: the least that one of the segments says; None where they are exact."""
        said = [segment.engine.recall for segment in self.segments]
        return min((recall for recall in said if recall), key=lambda recall: recall.mean, default=None)

    @property
    def on_server(self) -> bool:
        """Whether the embeddings, or some of them, are kept on a server."""
        return any(segment.engine.on_server for segment in self.segments)

    def search(
        self, queries: ArrayLike, k: int, allowed: NDArray[np.bool_] | None = None, exact: bool = False
    ) -> list[list[Hit]]:
        """The k images that match each query best, by maximum similarity over an image's embeddings.

        Exact, but where an engine has a `recall`: it may then leave one of them out, as seldom as that says. Scores and
        order are exact in any case.

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
        found = [segment.best(checked, k, allowed, exact) for segment in self.segments]
        return [self._hits([best[query] for best in found], k) for query in range(len(checked))]

    def at_least(
        self, query: NDArray[np.float32], score: float, expected: int = 0
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """All images of that score or more, as far as `search` finds them: it is asked for more until they end.

        query: [Co] float32, finite.
        expected: how many there may be; a good guess saves asking twice.
        Returns their places in `images` [m] and scores [m], by descending score, equal ones in order of image id.
        """
        k = max(_AT_LEAST, expected)
        while True:
            k = min(k, len(self.images))
            best = _merged([segment.best(query[None], k)[0] for segment in self.segments], k)
            if k == len(self.images) or best.scores[-1] < score:
                count = int(np.count_nonzero(best.scores >= score))
                return best.ranks[:count], best.scores[:count]
            k *= 4

    def _hits(self, found: list[Best], k: int) -> list[Hit]:
        """The k best of what the segments found for one query."""
        best = _merged(found, k)
        records = self.images.records(best.ranks.tolist())
        return [Hit(*each) for each in zip(records, best.scores.tolist(), best.embeddings.tolist(), strict=True)]

    def score_images(self, queries: NDArray[np.float32], at_most: int | None = None) -> NDArray[np.float32]:
        """The score of every image for every query, as `search` scores them, up to rounding.

        queries: [Q, Co] float32.
        at_most: of a larger index, score about so many embeddings only, of blocks of images spread evenly over it:
            enough for a histogram.
        Returns [Q, M] float32, columns in the order of `images`; fewer columns where `at_most` leaves images out.
        """
        blocks = [(segment, *block) for segment in self.segments for block in segment.blocks()]
        total = sum(count for _, _, count in blocks) * self.info.n_embeddings
        if at_most is not None and total > at_most:
            n_blocks = max(1, len(blocks) * at_most // total)
            blocks = [blocks[i] for i in np.linspace(0, len(blocks) - 1, n_blocks).astype(np.int64).tolist()]
        parts = [segment.score(queries, start, count) for segment, start, count in blocks]
        ranks = np.concatenate([part for _, part in parts])
        # Stable sorting takes no time where the ranks ascend already, as in an index that hasn't grown.
        return np.concatenate([part for part, _ in parts], axis=1)[:, np.argsort(ranks, kind="stable")]

    def where(self, condition: str) -> NDArray[np.bool_] | None:
        """[M] bool, the images that meet a condition over their columns, for `search`; None for an empty one: all.

        Raises UsageError, in one line that names the columns, for a condition that can't be understood.
        """
        if not condition.strip():
            return None
        allowed = np.zeros(len(self.images), dtype=bool)
        allowed[self.images.where(condition)] = True
        return allowed

    def iter_embeddings(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """All embeddings, a block of images at a time.

        Yields the images' places in `images`, [m], in no order, and their embeddings, [m, N, Co] float32, unit-norm.
        """
        for segment in self.segments:
            for start, count in segment.blocks():
                embeddings, ranks = segment.block(start, count)
                yield ranks, embeddings

    def image(self, image_id: ImageId) -> ImageRecord:
        """The image of that id; `"7"` will do for 7, as in an address. Raises UsageError when there is none."""
        return self.images[self.position(image_id)]

    def embeddings(self, image_id: ImageId) -> NDArray[np.float32]:
        """The N embeddings of an image, [N, Co] float32, unit-norm. Raises UsageError for an unknown id."""
        return self.take([self.position(image_id)])[0]

    def take(self, positions: Iterable[int]) -> NDArray[np.float32]:
        """The embeddings of some images, by their places in `images`: [m, N, Co] float32, unit-norm; m at least 1."""
        places = self.places[np.fromiter(positions, np.int64)]
        found = np.empty((len(places), self.info.n_embeddings, self.info.dim), np.float32)
        first = 0
        for segment in self.segments:
            inside = np.flatnonzero((places >= first) & (places < first + len(segment.ranks)))
            if len(inside):
                found[inside] = segment.take(places[inside] - first)
            first += len(segment.ranks)
        return found

    def position(self, image_id: ImageId) -> int:
        """The place of an image in `images`. Raises UsageError for an unknown id."""
        return self.images.position(image_id)

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


def _merged(found: list[Best], k: int) -> Best:
    """The k best of what the segments found for one query."""
    if len(found) == 1:
        return found[0]
    scores = np.concatenate([best.scores for best in found])
    ranks = np.concatenate([best.ranks for best in found])
    order = np.lexsort((ranks, -scores))[:k]
    return Best(scores[order], ranks[order], np.concatenate([best.embeddings for best in found])[order])


def _describe(info: MethodInfo) -> str:
    return f"{info.backbone} ({info.weights}, sha256 {info.weights_sha256[:12]}, width {info.dim})"
