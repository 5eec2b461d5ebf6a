"""A store behind a URL: worked on in a local folder of FOR's cache, and mirrored there file by file.

Each shard is copied when it is finished, with its note, and the manifest last: so whoever reads sees the store before a
change or after it, and a run that was stopped goes on on this machine or on another. One machine at a time may write to
a URL; nothing there can lock others out, but a manifest that somebody else has changed meanwhile is never replaced.
"""

import json
import re
from pathlib import Path

from for_model.errors import DataError, StoreError
from for_model.files import write_bytes
from for_model.remote import RemoteFolder
from for_search.store.store import MANIFEST, PARTIAL, TIMING, Store, open_store

# What a store that isn't finished consists of.
_OWN_NAME = re.compile(r"embeddings-\d+\.npy|\.partial/(plan|shard-\d+)\.json")


class StoreMirror:
    """The mirror of one store.

    folder: the local one.
    Raises as `RemoteFolder` does.
    """

    def __init__(self, url: str) -> None:
        self.remote = RemoteFolder(url)
        self.folder = self.remote.cache_folder("remote-stores")
        self._seen: bytes | None = None  # the manifest there, as it was last read or written
        self._pushed: set[str] = set()

    def pull(self) -> Path:
        """Make the local folder what is at the URL, as far as it isn't: a finished store, or what was finished of one.

        Returns the local folder. Raises StoreError when the store changes faster than it is copied.
        """
        for _ in range(3):
            self._seen = self.remote.read(MANIFEST)
            there = self.remote.files()
            if self._seen is None:
                wanted = {name for name in there if _OWN_NAME.fullmatch(name)}
                if there and not wanted:
                    raise StoreError(f"{self.remote.url} holds files that are not an embedding store's: choose another")
                same = wanted if not (self.folder / MANIFEST).exists() else set()
            else:
                listed, here = _hashes(self._seen), _hashes(_read(self.folder / MANIFEST))
                wanted = {TIMING, *listed}
                same = {name for name in listed if here.get(name) == listed[name]}
            missing = {
                name: file
                for name, file in there.items()
                if name in wanted and not (name in same and _has_size(self.folder / name, file.n_bytes))
            }
            self.remote.fetch(missing, self.folder, f"fetching {self.remote.url}")
            if self.remote.read(MANIFEST) == self._seen:
                if self._seen is not None:
                    write_bytes(self.folder / MANIFEST, self._seen)
                return self.folder
        raise StoreError(f"{self.remote.url} changes while it is read: try again when nobody is writing there")

    def push(self, name: str) -> None:
        """Copy a file that is finished: a shard, or its note."""
        self.remote.put(self.folder / name, name)
        self._pushed.add(name)

    def finish(self) -> None:
        """Copy the finished store's table, time and manifest, the manifest last, and remove what it doesn't list.

        Raises StoreError when somebody else has written there since `pull`.
        """
        store = open_store(self.folder)
        now = (self.folder / MANIFEST).read_bytes()
        there = self.remote.files()
        if now != self._seen or TIMING not in there:
            if self.remote.read(MANIFEST) != self._seen:
                raise StoreError(f"{self.remote.url} has been written by another machine meanwhile: run this again")
            old, new = _hashes(self._seen or b""), _hashes(now)
            for name in sorted(store.file_names):
                if name not in self._pushed and (name not in there or old.get(name) != new[name]):
                    self.push(name)
            if (self.folder / TIMING).exists():
                self.push(TIMING)
            self.push(MANIFEST)
            self._seen = now
        self.remote.remove(name for name in there if _is_left_over(name, store))


def _hashes(manifest: bytes) -> dict[str, str]:
    """The files that a manifest names, with their hashes; what it says is checked by whoever opens the store."""
    try:
        value = json.loads(manifest)
        return {str(entry["file"]): str(entry["sha256"]) for entry in (value["table"], *value["shards"])}
    except (ValueError, KeyError, TypeError):
        return {}


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def _has_size(path: Path, n_bytes: int) -> bool:
    return path.is_file() and path.stat().st_size == n_bytes


def _is_left_over(name: str, store: Store) -> bool:
    own = name.startswith((f"{PARTIAL}/", "embeddings-", "images-"))
    return own and name not in store.file_names


def local_store(place: Path | str) -> Path:
    """The local folder of a store; of a URL's, a copy in FOR's cache, brought up to date. Raises as `StoreMirror`."""
    if isinstance(place, Path):
        return place
    mirror = StoreMirror(place)
    if mirror.remote.read(MANIFEST) is None:
        raise DataError(f"{mirror.remote.url} holds no finished store: make one with the embed command")
    return mirror.pull()
