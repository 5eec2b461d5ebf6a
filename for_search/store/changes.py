"""What of a dataset has changed since it was embedded: told by size and time of the files, and by their content where
these differ."""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from for_model.data.dataset import Dataset, ImageId, ImageRecord
from for_model.files import sha256_file
from for_search.store.image_facts import image_facts
from for_search.store.image_table import Cell


@dataclass(frozen=True)
class Stamp:
    """A file as it was when it was embedded or skipped.

    n_bytes, mtime_ns: its size and the time of its last change, both 0 for a file that can't be looked at.
    sha256: of its content; empty for one that can't be read, or that changed while it was.
    facts: what its header tells, see `image_facts`.
    """

    n_bytes: int
    mtime_ns: int
    sha256: str = ""
    facts: Mapping[str, Cell] = field(default_factory=dict)

    def looks_like(self, other: "Stamp") -> bool:
        """Whether size and time are the same."""
        return (self.n_bytes, self.mtime_ns) == (other.n_bytes, other.mtime_ns)


@dataclass(frozen=True)
class Done:
    """An image that was embedded or skipped.

    record, stamp: the image, and its file then.
    shard: the file's name that holds its row, and `row` its place there; None for one that was skipped.
    reason: why it was skipped; None for one that has a row.
    """

    record: ImageRecord
    stamp: Stamp | None
    shard: str | None
    row: int
    reason: str | None


@dataclass(frozen=True)
class Difference:
    """A dataset against what was embedded of it.

    kept: image id -> what was done, under the image's id, path and stamp of today.
    todo: images to embed, in ascending order of id.
    stamps: image id -> size and time of today, for each image of `todo`.
    """

    kept: Mapping[ImageId, Done]
    todo: tuple[ImageRecord, ...]
    stamps: Mapping[ImageId, Stamp]


def difference(dataset: Dataset, done: Mapping[ImageId, Done]) -> Difference:
    """Find the images of `dataset` that are new or have changed, and where the others' rows are.

    An image is as it was when its file has the size and the time that are recorded. Of the others those keep their rows
    whose content was embedded under a name that is gone or holds something else now: renamed and touched files. Only
    files of such a size are read for that. An image that was skipped is tried again when its file or name has changed.
    """
    now = {record.id: file_stamp(dataset.image_root / record.path) for record in dataset.images}
    same = {r.id: done[r.id] for r in dataset.images if r.id in done and _as_it_was(r, now[r.id], done[r.id])}
    left: dict[str, list[Done]] = {}
    for image_id, each in done.items():
        if image_id not in same and each.shard is not None and each.stamp and each.stamp.sha256:
            left.setdefault(each.stamp.sha256, []).append(each)
    sizes = {each.stamp.n_bytes for several in left.values() for each in several if each.stamp}
    kept: dict[ImageId, Done] = {}
    todo = []
    for record in dataset.images:
        path, stamp = dataset.image_root / record.path, now[record.id]
        if record.id in same:
            kept[record.id] = same[record.id]
            continue
        content = sha256_of(path) if stamp.n_bytes in sizes else ""
        if left.get(content) and stamp.looks_like(file_stamp(path)):
            before = left[content].pop(0)
            facts = before.stamp.facts if before.stamp else {}  # of the same bytes
            kept[record.id] = replace(before, record=record, stamp=replace(stamp, sha256=content, facts=facts))
        else:
            todo.append(record)
    return Difference(kept, tuple(todo), {record.id: now[record.id] for record in todo})


def is_up_to_date(dataset: Dataset, done: Mapping[ImageId, Done]) -> bool:
    """Whether the dataset's images are those that were done, by their ids, paths, sizes and times; no file is read."""
    return len(dataset.images) == len(done) and all(
        record.id in done and _as_it_was(record, file_stamp(dataset.image_root / record.path), done[record.id])
        for record in dataset.images
    )


def _as_it_was(record: ImageRecord, now: Stamp, before: Done) -> bool:
    return before.record.path == record.path and (before.stamp is None or now.looks_like(before.stamp))


def file_stamp(path: Path) -> Stamp:
    """A file's size and time; zeros for one that can't be looked at: embedding will skip it and say why."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return Stamp(0, 0)
    return Stamp(status.st_size, status.st_mtime_ns)


def sha256_of(path: Path) -> str:
    """The hash of a file's content; empty for what isn't a file or can't be read."""
    try:
        return sha256_file(path) if path.is_file() else ""
    except (OSError, ValueError):
        return ""


def full_stamps(
    records: Iterable[ImageRecord], root: Path, looked_at: Mapping[ImageId, Stamp], workers: int
) -> dict[ImageId, Stamp]:
    """The stamps of images that have just been embedded, with their content's hashes and what their headers tell.

    looked_at: their stamps before they were. A file that has changed since gets no hash, so that it is embedded again.
    workers: threads that read files.
    """

    def stamp(record: ImageRecord) -> tuple[ImageId, Stamp]:
        path = root / record.path
        before, content, facts = looked_at[record.id], sha256_of(path), image_facts(path)
        return record.id, replace(before, sha256=content if before.looks_like(file_stamp(path)) else "", facts=facts)

    with ThreadPoolExecutor(workers, thread_name_prefix="stamp") as pool:
        return dict(pool.map(stamp, records))
