"""A file whose bytes are compared with those that were written, block by block, before they are relied upon."""

import logging
import os
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import xxhash

from for_model.errors import StoreError

_log = logging.getLogger(__name__)

BLOCK_BYTES = 1 << 20
BUILD_AGAIN = "build the index again, with --rebuild"  # what to do about a damaged one
_DIGITS = 16  # of a block's hash, in hexadecimal
_THREADS = 2  # memory, or the disk, has no more to give


@dataclass(frozen=True)
class FileHashes:
    """What a manifest says of a file.

    n_bytes: its size.
    blocks: the XXH3 hashes of its blocks of 1 MiB, 16 hexadecimal digits each, one after the other. They tell damage
        from what was written, at the speed of memory; they are no protection from somebody who means harm.
    """

    n_bytes: int
    blocks: str

    @classmethod
    def of(cls, path: Path) -> "FileHashes":
        """Read a file and hash it."""
        with path.open("rb") as stream:
            digests = [xxhash.xxh3_64_hexdigest(block) for block in iter(lambda: stream.read(BLOCK_BYTES), b"")]
        return cls(path.stat().st_size, "".join(digests))


class CheckedFile:
    """An open file and what it should hold. It can be checked even when it has been removed since it was opened.

    Each block is read and compared once, on first demand; several threads may ask for the same.
    Raises StoreError when there is no such file, it can't be read, or has another size.
    """

    def __init__(self, path: Path, hashes: FileHashes) -> None:
        self.path, self._hashes = path, hashes
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise StoreError(f"{path} is missing: build the index again") from None
        except OSError as error:
            raise unreadable(path, error) from error
        weakref.finalize(self, os.close, self._descriptor)
        found = os.fstat(self._descriptor).st_size
        n_blocks = -(-hashes.n_bytes // BLOCK_BYTES)
        if found != hashes.n_bytes or len(hashes.blocks) != n_blocks * _DIGITS:
            raise damaged(path, f"it has {found} bytes, its manifest says {hashes.n_bytes}")
        self._todo = set(range(n_blocks))
        self._lock = threading.Lock()
        self._behind: threading.Thread | None = None
        self._found: StoreError | None = None

    def check(self, start: int = 0, stop: int | None = None) -> None:
        """Compare the blocks that hold the bytes from `start` to `stop` (the end for None), unless they were already.

        Raises StoreError when one differs from what was written, now and every time.
        """
        if not self._todo:
            return
        last = (self._hashes.n_bytes if stop is None else stop) - 1
        with self._lock:
            blocks = sorted(self._todo.intersection(range(start // BLOCK_BYTES, last // BLOCK_BYTES + 1)))
            if len(blocks) > 1:
                with ThreadPoolExecutor(_THREADS, thread_name_prefix="check") as pool:
                    sound = list(pool.map(self._is_sound, blocks))
            else:
                sound = [self._is_sound(block) for block in blocks]
            self._todo.difference_update(block for block, fine in zip(blocks, sound, strict=True) if fine)
            if not all(sound):
                raise damaged(self.path, "its bytes differ from those that were written")

    def check_behind(self) -> None:
        """Compare all blocks in a thread that the first call starts. Raises StoreError once one is found to differ."""
        with self._lock:
            if self._behind is None:
                self._behind = threading.Thread(target=self._check_one_by_one, name="check", daemon=True)
                self._behind.start()
        if self._found is not None:
            raise self._found

    def _check_one_by_one(self) -> None:
        try:
            for start in range(0, self._hashes.n_bytes, BLOCK_BYTES):
                self.check(start, start + 1)
        except StoreError as error:
            self._found = error
            _log.error("%s", error)

    def _is_sound(self, block: int) -> bool:
        try:
            content = os.pread(self._descriptor, BLOCK_BYTES, block * BLOCK_BYTES)
        except OSError as error:
            raise unreadable(self.path, error) from error
        return xxhash.xxh3_64_hexdigest(content) == self._hashes.blocks[block * _DIGITS : (block + 1) * _DIGITS]


def damaged(path: Path, reason: str) -> StoreError:
    """The error of an index whose file `path` isn't what was written."""
    return StoreError(f"{path} is damaged, {reason}: {BUILD_AGAIN}")


def unreadable(path: Path, error: OSError) -> StoreError:
    """The error of a file that may be sound, but can't be read."""
    return StoreError(f"{path} can't be read ({error.strerror or error}): check its permissions and the disk")
