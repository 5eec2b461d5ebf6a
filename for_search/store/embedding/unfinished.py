"""What a run leaves in a store's folder before it is finished: the plan, and a note of each finished shard.

    STORE/.partial/plan.json          whose shards these are
                   shard-00000.json   what is in a shard that is written, and what was skipped
                   lock               held by whoever writes

Notes and shards lie there until the manifest lists what they hold.
"""

import contextlib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from for_model import files
from for_model.data.dataset import ImageId, ImageRecord
from for_model.errors import StoreError
from for_search.store.changes import Stamp
from for_search.store.shards import Shard
from for_search.store.store import PARTIAL, SkippedImage

PLAN = "plan.json"
_LOCK = "lock"
_OWN_FILE = re.compile(r"embeddings-\d+\.npy|images-\w+\.sqlite")
# What a killed run may leave beside finished files.
_LEFTOVER = files.temporaries_of(rf"{_OWN_FILE.pattern}|manifest\.json|timing\.json|shard-\d+\.json|plan\.json")


@dataclass(frozen=True)
class FinishedShard:
    """A finished shard, as its note tells it; `shard` is None when all its images were skipped.

    images: those with a row, in the order of the rows.
    stamps: each image's file, skipped ones included.
    seconds: that it took.
    """

    shard: Shard | None
    images: tuple[ImageRecord, ...]
    skipped: tuple[SkippedImage, ...]
    stamps: Mapping[ImageId, Stamp]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {
            "shard": self.shard and asdict(self.shard),
            "images": [asdict(image) for image in self.images],
            "skipped": [asdict(image) for image in self.skipped],
            "stamps": [[image_id, asdict(stamp)] for image_id, stamp in self.stamps.items()],
            "seconds": self.seconds,
        }

    @classmethod
    def from_json(cls, note: dict[str, Any]) -> "FinishedShard":
        return cls(
            Shard(**note["shard"]) if note["shard"] else None,
            tuple(ImageRecord(**image) for image in note["images"]),
            tuple(SkippedImage(**image) for image in note["skipped"]),
            {image_id: Stamp(**stamp) for image_id, stamp in note["stamps"]},
            note["seconds"],
        )


def begin_or_resume(out: Path, identity: str) -> None:
    """Write down whose shards are to come, or check that an earlier run's are of the same.

    identity: a hash of what must be the same. Raises StoreError when it isn't.
    """
    partial = out / PARTIAL
    earlier = files.read_note(partial / PLAN)
    if earlier is None:  # killed before it began, or while it was cleaning up
        for note in partial.glob("shard-*.json"):
            note.unlink()
        files.write_json(partial / PLAN, {"plan": identity})
    elif earlier.get("plan") != identity:
        raise StoreError(
            f"{out} holds an unfinished store of another method or dataset: choose another --out, or delete it"
        )


def read_notes(out: Path) -> dict[int, FinishedShard]:
    """Shard number -> what was finished since the last manifest; a shard whose file has gone is to be done again."""
    finished = {}
    for path in sorted((out / PARTIAL).glob("shard-*.json")):
        note = files.read_note(path)
        done = FinishedShard.from_json(note) if note else None
        if done and (done.shard is None or (out / done.shard.file).is_file()):
            finished[int(path.stem.removeprefix("shard-"))] = done
    return finished


def write_note(out: Path, number: int, finished: FinishedShard) -> str:
    """Say that a shard is finished; its file must be there. Returns the note's name within the store."""
    name = f"{PARTIAL}/shard-{number:05d}.json"
    files.write_json(out / name, finished.to_json())
    return name


def remove_leftovers(out: Path, known: Collection[str]) -> None:
    """Remove the temporary files of killed runs, and all shards and tables but those of these names; the lock makes
    sure that nobody is writing them."""
    for folder in (out, out / PARTIAL):
        for path in folder.iterdir():
            if _LEFTOVER.fullmatch(path.name) or (_OWN_FILE.fullmatch(path.name) and path.name not in known):
                path.unlink()


@contextlib.contextmanager
def explained(out: Path) -> Iterator[None]:
    """Explain an error of the file system. Only around writing: a worker's or the method's own OSError is theirs."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"store {out} can't be written ({error.strerror or error}): check its disk space and permissions, then run "
            "the same command again; finished shards are kept"
        ) from error


@contextlib.contextmanager
def store_locked(out: Path) -> Iterator[None]:
    """Hold the store's lock. Raises StoreError when it is taken."""
    busy = StoreError(f"store {out} is being written by another process: wait for it to finish")
    with contextlib.ExitStack() as stack:
        with explained(out):
            stack.enter_context(files.locked(out / PARTIAL / _LOCK, busy))
        yield
