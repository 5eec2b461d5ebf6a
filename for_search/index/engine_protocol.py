"""A search engine: what finds the rows nearest to a query, and what the index relies on.

Legend: Q queries, Co joint width, R rows in all, F rows fetched for a query.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray


class Engine(Protocol):
    """Finds the rows with the largest inner products; whatever it keeps on disk is files of a folder of its own.

    `SearchIndex` gives exact answers because of what every engine promises here, and
    `tests/for_search/index/test_engines.py` checks it for each engine of the registry:

    - Rows are kept as they are: the float16 values given to `build` come back from `rows`, bit for bit.
    - A score is the inner product of the float32 query and the row, computed from those values, up to the rounding of
      float32 sums; nothing is left out or approximated.
    - Equal rows have equal scores, to the bit, wherever they lie and however many queries are asked at once. Ties are
      then true ties, which the index breaks by image.
    - `search_rows` returns the best rows: no row that is left out scores higher than the last one returned. Among rows
      that tie with the last one, which of them are returned is open; the index asks for more until the tie is complete.
    - Searching changes nothing, so several threads may search one engine at once.

    kind: its name in the registry, which the index's manifest records.
    file_names: the files that it writes to the segment's folder, all of them and no others. The index compares their
        first MiB with what was written before `open`, and all of their bytes before the first search.
    """

    kind: ClassVar[str]
    file_names: ClassVar[tuple[str, ...]]

    @classmethod
    def build(cls, blocks: Iterable[NDArray[np.float16]], n_rows: int, dim: int, folder: Path) -> None:
        """Write the engine's files.

        blocks: [m, Co] float16 each, `n_rows` rows in all, in row order; read once, so that they never lie in memory
            all together.
        n_rows: R, at least 1.
        dim: Co.
        folder: an empty folder.

        The same rows give the same bytes. Raises StoreError, or OSError, when the files can't be written.
        """
        ...

    @classmethod
    def open(cls, folder: Path, n_rows: int, dim: int) -> "Engine":
        """Open the engine's files.

        Raises StoreError, in one line that names the file, when they are missing, can't be read, or don't hold `n_rows`
        rows of width `dim`.
        """
        ...

    def search_rows(self, queries: NDArray[np.float32], n_rows: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The rows with the largest inner products.

        queries: [Q, Co] float32, finite, of any length; Q is at least 1.
        n_rows: F, at least 1 and at most R.

        Returns scores [Q, F] float32, descending, and rows [Q, F] int64, each row at most once for a query. An engine
        that finds fewer than F rows ends with rows of -1, whose scores mean nothing: the index then knows that there
        are no more. Rows of equal score come in any order.
        """
        ...

    def rows(self, start: int, count: int) -> NDArray[np.float32]:
        """The `count` rows from `start`, [count, Co] float32, an array of its own that the caller may change."""
        ...
