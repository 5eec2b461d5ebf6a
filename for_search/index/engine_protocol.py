"""A search engine: what finds the rows nearest to a query, and what the index relies on.

Legend: Q queries, Co joint width, F rows fetched for a query.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from for_model.errors import StoreError


class VectorIndex(Protocol):
    """An engine that finds the rows nearest to a query; whatever it keeps on disk is files of the index's folder."""

    kind: ClassVar[str]
    file_names: ClassVar[tuple[str, ...]]

    @classmethod
    def build(cls, blocks: Iterable[NDArray[np.float16]], n_rows: int, dim: int, folder: Path) -> None:
        """Write the engine's files to `folder`. blocks: [m, Co] float16 each, n_rows rows in all, in row order."""
        ...

    @classmethod
    def open(cls, folder: Path, n_rows: int, dim: int) -> "VectorIndex":
        """Open the engine's files. Raises StoreError when they don't hold n_rows rows of width dim."""
        ...

    def search_rows(self, queries: NDArray[np.float32], n_rows: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The rows with the largest inner product.

        queries: [Q, Co] float32. n_rows: F, at least 1 and at most the number of rows.
        Returns scores [Q, F] float32, descending, and rows [Q, F] int64, -1 where the engine found no more. Rows of
        equal score come in any order. Safe to call from several threads at once.
        """
        ...

    def rows(self, start: int, count: int) -> NDArray[np.float32]:
        """The rows from `start`, [count, Co] float32. Safe to call from several threads at once."""
        ...


def damaged(path: Path, reason: str) -> StoreError:
    """The error of an index whose file `path` isn't what was written."""
    return StoreError(f"{path} is damaged, {reason}: build the index again")
