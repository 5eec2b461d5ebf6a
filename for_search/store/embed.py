"""Dataset x method -> embedding store, resumable.

Images are cut into shards of a fixed number in the order of their ids, before it is known which can be decoded, and no
batch crosses a shard. So a run that was killed and started again goes through the same batches, and its store is the
same to the byte as that of a run that wasn't.
"""

import contextlib
import logging
import math
import re
import shutil
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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
from for_search.store.store import (
    FORMAT,
    MANIFEST,
    PARTIAL,
    TIMING,
    Shard,
    SkippedImage,
    Store,
    open_store,
    write_manifest,
    write_shard,
)

Watch = Callable[[int, int], None]  # images done, images in all

_log = logging.getLogger(__name__)

_PLAN = "plan.json"
_LOCK = "lock"

_SHARD_IMAGES = 512
_SHARD_BYTES = 2**30

# What a killed run may leave beside finished files; `files.atomic_path` names them so.
_LEFTOVER = re.compile(r"\.(embeddings-\d+\.npy|manifest\.json|timing\.json|shard-\d+\.json|plan\.json)\..+\.tmp")


@dataclass(frozen=True)
class EmbedReport:
    """What a run of `embed` did, and the store it ends with.

    n_images: images with embeddings.  n_skipped: images without, listed with reasons in the store.
    seconds: of wall time, over all the runs that it took, without what killed runs lost; NaN where it isn't known.
    images_per_second: n_images / seconds.
    resumed_images: images of the dataset, skipped ones included, that earlier runs had done.
    """

    store: Path
    n_images: int
    n_skipped: int
    seconds: float
    images_per_second: float
    resumed_images: int


