"""A search engine: what finds the rows, or the images, nearest to a query, and what the index relies on.

Legend: Q queries, Co joint width, R rows in all, N rows an image, S images in all, F rows fetched for a query.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


def no_texts() -> None:
    """Gives no texts to build with."""
    return None


@dataclass(frozen=True)
class BuildOptions:
    """What a build is asked for beyond the rows; an exact engine has no use for any of it.

    n_embeddings: N, the rows of an image, which follow one another.
    recall: the share of a query's best 50 images that an approximate engine is to find, in 0..1.
    texts: gives [T, Co] float32, texts as they will be searched for, to make codes and measure the recall with, or None
        if none are at hand. Asked only by an engine that has a use for them, as it may have to load a text encoder.
    partial: a folder for what a build that is killed leaves to the next one with the same rows and options, which
        then goes on from there; None to start from the beginning.
    url: where a server listens, for an engine that keeps the rows on one; None for the one of `earlier`.
    quantised: whether such a server is to find images by short copies of their rows, faster and not always all; None
        for what `earlier` does, else exactly.
    earlier: the folder of a segment of the same index and engine, which says how that was built; None if there is none.
    """

    n_embeddings: int = 1
    recall: float = 0.99
    texts: Callable[[], NDArray[np.float32] | None] = no_texts
    partial: Path | None = None
    url: str | None = None
    quantised: bool | None = None
    earlier: Path | None = None


@dataclass(frozen=True)
class Recall:
    """How complete an approximate engine's answers were when it was built, against the exact scan.

    asked: the share of the best `k` images that was asked for.
    mean: the share that was found, over `n_queries` queries that the settings weren't chosen with.
    worst: the least share that any of them found.
    k: how many images each of them asked for.
    queries: what kind of queries they were.
    """

    asked: float
    mean: float
    worst: float
    k: int
    n_queries: int
    queries: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        # Rounded down: 99.97% isn't all of them.
        return f"finds {int(1000 * self.mean) / 10:g}% of the best {self.k}"


class Engine(Protocol):
    """Keeps the rows of images, and finds those with the largest inner products: rows, as a `RowEngine`, or images, as
    an `ImageEngine`. Whatever it keeps on disk is files of a folder of its own. One that is made as a subclass has what
    most of them have: exact answers, files that are read whole, nothing kept elsewhere.

    `SearchIndex` relies on what every engine promises here, and `tests/for_search/index/test_engines.py` checks it for
    each engine of the registry:

    - Rows are kept as they are: the float16 values given to `build` come back from `rows`, bit for bit.
    - A score that a search finds is the inner product of the float32 query and the row, computed from those values, up
      to the rounding of float32 sums; nothing is left out or approximated, whether the engine is exact or not.
    - Equal rows have equal scores, to the bit, wherever they lie and however many queries are asked at once. Ties are
      then true ties, which the index breaks by image.
    - Searching changes nothing, so several threads may search one engine at once.

    kind: its name in the registry, which the index's manifest records.
    small_kind: the engine of segments that hold less than half of an index of this one.
    on_server: whether the rows are kept on a server, and its files only say where.
    file_names: the files that it writes to the segment's folder, all of them and no others. The index compares their
        first MiB with what was written before `open`, and all of their bytes before the first search.
    resumes: whether a build that was killed can go on from `BuildOptions.partial`.
    recall: how complete its answers are; None where they are exact.
    read_in_parts: those of its files of which a search reads little; the index compares their bytes in the background.
    """

    kind: ClassVar[str]
    small_kind: ClassVar[str]
    on_server: ClassVar[bool]
    file_names: ClassVar[tuple[str, ...]]
    resumes: ClassVar[bool]

    @property
    def recall(self) -> Recall | None:
        return None

    @property
    def read_in_parts(self) -> tuple[str, ...]:
        return ()

    @classmethod
    def build(
        cls, blocks: Iterable[NDArray[np.float16]], n_rows: int, dim: int, folder: Path, options: BuildOptions
    ) -> None:
        """Write the engine's files.

        blocks: [m, Co] float16 each, `n_rows` rows in all, in row order; read once, so that they never lie in memory
            all together.
        n_rows: R, at least 1.
        dim: Co.
        folder: an empty folder.
        options: see BuildOptions.

        The same rows and options give the same bytes, but for the name of what is kept elsewhere. Raises StoreError, or
        OSError, when the files can't be written, UsageError when an option is missing or makes no sense.
        """
        ...

    @classmethod
    def open(cls, folder: Path, n_rows: int, dim: int) -> "Engine":
        """Open the engine's files.

        Raises StoreError, in one line that names the file, when they are missing, can't be read, or don't hold `n_rows`
        rows of width `dim`.
        """
        ...

    @classmethod
    def discard(cls, folder: Path) -> None:
        """Called before a folder is removed that may be of this engine, complete or not: remove what it keeps
        elsewhere. Raises nothing; what can't be removed is logged."""
        return None

    def rows(self, start: int, count: int) -> NDArray[np.float32]:
        """The `count` rows from `start`, [count, Co] float32, an array of its own that the caller may change.

        Rows of an image that `drop_images` was called for may be NaN.
        """
        ...


