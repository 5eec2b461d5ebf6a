"""Memory in pages of 2 MiB instead of 4 KiB, for what is read in large part, or all over the place.

A processor keeps the places of some thousand pages at hand, and reads ahead within one page only. The first code of 6
million rows is 29,000 pages of 4 KiB; a pass over it takes half of the time in large ones (docs/scale.md). NumPy asks
for them itself when it makes a large array, FAISS doesn't.
"""

import ctypes
import sys

_LARGE = 1 << 21
_HUGEPAGE = 14  # MADV_HUGEPAGE of Linux


def ask_for_large_pages(address: int, n_bytes: int) -> None:
    """Ask the system for large pages from `address` on. What was written there stays; only what is written from then on
    is sure to be in large pages, as far as there are some."""
    if not sys.platform.startswith("linux"):
        return
    first, last = -(-address // _LARGE) * _LARGE, (address + n_bytes) // _LARGE * _LARGE
    if last > first:
        # A system without them says that it doesn't know the advice: slower, not wrong.
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _HUGEPAGE)
