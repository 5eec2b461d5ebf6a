"""Fewer dimensions for rows and queries, such that their inner products change as little as possible.

A query has a mean square weight in each direction: the second moment of queries, S [Co, Co]. The expected square of
what an error e of a row does to its score is then e' S e: the squared length of e in the space S^(1/2) x. So there rows
are projected onto their principal directions and coded by least squares, and queries go into the space S^(-1/2) q, in
which all directions weigh the same. (LeanVec does this for queries that aren't distributed as rows are.)

For texts over images it matters. A direction that all texts share tells images apart a little, and counts in every
score; by the rows' own variance it would be among the last to be kept (measured: docs/scale.md).
Legend: R rows, Co joint width, D dimensions kept, T texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from for_search.index.compact.array_file import read_arrays, write_arrays

_EVEN = 0.2  # of S: all directions alike, as a sample of queries doesn't show every direction that others have


@dataclass(frozen=True)
class Projection:
    """Two linear maps, which shift nothing: a shift of the queries would add to every row's score.

    of_rows, of_queries: [Co, D] float32; columns by descending variance of the rows, then of zeros. The first is of
        zeros too: it is left for the reach of groups (see `groups`). The products are those of rows and queries, as far
        as D - 1 dimensions tell them.
    variances: [D] float32, of the rows; their sum is 1.
    """

    of_rows: NDArray[np.float32]
    of_queries: NDArray[np.float32]
    variances: NDArray[np.float32]

    def rows(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Rows [m, Co] as they are coded, [m, D]."""
        return rows @ self.of_rows

    def queries(self, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        """Queries [Q, Co] as they are compared with codes, [Q, D]: the first is the standard deviation of the rows'
        scores."""
        projected: NDArray[np.float32] = queries @ self.of_queries
        projected[:, 0] = np.sqrt(projected**2 @ self.variances)
        return projected

    def write(self, path: Path) -> None:
        write_arrays(path, np.concatenate([self.of_rows, self.of_queries, self.variances[None]]))

    @classmethod
    def read(cls, path: Path, dim: int) -> "Projection | None":
        """That in a file; None when it isn't there, can't be read or isn't of that width."""
        arrays = read_arrays(path, np.float32)
        if arrays is None or len(arrays[0]) != 2 * dim + 1:
            return None
        of_rows, of_queries, variances = np.split(arrays[0], [dim, 2 * dim])
        return cls(of_rows, of_queries, variances[0])


def train_projection(rows: NDArray[np.float32], texts: NDArray[np.float32] | None, widths: Sequence[int]) -> Projection:
    """The projection onto the dimensions in which rows differ most.

    rows: [R, Co], a sample.
    texts: [T, Co], texts as they will be searched for. Queries are taken to be these and rows, half and half; where it
        is None or empty, all directions weigh the same.
    widths: ascending; D is the first that holds all dimensions that there are and one more, or else the last.
    """
    dim = rows.shape[1]
    moment = np.eye(dim)
    if texts is not None and len(texts):
        moment = (1 - _EVEN) * (_moment(texts) + _moment(rows)) / 2 + _EVEN * moment
    weights, directions = np.linalg.eigh(moment)
    root = (directions * np.sqrt(weights)) @ directions.T  # S^(1/2)
    inverse = (directions / np.sqrt(weights)) @ directions.T
    covariance = np.cov(rows.T.astype(np.float64)).reshape(dim, dim) if len(rows) > 1 else np.eye(dim)
    variances, principal = np.linalg.eigh(root @ covariance @ root)
    kept = principal[:, ::-1][:, : widths[-1] - 1]
    of_kept = variances[::-1][: widths[-1] - 1].clip(min=0)
    total = of_kept.sum() or 1.0
    filled = next(width for width in widths if width > kept.shape[1]) - 1 - kept.shape[1]
    sides = (root @ kept / np.sqrt(total), inverse @ kept * np.sqrt(total), of_kept[None] / total)
    of_rows, of_queries, scaled = (np.pad(side, ((0, 0), (1, filled))).astype(np.float32) for side in sides)
    return Projection(of_rows, of_queries, scaled[0])


def _moment(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """The second moment of the directions of some vectors, [Co, Co], with a trace of Co."""
    wide = values.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    wide = wide / np.where(lengths > 0, lengths, 1)
    return wide.T @ wide * (values.shape[1] / len(values))