@runtime_checkable
class RowEngine(Engine, Protocol):
    """Finds rows, of which the index makes images.

    - `search_rows` of an exact engine, or when asked for `exact`, returns the best rows: no row that is left out scores
      higher than the last one returned. Among rows that tie with the last one, which of them are returned is open; the
      index asks for more until the tie is complete. An approximate engine may leave a better row out, as seldom as its
      `recall` says; asked for more rows, it looks further, and asked for all it leaves none out.
    """

    def first_fetch(self, k: int) -> int:
        """How many rows to ask for at first, when the k best images are wanted; the index asks for more if need be."""
        ...

    def search_rows(
        self,
        queries: NDArray[np.float32],
        n_rows: int,
        allowed: NDArray[np.bool_] | None = None,
        exact: bool = False,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The rows with the largest inner products.

        queries: [Q, Co] float32, finite, of any length; Q is at least 1.
        n_rows: F, at least 1 and at most R.
        allowed: [R], the rows to choose from; None for all.
        exact: let an approximate engine look at every row.

        Returns scores [Q, F] float32, descending, and rows [Q, F] int64, each row at most once for a query. Where
        fewer than F rows are allowed, they are followed by rows of -1, whose scores mean nothing: the index then knows
        that there are no more. Rows of equal score come in any order.
        """
        ...


@dataclass(frozen=True, eq=False)
class FoundImages:
    """Images that an engine found for one query, the best first.

    scores: [m] float32, of each one's best row.
    images: [m] int64, their numbers in 0..S-1; rows N * i to N * i + N - 1 are image i's.
    embeddings: [m] int64, which of its rows that is, in 0..N-1; the lowest-numbered one that reaches the score.
    """

    scores: NDArray[np.float32]
    images: NDArray[np.int64]
    embeddings: NDArray[np.int64]


@runtime_checkable
class ImageEngine(Engine, Protocol):
    """Finds whole images, as a server does that holds the rows of each together.

    - `search_images` of an exact engine, or when asked for `exact`, returns the k best images and all that tie with the
      last of them. An approximate one may leave one out, as seldom as its `recall` says, but gives k where k exist.
    """

    def check_images(self, n_images: int) -> None:
        """Raise StoreError when fewer images are there than the index has of it."""
        ...

    def search_images(
        self,
        queries: NDArray[np.float32],
        k: int,
        allowed: NDArray[np.bool_] | None = None,
        exact: bool = False,
    ) -> list[FoundImages]:
        """The best images for each query: k of them, or all that are allowed where these are fewer; or more.

        queries: [Q, Co] float32, finite, of any length.
        k: at least 1.
        allowed: [S], the images to choose from; None for all.
        exact: let an approximate engine look at every row.
        """
        ...

    def score_images(self, queries: NDArray[np.float32], start: int, count: int) -> NDArray[np.float32]:
        """The scores [Q, count] float32 of the `count` images from `start`, up to about 1e-3 of the query's length.

        That of an image that isn't there any more is -inf.
        """
        ...

    def images(self, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """The rows of some images, [m, N, Co] float32, as `rows` gives them; NaN for one that isn't there any more."""
        ...

    def drop_images(self, numbers: NDArray[np.int64]) -> None:
        """Remove images that the index doesn't have any more. Raises nothing; what can't be removed is logged."""
        ...
