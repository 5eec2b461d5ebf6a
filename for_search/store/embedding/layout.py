"""Where the rows of a dataset's images lie: in the shards of a store and in those that came after it, and where they
shall lie when shards have been written again."""

import bisect
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from for_model.data.dataset import ImageId, ImageRecord
from for_search.store.changes import Done
from for_search.store.embedding.unfinished import FinishedShard
from for_search.store.merging import to_merge
from for_search.store.shards import Shard, ShardFiles, shard_number, write_shard
from for_search.store.store import Store


def shards_of(store: Store | None, notes: Mapping[int, FinishedShard]) -> list[Shard]:
    """The shards of a store and of notes, in the order of their numbers."""
    shards = {shard.file: shard for shard in (store.shards if store else ())}
    shards.update({note.shard.file: note.shard for note in notes.values() if note.shard})
    return sorted(shards.values(), key=lambda shard: shard_number(shard.file))


def done_of(store: Store | None, notes: Mapping[int, FinishedShard]) -> dict[ImageId, Done]:
    """What is done of a dataset by a store and the shards that came after it."""
    done: dict[ImageId, Done] = {}
    if store is not None:
        starts = _starts(store.shards)
        for image, row in zip(store.known_images(), store.rows.tolist(), strict=True):
            place = bisect.bisect_right(starts, row) - 1
            shard = store.shards[place].file
            done[image.record.id] = Done(image.record, image.stamp, shard, row - starts[place], None)
        for image in store.skipped_images:
            done[image.record.id] = Done(image.record, image.stamp, None, 0, image.reason)
    for note in notes.values():
        for row, record in enumerate(note.images):
            assert note.shard is not None
            done[record.id] = Done(record, note.stamps[record.id], note.shard.file, row, None)
        for skip in note.skipped:
            done[skip.id] = Done(ImageRecord(skip.id, skip.path), note.stamps[skip.id], None, 0, skip.reason)
    return done


@dataclass(frozen=True)
class Layout:
    """The shards that hold a row of some images, in the order of their numbers, and which row is whose.

    rows: [m] int64, of the m images that have one, in their order.
    """

    shards: tuple[Shard, ...]
    rows: NDArray[np.int64]


def layout_of(shards: Sequence[Shard], done: Iterable[Done]) -> Layout:
    """The layout of those images that have a row; shards without any are left out."""
    with_row = [(each.shard, each.row) for each in done if each.shard is not None]
    used = {file for file, _ in with_row}
    listed = tuple(shard for shard in shards if shard.file in used)
    first = dict(zip((shard.file for shard in listed), _starts(listed), strict=True))
    return Layout(listed, np.array([first[file] + row for file, row in with_row], np.int64))


def merged(
    there: ShardFiles, done: dict[ImageId, Done], shard_size: int
) -> tuple[tuple[Shard, ...], dict[ImageId, Done]]:
    """Shards and rows after those shards that are worth it have been written again, see `to_merge`.

    there: all shards, in the order of their numbers.
    done: whose rows are alive.
    shard_size: rows of a new shard at most.
    """
    shards = there.shards
    alive = Counter(file for file, _ in {(each.shard, each.row) for each in done.values()})
    rows = [shard.n_images for shard in shards]
    chosen = to_merge(rows, [alive[shard.file] for shard in shards], full=max(1, shard_size // 2))
    if not chosen:
        return shards, done
    wanted = {shards[i].file for i in chosen}
    moving = list(dict.fromkeys((each.shard, each.row) for each in done.values() if each.shard in wanted))
    first = dict(zip((shard.file for shard in shards), _starts(shards), strict=True))
    number = max(shard_number(shard.file) for shard in shards)
    written: list[Shard] = []
    places: dict[tuple[str | None, int], tuple[str, int]] = {}
    for start in range(0, len(moving), shard_size):
        part = moving[start : start + shard_size]
        taken = there.take(np.array([first[file or ""] + row for file, row in part], np.int64))
        number += 1
        written.append(write_shard(there.path, number, taken.astype(np.float32)))
        places.update({place: (written[-1].file, row) for row, place in enumerate(part)})
    moved = {}
    for image_id, each in done.items():
        place = places.get((each.shard, each.row))
        moved[image_id] = replace(each, shard=place[0], row=place[1]) if place else each
    return (*(shard for shard in shards if shard.file not in wanted), *written), moved


def _starts(shards: Sequence[Shard]) -> list[int]:
    """The first row of each shard among the rows of all."""
    return [0, *itertools.accumulate(shard.n_images for shard in shards)][: len(shards)]
