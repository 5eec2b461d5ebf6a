"""The memory that all images which are being decoded at the same time may take together."""

import contextlib
import threading
from collections.abc import Iterator


class DecodingRoom:
    """Counts what threads take, and lets them wait where it would become too much.

    n_bytes: of memory, for all together; nobody may ask for more.
    """

    def __init__(self, n_bytes: int) -> None:
        self.n_bytes = n_bytes
        self._taken = 0
        self._turn = threading.Lock()
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def taking(self, n_bytes: int) -> Iterator[None]:
        """Wait until there are `n_bytes`, at most those of the room, and hold them."""
        with self._turn, self._changed:  # in turns: small images don't overtake a large one for ever
            self._changed.wait_for(lambda: self._taken + n_bytes <= self.n_bytes)
            self._taken += n_bytes
        try:
            yield
        finally:
            with self._changed:
                self._taken -= n_bytes
                self._changed.notify_all()


ROOM = DecodingRoom(5 * 2**28)  # 1.25 GiB: with the libraries and a small model a process stays below 2 GB
