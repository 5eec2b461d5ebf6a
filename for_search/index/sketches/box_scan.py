"""Which points lie in which boxes, by a scan of the columns that the boxes bound.

A box bounds a few of D numbers of 8 bits. On one column that is a subtraction and a comparison, for a value v lies in
low..high if v - low, which wraps around, is at most high - low. The same loop is there in numpy and, where numba is
installed, compiled, which takes two thirds to a quarter of the time (docs/refine.md); trees would be faster for single
boxes, but have to be kept for each subset of the columns that a box may bound (`tests/benchmarks/boxes.py`).

Legend: X boxes, D columns, m points of a block.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
_AT_ONCE = 1 << 12  # points of a column that the compiled loop works on: they stay in the processor's first cache


@dataclass(frozen=True, eq=False)
class BoxBounds:
    """Boxes of the members of an ensemble, one after the other.

    member: [X] int64, whose each is, ascending from 0.
    first: [X + 1] int64, where each box's bounds begin among those that follow.
    column, low, width: of each bound: the column [.] int64, the least value, and the largest minus the least.
    """

    member: NDArray[np.int64]
    first: NDArray[np.int64]
    column: NDArray[np.int64]
    low: Bytes
    width: Bytes


def box_bounds(
    members: Iterable[Iterable[tuple[NDArray[np.intp], NDArray[np.floating], NDArray[np.floating]]]],
) -> BoxBounds:
    """The bounds of boxes; a box that no point of whole numbers lies in is left out.

    members: of each, its boxes: the columns that a box bounds, and the least and the largest value in each.
    """
    member, first, column, low, width = [], [0], [], [], []
    for number, boxes in enumerate(members):
        for columns, least, largest in boxes:
            lows = np.clip(np.ceil(least), 0, 255).astype(int)
            highs = np.clip(np.floor(largest), 0, 255).astype(int)
            if (np.ceil(least) > 255).any() or (np.floor(largest) < 0).any() or (highs < lows).any():
                continue
            member.append(number)
            column += columns.tolist()
            low += lows.tolist()
            width += (highs - lows).tolist()
            first.append(len(column))
    whole, byte = np.int64, np.uint8
    return BoxBounds(
        np.array(member, whole),
        np.array(first, whole),
        np.array(column, whole),
        np.array(low, byte),
        np.array(width, byte),
    )


def count_members(blocks: Sequence[Bytes], bounds: BoxBounds, compiled: bool | None = None) -> list[Bytes]:
    """How many members hold each point in one of their boxes: blocks [D, m] -> [m] uint8 each, at most 255.

    compiled: whether to use numba; None to use it where it is installed. Both give the same counts.
    """
    scan = _compiled_scan() if compiled is None or compiled else None
    if scan is None:
        if compiled:
            raise ImportError("numba isn't installed")
        scan = _numpy_scan

    def counted(block: Bytes) -> Bytes:
        counts = np.zeros(block.shape[1], np.uint8)
        if len(bounds.member):
            scan(block, bounds.member, bounds.first, bounds.column, bounds.low, bounds.width, counts)
        return counts

    with ThreadPoolExecutor(min(8, len(os.sched_getaffinity(0))), thread_name_prefix="boxes") as pool:
        return list(pool.map(counted, blocks))


def _numpy_scan(
    block: Bytes,
    member: NDArray[np.int64],
    first: NDArray[np.int64],
    column: NDArray[np.int64],
    low: Bytes,
    width: Bytes,
    counts: Bytes,
) -> None:
    """Add to `counts`, [m], one for each member that holds a point of `block`, [D, m]."""
    size = block.shape[1]
    shifted, within, inside, held = np.empty(size, np.uint8), *(np.empty(size, bool) for _ in range(3))
    last = np.append(member[1:] != member[:-1], True)
    begins = np.append(True, last[:-1])
    for box in range(len(member)):
        for bound in range(first[box], first[box + 1]):
            np.subtract(block[column[bound]], low[bound], out=shifted)
            if bound == first[box]:
                np.less_equal(shifted, width[bound], out=inside)
            else:
                np.less_equal(shifted, width[bound], out=within)
                np.logical_and(inside, within, out=inside)
        if begins[box]:
            held[:] = inside
        else:
            np.logical_or(held, inside, out=held)
        if last[box]:
            counts += held.view(np.uint8)


def _looped_scan(
    block: Bytes,
    member: NDArray[np.int64],
    first: NDArray[np.int64],
    column: NDArray[np.int64],
    low: Bytes,
    width: Bytes,
    counts: Bytes,
) -> None:
    """The same as `_numpy_scan` as plain loops, for numba to compile."""
    inside, held = np.empty(_AT_ONCE, np.uint8), np.zeros(_AT_ONCE, np.uint8)
    for start in range(0, block.shape[1], _AT_ONCE):
        size = min(_AT_ONCE, block.shape[1] - start)
        for box in range(len(member)):
            for bound in range(first[box], first[box + 1]):
                values, least, extent = block[column[bound], start : start + size], low[bound], width[bound]
                if bound == first[box]:
                    for i in range(size):
                        inside[i] = np.uint8(np.uint8(values[i] - least) <= extent)
                else:
                    for i in range(size):
                        inside[i] &= np.uint8(np.uint8(values[i] - least) <= extent)
            for i in range(size):
                held[i] |= inside[i]
            if box + 1 == len(member) or member[box + 1] != member[box]:
                for i in range(size):
                    counts[start + i] += held[i]
                    held[i] = 0


@cache
def _compiled_scan() -> Callable[..., None] | None:
    """The compiled loop, which takes a second or two to compile, once for a machine; None without numba."""
    try:
        import numba
    except ImportError:
        return None
    compiled: Any = numba.njit(nogil=True, cache=True)(_looped_scan)
    return compiled
