"""The rows of an index, read from disk a few at a time.

They are read, not mapped: pages of a map that are touched count as the process's memory, and the system maps a page's
neighbours with it, so that after some hundred queries most of the file would.
Legend: R rows in all, Co joint width, F rows wanted.
"""

import os
import weakref
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from for_model.errors import StoreError
from for_search.index.checked_file import damaged
from for_search.index.flat_engine import widened

_MAX_READ = 1 << 30  # bytes at once; systems read at most 2 GiB


class ReadableRows(Protocol):
    """Rows of embeddings, wherever they are."""

    n_rows: int
    dim: int

    def block(self, start: int, count: int) -> NDArray[np.float32]:
        """The `count` rows from `start`, [count, Co] float32."""
        ...

    def at(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The float16 values of some rows, in ascending order: [F, 2 * Co] bytes."""
        ...


def values_at(rows: ReadableRows, chosen: NDArray[np.int64]) -> NDArray[np.float32]:
    """Some rows, in ascending order: [F, Co] float32."""
    return widened(rows.at(chosen).view("<f2"))


def rows_of(images: NDArray[np.int64], n_embeddings: int) -> NDArray[np.int64]:
    """All rows of some images [B], [B, N]."""
    return images[:, None] * n_embeddings + np.arange(n_embeddings)


class RowsInMemory(ReadableRows):
    """Rows that aren't in a file. values: [R, Co] float16."""

    def __init__(self, values: NDArray[np.float16]) -> None:
        self._values = values
        self.n_rows, self.dim = values.shape

    def block(self, start: int, count: int) -> NDArray[np.float32]:
        return widened(self._values[start : start + count])

    def at(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        return self._values[rows].view(np.uint8)


class RowsFile(ReadableRows):
    """The file that `FlatEngine` writes: a header, and then R rows of Co float16. Threads may share one.

    Raises StoreError when it can't be opened or is too short.
    """

    def __init__(self, path: Path, n_rows: int, dim: int) -> None:
        self.path, self.n_rows, self.dim = path, n_rows, dim
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise damaged(path, error.strerror or str(error)) from error
        weakref.finalize(self, os.close, self._descriptor)
        self._start = os.fstat(self._descriptor).st_size - n_rows * 2 * dim
        if self._start < 0:
            raise damaged(path, f"it is too short for {n_rows} rows of width {dim}")

    def block(self, start: int, count: int) -> NDArray[np.float32]:
        values = np.empty((count, 2 * self.dim), np.uint8)
        self._read(start, values)
        return widened(values.view("<f2"))

    def at(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        values = np.empty((len(rows), 2 * self.dim), np.uint8)
        # Rows that follow one another are read at once.
        starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1).tolist()
        runs = list(zip(starts, [*starts[1:], len(rows)], rows[starts].tolist(), strict=True))
        missing = runs if not hasattr(os, "RWF_NOWAIT") else self._not_cached(runs, values)
        if hasattr(os, "posix_fadvise"):
            # What isn't in the page cache comes from disk in parallel, instead of one read after the other.
            for start, end, first in missing:
                place, n_bytes = self._place(first), (end - start) * 2 * self.dim
                os.posix_fadvise(self._descriptor, place, n_bytes, os.POSIX_FADV_WILLNEED)
        for start, end, first in missing:
            self._read(first, values[start:end])
        return values

    def _place(self, row: int) -> int:
        return self._start + row * 2 * self.dim

    def _not_cached(self, runs: list[tuple[int, int, int]], values: NDArray[np.uint8]) -> list[tuple[int, int, int]]:
        """Fill `values` with the runs that are in the page cache, and return the others."""
        missing, row_bytes, descriptor, into = [], 2 * self.dim, self._descriptor, values.reshape(-1).data
        for run in runs:
            start, end, first = run
            part = into[start * row_bytes : end * row_bytes]
            try:
                done = os.preadv(descriptor, (part,), self._start + first * row_bytes, os.RWF_NOWAIT) == len(part)
            except OSError:  # it isn't cached, or this file system can't tell
                done = False
            if not done:
                missing.append(run)
        return missing

    def _read(self, first: int, values: NDArray[np.uint8]) -> None:
        """Fill `values`, [count, 2 * Co], with the rows from `first`."""
        place, rest = self._place(first), values.reshape(-1).data
        while len(rest):
            n_read = os.preadv(self._descriptor, [rest[:_MAX_READ]], place)
            if not n_read:
                raise StoreError(f"{self.path} has become shorter: build the index again")
            place, rest = place + n_read, rest[n_read:]
