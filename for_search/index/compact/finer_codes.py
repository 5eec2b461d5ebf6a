"""Codes that round: 8 bits for each of the first dimensions of a vector, 4 for each of the others.

Each dimension is rounded to even steps between the least and the greatest value of a sample. What rounding adds to a
score grows with the steps, so that the dimensions of largest variance would make most of the error; with 8 bits they
make next to none. Steps that leave out the rare large values would be smaller, but those are what the best rows have:
measured, it finds less.
Legend: V vectors coded, D dimensions in descending order of variance, W of them in 8 bits, B bytes of a code, F vectors
looked at.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from for_search.index.compact.array_file import read_arrays, write_arrays

_AT_ONCE = 1024  # vectors scored, which a processor's own memory holds


@dataclass(frozen=True)
class FinerCodes:
    """The codes of V vectors, in memory.

    ranges: [2, D] float32, the value that a code of 0 stands for, and the step from one to the next.
    codes: [V, B] uint8: the dimensions of 8 bits, and then two of 4 to a byte, the earlier one in its lower half.
    """

    ranges: NDArray[np.float32]
    codes: NDArray[np.uint8]

    @classmethod
    def train(cls, sample: NDArray[np.float32], n_wide: int) -> "FinerCodes":
        """Steps for vectors like those of a sample [m, D]; there is no code yet. n_wide: W; D - W has to be even."""
        lowest, highest = sample.min(axis=0), sample.max(axis=0)
        n_wide = min(n_wide, sample.shape[1])
        steps = (highest - lowest) / _levels(sample.shape[1], n_wide)
        codes = np.empty((0, (sample.shape[1] + n_wide) // 2), np.uint8)
        return cls(np.stack([lowest, np.where(steps > 0, steps, 1)]), codes)

    @property
    def _n_wide(self) -> int:
        return 2 * self.codes.shape[1] - self.ranges.shape[1]

    def resized(self, count: int) -> "FinerCodes":
        """The same with room for `count` codes: those that are there stay, others are yet to be written."""
        if len(self.codes) == count:
            return self
        codes = np.empty((count, self.codes.shape[1]), np.uint8)
        kept = min(count, len(self.codes))
        codes[:kept] = self.codes[:kept]
        return FinerCodes(self.ranges, codes)

    def encode(self, start: int, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Write the codes of some vectors [m, D] to the places from `start`; what they stand for, [m, D]."""
        lowest, steps = self.ranges
        rounded = np.clip(np.rint((vectors - lowest) / steps), 0, _levels(len(steps), self._n_wide))
        levels = rounded.astype(np.uint8)
        wide, narrow = levels[:, : self._n_wide], levels[:, self._n_wide :]
        half = narrow.shape[1] // 2
        into = self.codes[start : start + len(vectors)]
        into[:, : wide.shape[1]] = wide
        into[:, wide.shape[1] :] = narrow[:, :half] | (narrow[:, half:] << 4)
        return lowest + rounded * steps

    def scores(self, query: NDArray[np.float32], chosen: NDArray[np.int64]) -> NDArray[np.float32]:
        """What the codes of some vectors [F] say of their inner products with a query [D], up to a constant: [F]."""
        weights = query * self.ranges[1]
        n_wide = self._n_wide
        earlier, later = weights[n_wide:].reshape(2, -1)  # of the dimensions of 4 bits
        # A byte of two is the earlier one and 16 times the later: counted as that, and the later one put right after.
        of_bytes, of_upper = np.concatenate([weights[:n_wide], earlier]), later - 16 * earlier
        scores = np.empty(len(chosen), np.float32)
        for start in range(0, len(chosen), _AT_ONCE):
            codes = self.codes.take(chosen[start : start + _AT_ONCE], axis=0)
            upper = codes[:, n_wide:] >> 4
            # Not a product of NumPy: its threads would cost more than they help.
            both = zip((codes, upper), (of_bytes, of_upper), strict=True)
            part = [np.einsum("fd,d->f", values.astype(np.float32), factors) for values, factors in both]
            scores[start : start + _AT_ONCE] = part[0] + part[1]
        return scores

    def write(self, path: Path, count: int) -> None:
        """Write the steps, and the first `count` codes, one array after the other."""
        write_arrays(path, self.ranges, self.codes[:count])

    @classmethod
    def read(cls, path: Path, count: int, dims: Sequence[int], n_wide: int) -> "FinerCodes | None":
        """Those in a file; None when it isn't there, can't be read or hasn't `count` codes of W and one of the D."""
        arrays = read_arrays(path, np.float32, np.uint8)
        if arrays is None:
            return None
        ranges, codes = arrays
        dim = ranges.shape[1]
        if len(ranges) != 2 or dim not in dims or codes.shape[1] != (dim + min(n_wide, dim)) // 2 or len(codes) < count:
            return None
        return cls(ranges, codes)


def _levels(dim: int, n_wide: int) -> NDArray[np.float32]:
    """The largest code of each dimension, [D]."""
    return np.where(np.arange(dim) < n_wide, 255, 15).astype(np.float32)
