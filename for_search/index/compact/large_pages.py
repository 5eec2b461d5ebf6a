"""Memory in pages of 2 MiB instead of 4 KiB, for what is read in large part, or all over the place.

A processor keeps the places of some thousand pages at hand, and reads ahead within one page only. The first code of 6
million rows is 23,000 pages of 4 KiB; a pass over it takes half of the time in large ones (docs/scale.md). NumPy asks
for them itself when it makes a large array, FAISS doesn't.
"""

import ctypes
import sys

_LARGE = 1 << 21
_COLLAPSE = 25  # MADV_COLLAPSE, of Linux 6.1 and later


def use_large_pages(address: int, n_bytes: int) -> None:
    """Put the memory from `address` into large pages where the system can; its content stays, and so does its place."""
    if not sys.platform.startswith("linux"):
        return
    first, last = -(-address // _LARGE) * _LARGE, (address + n_bytes) // _LARGE * _LARGE
    if last > first:
        # An older system says that it doesn't know the advice, a full one that it has none: slower, not wrong.
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _COLLAPSE)
