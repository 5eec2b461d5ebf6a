"""Dataset x method -> embedding store: resumable, and brought up to date by the same call when the dataset changes.

Images are cut into shards of a fixed number in the order of their ids, before it is known which can be decoded, and no
batch crosses a shard. So a run that was killed and started again goes through the same batches, and its store is the
same to the byte as that of a run that wasn't. A store that is there already is compared with the dataset
(`for_search.store.changes`); what is new or has changed is cut into shards in the same way, after those that are there.
"""

import contextlib
import itertools
import logging
import math
import shutil
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from for_model import files
from for_model.data.dataset import Dataset, ImageRecord
from for_model.data.decoding import Pixels, default_workers
from for_model.errors import DataError, ImageError, StoreError, UsageError
from for_model.methods.protocol import Method, MethodInfo
from for_model.training.features import Kept
from for_search.store.changes import Difference, difference, is_up_to_date
from for_search.store.embedding.layout import done_of, layout_of, merged, shards_of
from for_search.store.embedding.ray_workers import RayCluster
from for_search.store.embedding.shard_maker import MadeShard, ShardMaker, kept_maps
from for_search.store.embedding.unfinished import (
    PLAN,
    FinishedShard,
    begin_or_resume,
    explained,
    read_notes,
    remove_leftovers,
    store_locked,
    write_note,
)
from for_search.store.metadata import Metadata
from for_search.store.shards import ShardFiles, shard_number, write_shard
from for_search.store.store import FORMAT, MANIFEST, PARTIAL, TIMING, SkippedImage, Store, open_store, write_store

Watch = Callable[[int, int], None]  # images done, images in all

_log = logging.getLogger(__name__)

