"""Rows of an image that are alike: a search chooses them together, as a group.

Neighbouring parts of an image often show the same thing, and their embeddings hardly differ. A search then reads as
many times less as a group has rows, and the same number of bits tells a mean more exactly than it would a row.

An image's first group forms around its row 0. The row farthest from all that groups have formed around is the next,
until none is farther than `alike`; each row belongs to the nearest (farthest-first traversal, Gonzalez 1985). With an
`alike` of 0 every row is a group of its own: what helps depends on the rows, see `calibration.alike_to_take`.

The best row of a group scores higher than its mean: of n normal deviations the largest is near sqrt(2 ln n) standard
deviations. So much times the rows' distance from the mean (root mean square) is a group's reach. It is one more
dimension of the mean, and what it is multiplied by is the standard deviation of all rows' scores for the query, as the
rows' variance is 1.

Rows are kept in an order in which those of a group follow one another; where a row comes in it is its place. Those of
an image stay together: the row at place p is one of image p // N.
Legend: B images, N rows an image, D dimensions, R rows, G groups, F groups chosen, P places.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from for_search.index.compact.array_file import read_arrays, write_arrays

_AT_ONCE = 1 << 24  # products of pairs of rows


@dataclass(frozen=True)
class Groups:
    """The groups of R rows, and the order of these.

    n_embeddings: N.
    order: [R] uint8, or wider where N needs it: which of its image's rows lies at each place.
    starts: [G + 1] int64: the place where each group begins, and R.
    """

    n_embeddings: int
    order: NDArray[np.unsignedinteger]
    starts: NDArray[np.int64]

    @classmethod
    def none_yet(cls, n_embeddings: int) -> "Groups":
        return cls(n_embeddings, np.empty(0, np.min_scalar_type(n_embeddings - 1)), np.zeros(1, np.int64))

    @property
    def n_rows(self) -> int:
        return len(self.order)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def with_more(
        self, rows: NDArray[np.float32], alike: float
    ) -> tuple["Groups", NDArray[np.float32], NDArray[np.float32]]:
        """These and the groups of the next rows [m, D], of whole images; with these rows in their order, and the new
        groups' means, with their reach in the first dimension.

        rows: their variance is about 1, the first dimension is of zeros.
        alike: the greatest squared distance of a row from the one that its group formed around.
        """
        order, starts = _grouped(rows.reshape(-1, self.n_embeddings, rows.shape[1]), alike)
        in_order = rows[(np.arange(len(order))[:, None] * self.n_embeddings + order).reshape(-1)]
        sizes = np.diff(starts, append=len(rows))
        means = np.add.reduceat(in_order, starts, axis=0) / sizes[:, None]
        squares = ((in_order - np.repeat(means, sizes, axis=0)) ** 2).sum(axis=1)
        means[:, 0] = np.sqrt(2 * np.log(sizes) * np.add.reduceat(squares, starts) / sizes)
        more = Groups(
            self.n_embeddings,
            np.concatenate([self.order, order.reshape(-1).astype(self.order.dtype)]),
            np.concatenate([self.starts, self.n_rows + starts[1:], [self.n_rows + len(rows)]]),
        )
        return more, in_order, means.astype(np.float32)

    def write(self, path: Path) -> None:
        """Write them as [2, R]: the order, and whether a group begins at each place."""
        begins = np.zeros_like(self.order)
        begins[self.starts[:-1]] = 1
        write_arrays(path, np.stack([self.order, begins]))

    @classmethod
    def read(cls, path: Path, count: int, n_embeddings: int) -> "Groups | None":
        """The first `count` groups in a file; None when it isn't there, can't be read or hasn't so many."""
        arrays = read_arrays(path, cls.none_yet(n_embeddings).order.dtype.type)
        if arrays is None or len(arrays[0]) != 2 or arrays[0].shape[1] % n_embeddings:
            return None
        order, begins = arrays[0]
        starts = np.append(np.flatnonzero(begins), len(begins))[: count + 1]
        if len(starts) <= count or starts[0] or starts[-1] % n_embeddings or order.max(initial=0) >= n_embeddings:
            return None
        return cls(n_embeddings, order[: starts[-1]], starts)

    def places_of(self, groups: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The places [P] of the rows of some groups [F], group after group; and where each begins among them, [F]."""
        starts = self.starts[groups]
        sizes = self.starts[groups + 1] - starts
        ends = np.cumsum(sizes)
        return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - ends + sizes, sizes), ends - sizes

    def for_rows(self, of_groups: NDArray[np.float32], first: int = 0) -> NDArray[np.float32]:
        """What the groups from `first` on have, [m, D], for each of their rows, [P, D], in the order of rows."""
        return np.repeat(of_groups, np.diff(self.starts[first:]), axis=0)

    def rows_at(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        return places - places % self.n_embeddings + self.order[places]

    def group_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The group of each of some rows [P]."""
        images, which = np.unique(rows // self.n_embeddings, return_inverse=True)
        place_of = np.argsort(self.order.reshape(-1, self.n_embeddings)[images], axis=1)  # of each of their rows
        places = images[which] * self.n_embeddings + place_of[which, rows % self.n_embeddings]
        return np.searchsorted(self.starts, places, side="right") - 1


def _grouped(images: NDArray[np.float32], alike: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The order of each image's rows [B, N], and where groups begin among all, [G]."""
    if not alike:
        return np.tile(np.arange(images.shape[1]), (len(images), 1)), np.arange(images.shape[0] * images.shape[1])
    step = max(1, _AT_ONCE // images.shape[1] ** 2)
    labels = np.concatenate([_labels(images[start : start + step], alike) for start in range(0, len(images), step)])
    order = np.argsort(labels, axis=1, kind="stable")
    begins = np.diff(np.take_along_axis(labels, order, axis=1), axis=1, prepend=-1) != 0
    return order, np.flatnonzero(begins)


def _labels(images: NDArray[np.float32], alike: float) -> NDArray[np.int64]:
    """The group of each row within its image, [B, N], of images [B, N, D]."""
    images = images - images.mean(axis=1, keepdims=True)  # far from zero, squares would be too large to tell distances
    products = images @ images.transpose(0, 2, 1)
    squares = np.einsum("bnn->bn", products)
    labels = np.zeros(images.shape[:2], np.int64)
    distances = np.full(images.shape[:2], np.inf, np.float32)  # from the nearest row that a group formed around
    waiting, farthest = np.arange(len(images)), np.zeros(len(images), np.int64)
    for group in range(images.shape[1]):
        from_this = squares[waiting] - 2 * products[waiting, farthest] + squares[waiting, farthest, None]
        nearer = from_this < distances[waiting]
        labels[waiting] = np.where(nearer, group, labels[waiting])
        distances[waiting] = np.where(nearer, from_this, distances[waiting])
        farthest = distances[waiting].argmax(axis=1)
        differ = distances[waiting, farthest] > alike
        waiting, farthest = waiting[differ], farthest[differ]
        if not len(waiting):
            break
    return labels