@dataclass(frozen=True)
class _Finished:
    """A finished shard, as its note in `.partial` tells it; `shard` is None when all its images were skipped."""

    shard: Shard | None
    skipped: tuple[SkippedImage, ...]
    seconds: float

    @classmethod
    def from_json(cls, note: dict[str, Any]) -> "_Finished":
        skipped = tuple(SkippedImage(**image) for image in note["skipped"])
        return cls(Shard(**note["shard"]) if note["shard"] else None, skipped, note["seconds"])


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
) -> EmbedReport:
    """Embed every image of `dataset` with `method` into a store at `out`, or go on with one that was begun.

    batch_size: images a forward pass.  shard_size: images of the dataset a file, and so what a kill can lose; None for
        512, or for fewer where the embeddings of so many would take more than 1 GiB of memory.
    workers: threads that decode and preprocess while the method computes; by default one a core, at most 8. Their
        number doesn't change the result.
    progress: show progress on stderr, if that is a terminal.
    watch: called before each image with the number done and the number in all; what it raises ends the run.
    features: the dataset's feature maps by the method's own backbone, kept with `exact`, instead of its images: the
        same embeddings without decoding an image or running the trunk. Only for a `ClipMethod`.
    JPEGs larger than four times the method's `image_size` are decoded at reduced size, twice `image_size` or more.
    Images that can't be decoded are skipped, and recorded with the reason. A finished store of the same images and
    method is left as it is.
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
        dataset, method, out, batch_size, shard_size, workers or default_workers(), progress, watch, features
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

    def start(self) -> EmbedReport:
        if (report := self._finished_report()) is not None:
            return report
        self._refuse_foreign_folder()
        partial = self.out / PARTIAL
        with _locked(self.out):
            if (report := self._finished_report()) is not None:  # another process finished it just now
                return report
            with _writing(self.out):
                _remove_leftovers(self.out)
                self._begin_or_resume(partial)
            finished = self._read_notes(partial)
            resumed = sum(len(self._records(number)) for number in finished)
            if resumed:
                _log.info("%s: going on after %d of %d images", self.out, resumed, len(self.dataset.images))
            self._embed_rest(partial, finished)
            with _writing(self.out):
                return self._finish(partial, finished, resumed)

    def _plan(self) -> dict[str, Any]:
        """What must be equal for a run to go on with an earlier one's shards."""
        return {
            "format": FORMAT,
            "method": self.method.info.to_json(),
            "dataset": self.dataset.name,
            "split": self.dataset.split,
            "image_root": str(self.dataset.image_root),
            "images": [[image.id, image.path] for image in self.dataset.images],
            "shard_size": self.shard_size,
        }

    def _records(self, number: int) -> tuple[ImageRecord, ...]:
        """The images of a shard, before any is skipped."""
        return self.dataset.images[number * self.shard_size : (number + 1) * self.shard_size]

    @property
    def _n_shards(self) -> int:
        return math.ceil(len(self.dataset.images) / self.shard_size)

    def _finished_report(self) -> EmbedReport | None:
        """The report on a finished store at `out`; None when there is none. Raises StoreError for another plan's."""
        if not (self.out / MANIFEST).exists():
            return None
        store = open_store(self.out)
        listed = {image.id: image.path for image in store.images}
        listed.update({image.id: image.path for image in store.skipped})
        differences = {
            "method": files.sha256_json(store.info.to_json()) != files.sha256_json(self.method.info.to_json()),
            "dataset": (store.dataset, store.split) != (self.dataset.name, self.dataset.split),
            "image folder": store.image_root != self.dataset.image_root,
            "list of images": listed != {image.id: image.path for image in self.dataset.images},
        }
        if any(differences.values()):
            what = " and ".join(name for name, differs in differences.items() if differs)
            raise StoreError(f"{self.out} is a finished store of another {what}: choose another --out, or delete it")
        shutil.rmtree(self.out / PARTIAL, ignore_errors=True)  # left by a run killed just after its manifest
        seconds = _read_seconds(self.out / TIMING)
        n_images = len(store.images)
        return EmbedReport(
            self.out, n_images, len(store.skipped), seconds, _rate(n_images, seconds), len(self.dataset.images)
        )

    def _refuse_foreign_folder(self) -> None:
        """Never write into a folder that holds something else: `out` may be a slip for the folder of photos."""
        if self.out.exists() and not self.out.is_dir():
            raise StoreError(f"{self.out} is a file: choose a folder for the store with --out")
        if self.out.is_dir() and not (self.out / PARTIAL).is_dir() and any(self.out.iterdir()):
            raise StoreError(f"{self.out} holds files that are not an embedding store's: choose another --out")

    def _begin_or_resume(self, partial: Path) -> None:
        """Write the plan, or check that an earlier run's is the same."""
        plan_hash = files.sha256_json(self._plan())
        earlier = files.read_note(partial / _PLAN)
        if earlier is None:  # killed before it began, or while it was cleaning up
            for note in partial.glob("shard-*.json"):
                note.unlink()
            files.write_json(partial / _PLAN, {"plan": plan_hash})
        elif earlier.get("plan") != plan_hash:
            raise StoreError(
                f"{self.out} holds an unfinished store of another method, dataset or shard size: "
                "choose another --out, or delete it"
            )

    def _read_notes(self, partial: Path) -> dict[int, _Finished]:
        """Shard number -> what earlier runs finished; a shard whose file has gone is to be done again."""
        finished = {}
        for number in range(self._n_shards):
            note = files.read_note(partial / _note(number))
            done = _Finished.from_json(note) if note else None
            if done and (done.shard is None or (self.out / done.shard.file).is_file()):
                finished[number] = done
        return finished

    def _embed_rest(self, partial: Path, finished: dict[int, _Finished]) -> None:
        """Embed the shards that `finished` lacks, and add them to it."""
        todo = [number for number in range(self._n_shards) if number not in finished]
        records = [record for number in todo for record in self._records(number)]
        n_skipped = sum(len(done.skipped) for done in finished.values())
        since = time.perf_counter()
        with (
            tqdm(
                total=len(self.dataset.images),
                initial=len(self.dataset.images) - len(records),
                desc=f"{self.method.info.method} {self.dataset.name}",
                unit="images",
                disable=None if self.progress else True,
            ) as bar,
            contextlib.closing(self._kept(records) if self.features else self._decode(records)) as decoded,
        ):
            for number in todo:
                embeddings, skipped = self._embed_shard(number, decoded, bar, n_skipped)
                n_skipped += len(skipped)
                with _writing(self.out):
                    shard = write_shard(self.out, number, embeddings) if len(embeddings) else None
                    now = time.perf_counter()
                    finished[number] = _Finished(shard, skipped, now - since)
                    files.write_json(partial / _note(number), asdict(finished[number]))
                since = now

    def _embed_shard(
        self, number: int, decoded: Iterator[Pixels], bar: "tqdm[Any]", n_skipped: int
    ) -> tuple[NDArray[np.float32], tuple[SkippedImage, ...]]:
        """The embeddings [m, N, Co] of one shard's m usable images, and its other images.

        decoded: gives what became of this shard's images next.  n_skipped: of the shards before, for the bar.
        """
        info = self.method.info
        blocks = [np.empty((0, info.n_embeddings, info.dim), dtype=np.float32)]
        batch: list[torch.Tensor] = []
        skipped: list[SkippedImage] = []
        for record in self._records(number):
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

    def _finish(self, partial: Path, finished: dict[int, _Finished], resumed: int) -> EmbedReport:
        """Write timing and manifest, and tidy up."""
        done = [finished[number] for number in sorted(finished)]
        skipped = tuple(image for each in done for image in each.skipped)
        skipped_ids: set[ImageId] = {image.id for image in skipped}
        images = tuple(image for image in self.dataset.images if image.id not in skipped_ids)
        if not images:
            shutil.rmtree(partial)  # so that the next run looks at the images again
            with contextlib.suppress(OSError):
                self.out.rmdir()
            first = skipped[0]
            raise DataError(
                f"none of the {len(skipped)} images in {self.dataset.image_root} is usable "
                f"(the first: {first.path}: {first.reason}): check the folder"
            )
        seconds = math.fsum(each.seconds for each in done)
        rate = _rate(len(images), seconds)
        timing = {"seconds": seconds, "n_images": len(images), "images_per_second": rate}
        files.write_json(self.out / TIMING, timing)
        write_manifest(
            Store(
                path=self.out,
                info=self.method.info,
                dataset=self.dataset.name,
                split=self.dataset.split,
                image_root=self.dataset.image_root,
                images=images,
                skipped=skipped,
                shards=tuple(each.shard for each in done if each.shard),
            )
        )
        shutil.rmtree(partial, ignore_errors=True)  # the store is complete; a later call clears what is left
        return EmbedReport(self.out, len(images), len(skipped), seconds, rate, resumed)


def _note(number: int) -> str:
    """The file in `.partial` that says that a shard is finished."""
    return f"shard-{number:05d}.json"


def _rate(n_images: int, seconds: float) -> float:
    return n_images / seconds if seconds > 0 else math.nan


def _read_seconds(path: Path) -> float:
    seconds = (files.read_note(path) or {}).get("seconds")
    return float(seconds) if isinstance(seconds, int | float) else math.nan


def _remove_leftovers(out: Path) -> None:
    """Remove the temporary files of a killed run; the lock makes sure that nobody is writing them."""
    for folder in (out, out / PARTIAL):
        for path in folder.iterdir():
            if _LEFTOVER.fullmatch(path.name):
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