_SHARD_IMAGES = 512
_SHARD_BYTES = 2**30


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
    cluster: RayCluster | None = None,
    wrote: Callable[[str], object] | None = None,
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
    cluster: whose workers make the shards, in place of this process; None for this one. `method` is then asked for
        what it is alone, and `features` and `watch` aren't used.
    wrote: called with the names of files of the store that others could go on with: the plan, then each shard
        and its note.
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
    settings = (batch_size, shard_size, workers, progress, watch, features, metadata, cluster)
    return _Run(dataset, method, out, *settings, wrote or (lambda _: None)).start()


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
    workers: int | None
    progress: bool
    watch: Watch | None
    features: Kept | None
    metadata: Metadata | None
    cluster: RayCluster | None
    wrote: Callable[[str], object]

    def start(self) -> EmbedReport:
        if (report := self._finished_report(self._earlier_store())) is not None:
            return report
        self._refuse_foreign_folder()
        with store_locked(self.out):
            store = self._earlier_store()
            if (report := self._finished_report(store)) is not None:  # another process finished it just now
                return report
            with explained(self.out):
                begin_or_resume(self.out, files.sha256_json(self._identity()))
                self.wrote(f"{PARTIAL}/{PLAN}")
                notes = read_notes(self.out)
                finished = {shard.file for shard in shards_of(store, notes)}
                remove_leftovers(self.out, finished | (store.file_names if store else set()))
            found = difference(self.dataset, done_of(store, notes))
            if found.kept and found.todo:
                _log.info("%s: %d of %d images are done", self.out, len(found.kept), len(self.dataset.images))
            first = 1 + max((shard_number(shard.file) for shard in (store.shards if store else ())), default=-1)
            self._embed_rest(notes, first, found)
            with explained(self.out):
                return self._finish(store, notes, found)

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
        if store is None or read_notes(self.out):
            return None
        if not is_up_to_date(self.dataset, done_of(store, {})) or self._metadata(store) != store.metadata:
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

    def _embed_rest(self, notes: dict[int, FinishedShard], first: int, found: Difference) -> None:
        """Embed what there is to embed, and add a note of each shard to `notes`.

        first: the number of the first shard that no store has.
        """
        numbers = (number for number in itertools.count(first) if number not in notes)
        starts = range(0, len(found.todo), self.shard_size)
        pieces = [(next(numbers), found.todo[start : start + self.shard_size]) for start in starts]
        with tqdm(
            total=len(self.dataset.images),
            initial=len(found.kept),
            desc=f"{self.method.info.method} {self.dataset.name}",
            unit="images",
            disable=None if self.progress else True,
        ) as bar:
            n_skipped = sum(done.reason is not None for done in found.kept.values())

            def saw(pixels: Pixels) -> None:
                nonlocal n_skipped
                if isinstance(pixels, ImageError):
                    n_skipped += 1
                    bar.set_postfix(skipped=n_skipped, refresh=False)
                bar.update()

            since = time.perf_counter()
            source = self._made(pieces, found, saw) if self.cluster is None else self._made_by_cluster(pieces, found)
            with contextlib.closing(source) as shards:
                for number, made in shards:
                    if self.cluster is not None:
                        n_skipped += len(made.skipped)
                        bar.set_postfix(skipped=n_skipped, refresh=False)
                        bar.update(len(made.stamps))
                    with explained(self.out):
                        shard = write_shard(self.out, number, made.embeddings) if len(made.embeddings) else None
                        now = time.perf_counter()
                        notes[number] = FinishedShard(shard, made.images, made.skipped, made.stamps, now - since)
                        note = write_note(self.out, number, notes[number])
                    for name in (*((shard.file,) if shard else ()), note):
                        self.wrote(name)
                    since = now

    def _made(
        self, pieces: Sequence[tuple[int, Sequence[ImageRecord]]], found: Difference, saw: Callable[[Pixels], None]
    ) -> Generator[tuple[int, MadeShard], None, None]:
        """Make the shards of some numbers and images; images of the next are decoded while one is encoded.

        saw: called for each image.
        """
        workers = self.workers or default_workers()
        maker = ShardMaker(self.method, self.dataset.image_root, self.batch_size, workers)
        with contextlib.ExitStack() as stack:
            if self.features is None:
                images = self._watched(stack.enter_context(maker.decoding(found.todo)), len(found.todo))
                encode = None
            else:
                images = kept_maps(self.features, self.dataset, found.todo, self.batch_size)
                encode = self.method.encode_features  # type: ignore[attr-defined]
            stack.enter_context(contextlib.closing(images))
            for number, records in pieces:
                yield number, maker.make(records, images, found.stamps, encode, saw)

    def _made_by_cluster(
        self, pieces: Sequence[tuple[int, Sequence[ImageRecord]]], found: Difference
    ) -> Generator[tuple[int, MadeShard], None, None]:
        assert self.cluster is not None
        workers = self.workers or max(1, int(self.cluster.cpus))
        maker = {"image_root": self.dataset.image_root, "batch_size": self.batch_size, "workers": workers}
        return self.cluster.made(pieces, found.stamps, self.method.info, maker)

    def _watched(self, images: Iterator[Pixels], n_images: int) -> Generator[Pixels, None, None]:
        total = len(self.dataset.images)
        for done, pixels in enumerate(images, start=total - n_images):
            if self.watch is not None:
                self.watch(done, total)
            yield pixels

    def _finish(self, earlier: Store | None, notes: dict[int, FinishedShard], found: Difference) -> EmbedReport:
        """Write timing and manifest, and tidy up."""
        embedded = done_of(earlier, notes)
        done = {record.id: found.kept.get(record.id) or embedded[record.id] for record in self.dataset.images}
        skipped = tuple(
            SkippedImage(each.record.id, each.record.path, each.reason)
            for each in done.values()
            if each.reason is not None
        )
        if len(skipped) == len(done):
            self._give_up(skipped)
        info = self.method.info
        shards = tuple(shards_of(earlier, notes))
        if earlier is not None:
            shards, done = merged(ShardFiles(self.out, info.n_embeddings, info.dim, shards), done, self.shard_size)
        layout = layout_of(shards, done.values())
        known = done_of(earlier, {}).keys()
        new = [
            note for note in notes.values() if note.shard is None or earlier is None or note.shard not in earlier.shards
        ]
        timing = _timing(self.out, new)
        files.write_json(self.out / TIMING, timing)
        written = write_store(
            self.out,
            info,
            self.dataset.name,
            self.dataset.split,
            self.dataset.image_root,
            [each.record for each in done.values() if each.shard is not None],
            skipped,
            layout.shards,
            layout.rows,
            {image_id: each.stamp for image_id, each in done.items() if each.stamp},
            self._metadata(earlier),
        )
        remove_leftovers(self.out, written)
        shutil.rmtree(self.out / PARTIAL, ignore_errors=True)  # the store is complete; a later call clears the rest
        return EmbedReport(
            self.out,
            len(done) - len(skipped),
            len(skipped),
            len(known - done.keys()),
            timing["seconds"],
            timing["images_per_second"],
            len(found.kept),
        )

    def _metadata(self, earlier: Store | None) -> Metadata:
        """What the store shall say of the images beside what their files tell."""
        return (self.metadata or (earlier.metadata if earlier else Metadata())).of_dataset(self.dataset)

    def _give_up(self, skipped: Sequence[SkippedImage]) -> NoReturn:
        shutil.rmtree(self.out / PARTIAL)  # so that the next run looks at the images again
        with contextlib.suppress(OSError):
            self.out.rmdir()
        first = skipped[0]
        raise DataError(
            f"none of the {len(skipped)} images in {self.dataset.image_root} is usable "
            f"(the first: {first.path}: {first.reason}): check the folder"
        )


def _timing(out: Path, notes: Sequence[FinishedShard]) -> dict[str, Any]:
    """What `timing.json` is to say: the time and the images of the runs before, and of these notes."""
    earlier = files.read_note(out / TIMING) or {}
    seconds = math.fsum((*(note.seconds for note in notes), earlier.get("seconds", 0)))
    n_images = sum(len(note.images) for note in notes) + earlier.get("n_images", 0)
    return {"seconds": seconds, "n_images": n_images, "images_per_second": n_images / seconds if seconds else math.nan}


def _number(value: object) -> float:
    """A number of a note; NaN for anything else."""
    return float(value) if isinstance(value, int | float) else math.nan
