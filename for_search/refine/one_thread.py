"""Matrix products by one thread: those that learning takes are so small that threads wait for one another, on a busy
machine ten times as long as the products take."""

import contextlib
from collections.abc import Iterator
from functools import cache

from threadpoolctl import ThreadpoolController


@cache
def _controller() -> ThreadpoolController:
    import scipy.optimize  # noqa: F401 -- it brings a library of its own, which must be there to be found

    return ThreadpoolController()


@contextlib.contextmanager
def products_by_one_thread() -> Iterator[None]:
    """Let NumPy multiply matrices in the calling thread. It holds for all threads of the program until the end."""
    with _controller().limit(limits=1, user_api="blas"):
        yield
