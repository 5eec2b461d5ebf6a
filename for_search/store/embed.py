"""Dataset x method -> embedding store: resumable, and brought up to date by the same call when the dataset changes.

Images are cut into shards of a fixed number in the order of their ids, before it is known which can be decoded, and no
batch crosses a shard. So a run that was killed and started again goes through the same batches, and its store is the
same to the byte as that of a run that wasn't. A store that is there already is compared with the dataset
(`for_search.store.changes`); what is new or has changed is cut into shards in the same way, after those that are there.
"""

import bisect
import contextlib
import itertools
import logging
import math
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from for_model import files
from for_model.data.dataset import Dataset, ImageId, ImageRecord
from for_model.data.decoding import Pixels, decoded, default_workers
from for_model.errors import DataError, ImageError, StoreError, UsageError
from for_model.methods.protocol import Method, MethodInfo
from for_model.training.features import Kept
from for_search.store.changes import Difference, Done, Stamp, difference, full_stamps, is_up_to_date
from for_search.store.merging import to_merge
from for_search.store.metadata import Metadata
from for_search.store.store import (
    FORMAT,
    MANIFEST,
    PARTIAL,
    TIMING,
    Shard,
    SkippedImage,
    Store,
    open_store,
    shard_number,
    write_manifest,
    write_shard,
)

Watch = Callable[[int, int], None]  # images done, images in all

_log = logging.getLogger(__name__)

_PLAN = "plan.json"
_LOCK = "lock"

_SHARD_IMAGES = 512
_SHARD_BYTES = 2**30

_SHARD_FILE = re.compile(r"embeddings-\d+\.npy")

# What a killed run may leave beside finished files; `files.atomic_path` names them so.
_LEFTOVER = re.compile(r"\.(embeddings-\d+\.npy|manifest\.json|timing\.json|shard-\d+\.json|plan\.json)\..+\.tmp")


@dataclass(frozen=True)
class EmbedReport:
    """What a run of `embed` did, and the store it ends with.

    n_images: images with embeddings.  n_skipped: images without, listed with reasons in the store.
    n_removed: images that the store had, and has no more.
    seconds: of wall time, over all the runs that it took, without what killed runs lost; NaN where it isn't known.
    images_per_second: images embedded in all these runs / seconds.
    resumed_images: images of the dataset, skipped ones included, that earlier runs had done.
    """

    store: Path
    n_images: int
    n_skipped: int
    n_removed: int
    seconds: float
    images_per_second: float
    resumed_images: int


