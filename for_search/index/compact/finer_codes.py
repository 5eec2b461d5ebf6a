"""The finer code of a row: 8 bits for each of the dimensions in which rows differ most, 4 for each of the others.

Each dimension is rounded to even steps between the least and the greatest value of a sample. What rounding adds to a
score grows with the steps, so that the first 32 of 128 dimensions, which hold two thirds of the rows' variance in made
data, would make two thirds of the error; with 8 bits they make next to none. Steps that leave out the rare large
values would be smaller, but those are what the best rows have: measured, it finds less.
Legend: R rows, D dimensions in descending order of variance, B bytes of a code, F rows looked at.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_WIDE = 32  # dimensions of 8 bits
_AT_ONCE = 1024  # rows scored, which a processor's own memory holds


@dataclass(frozen=True)
class FinerCodes:
    """The codes of R rows, in memory.

    ranges: [2, D] float32, the value that a code of 0 stands for, and the step from one to the next.
    codes: [R, B] uint8: the dimensions of 8 bits, and then two of 4 to a byte, the earlier one in its lower half.
    """

    ranges: NDArray[np.float32]
    codes: NDArray[np.uint8]

    @classmethod
    def train(cls, sample: NDArray[np.float32], n_rows: int) -> "FinerCodes":
        """Steps for rows like those of a sample [m, D], and room for the codes of `n_rows` rows."""
        lowest, highest = sample.min(axis=0), sample.max(axis=0)
        steps = (highest - lowest) / _levels(sample.shape[1])
        codes = np.empty((n_rows, code_bytes(sample.shape[1])), np.uint8)
        return cls(np.stack([lowest, np.where(steps > 0, steps, 1)]), codes)

    def resized(self, n_rows: int) -> "FinerCodes":
        """The same with room for `n_rows` rows: those that are there stay, others are yet to be written."""
        if len(self.codes) == n_rows:
            return self
        codes = np.empty((n_rows, self.codes.shape[1]), np.uint8)
        kept = min(n_rows, len(self.codes))
        codes[:kept] = self.codes[:kept]
        return FinerCodes(self.ranges, codes)

    def encode(self, start: int, projected: NDArray[np.float32]) -> None:
        """Write the codes of the rows from `start`, [m, D], into their places."""
        lowest, steps = self.ranges
        levels = np.clip(np.rint((projected - lowest) / steps), 0, _levels(len(steps))).astype(np.uint8)
        wide, narrow = levels[:, :_WIDE], levels[:, _WIDE:]
        half = narrow.shape[1] // 2
        into = self.codes[start : start + len(projected)]
        into[:, : wide.shape[1]] = wide
        into[:, wide.shape[1] :] = narrow[:, :half] | (narrow[:, half:] << 4)

    def scores(self, query: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """What the codes of some rows [F] say of their inner products with a query [D], up to a constant: [F]."""
        weights = query * self.ranges[1]
        n_wide = min(_WIDE, len(weights))
        earlier, later = weights[n_wide:].reshape(2, -1)  # of the dimensions of 4 bits
        # A byte of two is the earlier one and 16 times the later: counted as that, and the later one put right after.
        of_bytes, of_upper = np.concatenate([weights[:n_wide], earlier]), later - 16 * earlier
        scores = np.empty(len(rows), np.float32)
        for start in range(0, len(rows), _AT_ONCE):
            codes = self.codes.take(rows[start : start + _AT_ONCE], axis=0)
            upper = codes[:, n_wide:] >> 4
            # Not a product of NumPy: its threads would cost more than they help.
            both = zip((codes, upper), (of_bytes, of_upper), strict=True)
            part = [np.einsum("fd,d->f", values.astype(np.float32), factors) for values, factors in both]
            scores[start : start + _AT_ONCE] = part[0] + part[1]
        return scores


def code_bytes(dim: int) -> int:
    """B."""
    n_wide = min(_WIDE, dim)
    return n_wide + (dim - n_wide) // 2


def _levels(dim: int) -> NDArray[np.float32]:
    """The largest code of each dimension, [D]."""
    return np.where(np.arange(dim) < _WIDE, 255, 15).astype(np.float32)
