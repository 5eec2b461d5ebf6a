"""The rows of an index, read from disk a few at a time.

They are read, not mapped: pages of a map that are touched count as the process's memory, and the system maps a page's
neighbours with it, so that after some hundred queries most of the file would.
Legend: R rows in all, Co joint width, F rows wanted.
"""

import os
import weakref
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from for_model.errors import StoreError
from for_search.index.checked_file import damaged
from for_search.index.flat_engine import widened

_MAX_READ = 1 << 30  # bytes at once; systems read at most 2 GiB


class RowsFile:
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
        """The `count` rows from `start`, [count, Co] float32."""
        return widened(self._read(start, count).view("<f2").reshape(count, self.dim))

    def at(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The float16 values of some rows, in ascending order: [F, 2 * Co] bytes."""
        if not len(rows):
            return np.empty((0, 2 * self.dim), np.uint8)
        breaks = np.flatnonzero(np.diff(rows) != 1) + 1
        firsts = rows[np.concatenate([[0], breaks])]
        counts = np.diff(np.concatenate([[0], breaks, [len(rows)]]))
        runs = list(zip(firsts.tolist(), counts.tolist(), strict=True))
        if hasattr(os, "posix_fadvise"):
            # What isn't in the page cache comes from disk in parallel, instead of one read after the other.
            for first, count in runs:
                start, n_bytes = self._start + first * 2 * self.dim, count * 2 * self.dim
                os.posix_fadvise(self._descriptor, start, n_bytes, os.POSIX_FADV_WILLNEED)
        return np.concatenate([self._read(first, count) for first, count in runs]).reshape(len(rows), 2 * self.dim)

    def _read(self, first: int, count: int) -> NDArray[np.uint8]:
        start, n_bytes = self._start + first * 2 * self.dim, count * 2 * self.dim
        parts = []
        while n_bytes:
            part = os.pread(self._descriptor, min(n_bytes, _MAX_READ), start)
            if not part:
                raise StoreError(f"{self.path} has become shorter: build the index again")
            parts.append(part)
            start, n_bytes = start + len(part), n_bytes - len(part)
        return np.frombuffer(parts[0] if len(parts) == 1 else b"".join(parts), dtype=np.uint8)