@dataclass(frozen=True)
class _Finished:
    """A finished shard, as its note in `.partial` tells it; `shard` is None when all its images were skipped.

    images: those with a row, in the order of the rows.
    stamps: each image's file, skipped ones included.
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
    def from_json(cls, note: dict[str, Any]) -> "_Finished":
        return cls(
            Shard(**note["shard"]) if note["shard"] else None,
            tuple(ImageRecord(**image) for image in note["images"]),
            tuple(SkippedImage(**image) for image in note["skipped"]),
            {image_id: Stamp(**stamp) for image_id, stamp in note["stamps"]},
            note["seconds"],
        )


def embed(
    dataset: Dataset,
    method: Method,
    out: Path,
    *,
    batch_size: int = 32,
    shard_size: int | None = None,
    workers: int | None = None,
    progress: bool = True,
    watch: Watch | None = None,
    features: Kept | None = None,
    metadata: Metadata | None = None,
) -> EmbedReport:
    """Embed every image of `dataset` with `method` into a store at `out`, go on with one that was begun, or bring one
    up to date.

    batch_size: images a forward pass.  shard_size: images of the dataset a file, and so what a kill can lose; None for
        512, or for fewer where the embeddings of so many would take more than 1 GiB of memory.
    workers: threads that decode and preprocess while the method computes; by default one a core, at most 8. Their
        number doesn't change the result.
    progress: show progress on stderr, if that is a terminal.
    watch: called before each image with the number done and the number in all; what it raises ends the run.
    features: the dataset's feature maps by the method's own backbone, kept with `exact`, instead of its images: the
        same embeddings without decoding an image or running the trunk. Only for a `ClipMethod`.
    metadata: columns of the user's, which replace those that the store has; None to leave these.
    JPEGs larger than four times the method's `image_size` are decoded at reduced size, twice `image_size` or more.
    Images that can't be decoded are skipped, and recorded with the reason.
    Of a store of the same method, dataset, split and image folder only the difference is done: images that are new or
    whose file has changed are embedded, those that are gone are dropped, renamed files keep their embeddings (see
    `changes.difference`). Where nothing has changed nothing is written. The rows of what is embedded later come after
    the others; shards of which more than a fifth is dropped, and small ones, are written again, their rows in the
    order of the images' ids.
    Raises UsageError for a size below 1; DataError when no image is usable; StoreError when `out` holds something else,
    another process is writing there, it can't be written, or the method's embeddings aren't finite and unit-norm.
    Whatever else the method or a worker raises comes through. After any error, Ctrl-C or kill, the same call goes on.
    """
    for name, value in (("batch size", batch_size), ("shard size", shard_size), ("workers", workers)):
        if value is not None and value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}")
    if not dataset.images:
        raise DataError(f"{dataset.name} {dataset.split} has no images: nothing to embed")
    out = Path(out).expanduser().resolve()
    shard_size = shard_size or _default_shard_size(method.info)
    return _Run(
        dataset, method, out, batch_size, shard_size, workers or default_workers(), progress, watch, features, metadata
    ).start()


def _default_shard_size(info: MethodInfo) -> int:
    """Images a file: a shard's embeddings are in memory as float32 until it is written."""
    return max(1, min(_SHARD_IMAGES, _SHARD_BYTES // (4 * info.n_embeddings * info.dim)))


@dataclass(frozen=True)
class _Run:
    """One call of `embed`."""

    dataset: Dataset
    method: Method
    out: Path
    batch_size: int
    shard_size: int
    workers: int
    progress: bool
    watch: Watch | None
    features: Kept | None
    metadata: Metadata | None

    def start(self) -> EmbedReport:
        if (report := self._finished_report(self._earlier_store())) is not None:
            return report
        self._refuse_foreign_folder()
        partial = self.out / PARTIAL
        with _locked(self.out):
            store = self._earlier_store()
            if (report := self._finished_report(store)) is not None:  # another process finished it just now
                return report
            with _writing(self.out):
                self._begin_or_resume(partial)
                notes = _read_notes(self.out)
                _remove_leftovers(self.out, _shards(store, notes))
            found = difference(self.dataset, _done(store, notes))
            if found.kept and found.todo:
                _log.info("%s: %d of %d images are done", self.out, len(found.kept), len(self.dataset.images))
            self._embed_rest(partial, store, notes, found)
            with _writing(self.out):
                return self._finish(partial, store, notes, found)

    def _identity(self) -> dict[str, Any]:
        """What must be equal for a run to go on with an earlier one's shards, or to bring its store up to date."""
        return {
            "format": FORMAT,
            "method": self.method.info.to_json(),
            "dataset": self.dataset.name,
            "split": self.dataset.split,
            "image_root": str(self.dataset.image_root),
        }

    def _earlier_store(self) -> Store | None:
        """The finished store at `out`; None when there is none. Raises StoreError for one of something else."""
        if not (self.out / MANIFEST).exists():
            return None
        store = open_store(self.out)
        differences = {
            "method": files.sha256_json(store.info.to_json()) != files.sha256_json(self.method.info.to_json()),
            "dataset": (store.dataset, store.split) != (self.dataset.name, self.dataset.split),
            "image folder": store.image_root != self.dataset.image_root,
        }
        if any(differences.values()):
            what = " and ".join(name for name, differs in differences.items() if differs)
            raise StoreError(f"{self.out} is a finished store of another {what}: choose another --out, or delete it")
        return store

    def _finished_report(self, store: Store | None) -> EmbedReport | None:
        """The report on the finished store at `out`, if it is up to date; None when there is something to do."""
        if store is None or _read_notes(self.out):
            return None
        if not is_up_to_date(self.dataset, _done(store, {})) or self._metadata(store) != store.metadata:
            return None
        shutil.rmtree(self.out / PARTIAL, ignore_errors=True)  # left by a run killed just after its manifest
        timing = files.read_note(self.out / TIMING) or {}
        return EmbedReport(
            self.out,
            len(store.images),
            len(store.skipped),
            0,
            _number(timing.get("seconds")),
            _number(timing.get("images_per_second")),
            len(self.dataset.images),
        )

    def _refuse_foreign_folder(self) -> None:
        """Never write into a folder that holds something else: `out` may be a slip for the folder of photos."""
        if self.out.exists() and not self.out.is_dir():
            raise StoreError(f"{self.out} is a file: choose a folder for the store with --out")
        known = any((self.out / name).exists() for name in (PARTIAL, MANIFEST))
        if self.out.is_dir() and not known and any(self.out.iterdir()):
            raise StoreError(f"{self.out} holds files that are not an embedding store's: choose another --out")

    def _begin_or_resume(self, partial: Path) -> None:
        """Write down whose shards are to come, or check that an earlier run's are of the same."""
        identity = files.sha256_json(self._identity())
        earlier = files.read_note(partial / _PLAN)
        if earlier is None:  # killed before it began, or while it was cleaning up
            for note in partial.glob("shard-*.json"):
                note.unlink()
            files.write_json(partial / _PLAN, {"plan": identity})
        elif earlier.get("plan") != identity:
            raise StoreError(
                f"{self.out} holds an unfinished store of another method or dataset: choose another --out, or delete it"
            )

    def _embed_rest(self, partial: Path, store: Store | None, notes: dict[int, _Finished], found: Difference) -> None:
        """Embed what there is to embed, and add a note of each shard to `notes`."""
        first = 1 + max((shard_number(shard.file) for shard in (store.shards if store else ())), default=-1)
        numbers = (number for number in itertools.count(first) if number not in notes)
        starts = range(0, len(found.todo), self.shard_size)
        pieces = [(next(numbers), found.todo[start : start + self.shard_size]) for start in starts]
        n_skipped = sum(done.reason is not None for done in found.kept.values())
        since = time.perf_counter()
        with (
            tqdm(
                total=len(self.dataset.images),
                initial=len(found.kept),
                desc=f"{self.method.info.method} {self.dataset.name}",
                unit="images",
                disable=None if self.progress else True,
            ) as bar,
            contextlib.closing(self._kept(found.todo) if self.features else self._decode(found.todo)) as decoded,
        ):
            for number, records in pieces:
                embeddings, skipped = self._embed_shard(records, decoded, bar, n_skipped)
                n_skipped += len(skipped)
                stamps = full_stamps(records, self.dataset.image_root, found.stamps, self.workers)
                skipped_ids = {image.id for image in skipped}
                with _writing(self.out):
                    shard = write_shard(self.out, number, embeddings) if len(embeddings) else None
                    now = time.perf_counter()
                    images = tuple(record for record in records if record.id not in skipped_ids)
                    notes[number] = _Finished(shard, images, skipped, stamps, now - since)
                    files.write_json(partial / _note(number), notes[number].to_json())
                since = now

    def _embed_shard(
        self, records: Sequence[ImageRecord], decoded: Iterator[Pixels], bar: "tqdm[Any]", n_skipped: int
    ) -> tuple[NDArray[np.float32], tuple[SkippedImage, ...]]:
        """The embeddings [m, N, Co] of one shard's m usable images, and its other images.

        records: the shard's images.  decoded: gives what became of them next.  n_skipped: of the shards before, for
        the bar.
        """
        info = self.method.info
        blocks = [np.empty((0, info.n_embeddings, info.dim), dtype=np.float32)]
        batch: list[torch.Tensor] = []
        skipped: list[SkippedImage] = []
        for record in records:
            pixels = next(decoded)
            if isinstance(pixels, ImageError):
                skipped.append(SkippedImage(record.id, record.path, str(pixels)))
                bar.set_postfix(skipped=n_skipped + len(skipped), refresh=False)
            else:
                batch.append(pixels)
            if len(batch) == self.batch_size:
                blocks.append(self._encode(batch))
                batch = []
            bar.update()
        if batch:
            blocks.append(self._encode(batch))
        return np.concatenate(blocks), tuple(skipped)

    def _decode(self, records: Sequence[ImageRecord]) -> Generator[Pixels, None, None]:
        # Twice the size that the method sees: reducing by DCT stays well below what its own resizing does.
        target, root = 2 * self.method.info.image_size, self.dataset.image_root
        ahead = 2 * max(self.batch_size, self.workers)
        total = len(self.dataset.images)
        with contextlib.closing(decoded(records, root, target, self.method.preprocess, self.workers, ahead)) as images:
            for done, pixels in enumerate(images, start=total - len(records)):
                if self.watch is not None:
                    self.watch(done, total)
                yield pixels

    def _kept(self, records: Sequence[ImageRecord]) -> Generator[Pixels, None, None]:
        """The kept feature maps of some images, [K, Ce] float32 each, in place of their pixels."""
        assert self.features is not None
        reasons = {skipped.row: skipped.reason for skipped in self.features.skipped}
        row_of = {image.id: row for row, image in enumerate(self.dataset.images)}
        rows = np.array([row_of[record.id] for record in records], np.int64)
        order = [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]
        for wanted, (found, X) in zip(order, self.features.batches(order), strict=True):
            maps = dict(zip(found.tolist(), X, strict=True))
            for row in wanted.tolist():
                yield maps[row] if row in maps else ImageError(reasons[row])

    def _encode(self, batch: list[torch.Tensor]) -> NDArray[np.float32]:
        """Pixels of b images, or their feature maps -> [b, N, Co] float32."""
        encode = self.method.encode_images if self.features is None else self.method.encode_features  # type: ignore[attr-defined]
        with torch.inference_mode():
            embeddings = encode(torch.stack(batch)).float().cpu().numpy()
        info = self.method.info
        expected = (len(batch), info.n_embeddings, info.dim)
        if embeddings.shape != expected:
            raise StoreError(
                f"method {info.method} gave embeddings of shape {list(embeddings.shape)}, expected {list(expected)}: "
                "its info and its output disagree"
            )
        return embeddings

    def _finish(
        self, partial: Path, earlier: Store | None, notes: dict[int, _Finished], found: Difference
    ) -> EmbedReport:
        """Write timing and manifest, and tidy up."""
        embedded = _done(earlier, notes)
        done = {record.id: found.kept.get(record.id) or embedded[record.id] for record in self.dataset.images}
        skipped = tuple(
            SkippedImage(each.record.id, each.record.path, each.reason)
            for each in done.values()
            if each.reason is not None
        )
        if len(skipped) == len(done):
            self._give_up(partial, skipped)
        shards = _shards(earlier, notes)
        if earlier is not None:
            shards, done = self._merged(shards, done)
        known = _done(earlier, {}).keys()
        store = replace(self._store(shards, done, skipped), metadata=self._metadata(earlier))
        new = [
            note for note in notes.values() if note.shard is None or earlier is None or note.shard not in earlier.shards
        ]
        timing = _timing(self.out, new)
        files.write_json(self.out / TIMING, timing)
        write_manifest(store)
        _remove_leftovers(self.out, store.shards)
        shutil.rmtree(partial, ignore_errors=True)  # the store is complete; a later call clears what is left
        return EmbedReport(
            self.out,
            len(store.images),
            len(skipped),
            len(known - done.keys()),
            timing["seconds"],
            timing["images_per_second"],
            len(found.kept),
        )

    def _metadata(self, earlier: Store | None) -> Metadata:
        """What the store shall say of the images beside what their files tell."""
        return (self.metadata or (earlier.metadata if earlier else Metadata())).of_dataset(self.dataset)

    def _give_up(self, partial: Path, skipped: Sequence[SkippedImage]) -> NoReturn:
        shutil.rmtree(partial)  # so that the next run looks at the images again
        with contextlib.suppress(OSError):
            self.out.rmdir()
        first = skipped[0]
        raise DataError(
            f"none of the {len(skipped)} images in {self.dataset.image_root} is usable "
            f"(the first: {first.path}: {first.reason}): check the folder"
        )

    def _store(self, shards: Sequence[Shard], done: Mapping[ImageId, Done], skipped: tuple[SkippedImage, ...]) -> Store:
        """The store of what is done, with those of the shards that hold a row of it."""
        used = {each.shard for each in done.values()}
        shards = [shard for shard in shards if shard.file in used]
        first = dict(zip((shard.file for shard in shards), _starts(shards), strict=True))
        with_row = [each for each in done.values() if each.shard is not None]
        return Store(
            path=self.out,
            info=self.method.info,
            dataset=self.dataset.name,
            split=self.dataset.split,
            image_root=self.dataset.image_root,
            images=tuple(each.record for each in with_row),
            skipped=skipped,
            shards=tuple(shards),
            own_rows=np.array([first[each.shard or ""] + each.row for each in with_row], np.int64),
            stamps={image_id: each.stamp for image_id, each in done.items() if each.stamp},
        )

    def _merged(self, shards: list[Shard], done: dict[ImageId, Done]) -> tuple[list[Shard], dict[ImageId, Done]]:
        """Shards and rows after those shards that are worth it have been written again, see `to_merge`."""
        alive = Counter(file for file, _ in {(each.shard, each.row) for each in done.values()})
        rows = [shard.n_images for shard in shards]
        chosen = to_merge(rows, [alive[shard.file] for shard in shards], full=max(1, self.shard_size // 2))
        if not chosen:
            return shards, done
        wanted = {shards[i].file for i in chosen}
        moving = list(dict.fromkeys((each.shard, each.row) for each in done.values() if each.shard in wanted))
        source = self._store(shards, done, ())
        first = dict(zip((shard.file for shard in source.shards), _starts(source.shards), strict=True))
        number = max(shard_number(shard.file) for shard in shards)
        written: list[Shard] = []
        places: dict[tuple[str | None, int], tuple[str, int]] = {}
        for start in range(0, len(moving), self.shard_size):
            part = moving[start : start + self.shard_size]
            taken = source.take(np.array([first[file or ""] + row for file, row in part], np.int64))
            number += 1
            written.append(write_shard(self.out, number, taken.astype(np.float32)))
            places.update({place: (written[-1].file, row) for row, place in enumerate(part)})
        moved = {}
        for image_id, each in done.items():
            place = places.get((each.shard, each.row))
            moved[image_id] = replace(each, shard=place[0], row=place[1]) if place else each
        return [*(shard for shard in shards if shard.file not in wanted), *written], moved


def _starts(shards: Sequence[Shard]) -> list[int]:
    """The first row of each shard among the rows of all."""
    return [0, *itertools.accumulate(shard.n_images for shard in shards)][: len(shards)]


def _shards(store: Store | None, notes: Mapping[int, _Finished]) -> list[Shard]:
    """The shards of a store and of notes, in the order of their numbers."""
    shards = {shard.file: shard for shard in (store.shards if store else ())}
    shards.update({note.shard.file: note.shard for note in notes.values() if note.shard})
    return sorted(shards.values(), key=lambda shard: shard_number(shard.file))


def _done(store: Store | None, notes: Mapping[int, _Finished]) -> dict[ImageId, Done]:
    """What is done of a dataset by a store and the shards that came after it."""
    done: dict[ImageId, Done] = {}
    if store is not None:
        starts = _starts(store.shards)
        for image, row in zip(store.images, store.rows.tolist(), strict=True):
            place = bisect.bisect_right(starts, row) - 1
            shard = store.shards[place].file
            done[image.id] = Done(image, store.stamps.get(image.id), shard, row - starts[place], None)
        for skip in store.skipped:
            record = ImageRecord(skip.id, skip.path)
            done[skip.id] = Done(record, store.stamps.get(skip.id), None, 0, skip.reason)
    for note in notes.values():
        for row, image in enumerate(note.images):
            assert note.shard is not None
            done[image.id] = Done(image, note.stamps[image.id], note.shard.file, row, None)
        for skip in note.skipped:
            done[skip.id] = Done(ImageRecord(skip.id, skip.path), note.stamps[skip.id], None, 0, skip.reason)
    return done


def _read_notes(out: Path) -> dict[int, _Finished]:
    """Shard number -> what was finished since the last manifest; a shard whose file has gone is to be done again."""
    finished = {}
    for path in sorted((out / PARTIAL).glob("shard-*.json")):
        note = files.read_note(path)
        done = _Finished.from_json(note) if note else None
        if done and (done.shard is None or (out / done.shard.file).is_file()):
            finished[int(path.stem.removeprefix("shard-"))] = done
    return finished


def _timing(out: Path, notes: Sequence[_Finished]) -> dict[str, Any]:
    """What `timing.json` is to say: the time and the images of the runs before, and of these notes."""
    earlier = files.read_note(out / TIMING) or {}
    seconds = math.fsum((*(note.seconds for note in notes), earlier.get("seconds", 0)))
    n_images = sum(len(note.images) for note in notes) + earlier.get("n_images", 0)
    return {"seconds": seconds, "n_images": n_images, "images_per_second": n_images / seconds if seconds else math.nan}


def _note(number: int) -> str:
    """The file in `.partial` that says that a shard is finished."""
    return f"shard-{number:05d}.json"


def _number(value: object) -> float:
    """A number of a note; NaN for anything else."""
    return float(value) if isinstance(value, int | float) else math.nan


def _remove_leftovers(out: Path, shards: Sequence[Shard]) -> None:
    """Remove the temporary files of killed runs, and the files of all shards but these; the lock makes sure that nobody
    is writing them."""
    known = {shard.file for shard in shards}
    for folder in (out, out / PARTIAL):
        for path in folder.iterdir():
            if _LEFTOVER.fullmatch(path.name) or (_SHARD_FILE.fullmatch(path.name) and path.name not in known):
                path.unlink()


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Explain an error of the file system. Only around writing: a worker's or the method's own OSError is theirs."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"store {out} can't be written ({error.strerror or error}): check its disk space and permissions, then run "
            "the same command again; finished shards are kept"
        ) from error


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold the store's lock. Raises StoreError when it is taken."""
    busy = StoreError(f"store {out} is being written by another process: wait for it to finish")
    with contextlib.ExitStack() as stack:
        with _writing(out):
            stack.enter_context(files.locked(out / PARTIAL / _LOCK, busy))
        yield
