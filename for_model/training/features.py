"""The feature maps of a dataset: kept on disk when they fit a budget, else made anew by the trunk when asked for.

Everything after the frozen trunk sees only X, so training needs each image's X once an epoch and its pixels once.
Shapes: M images, b images asked for at once, K cells, Ce backbone width.
"""

import contextlib
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from for_model.backbones.protocol import ImageTextBackbone
from for_model.data.dataset import Dataset
from for_model.data.decoding import decoded, default_workers
from for_model.errors import DataError, ImageError, StoreError, UsageError
from for_model.files import cache_dir, locked, read_note, sha256_json, write_json

log = logging.getLogger(__name__)

GIB = 2**30
_CHUNK = 1024  # images between two notes of the progress, and so the most that is lost when it is killed
_BATCH = 32  # images a forward pass of the trunk

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Skipped:
    """An image that can't be decoded.

    row: its position in the dataset's images.
    path: relative to the dataset's folder.
    reason: why, in a few words.
    """

    row: int
    path: str
    reason: str


class Features:
    """The feature maps of a dataset's images, by their position in `dataset.images`.

    usable: [M] bool, False for images known from the start not to be decodable. It never changes, so that every process
        and every resumed run orders the images alike.
    skipped: the images that can't be decoded, with reasons: those that `usable` says, and those that were found later,
        when the images are decoded anew in every epoch.
    why: one sentence, for people: where the feature maps come from, and why.
    identity: hash of the images and of the weights and size that their feature maps come from.
    """

    identity: str

    usable: NDArray[np.bool_]
    skipped: list[Skipped]
    why: str

    def batches(self, order: Iterable[Rows]) -> Iterator[tuple[Rows, Tensor]]:
        """The feature maps of some images at a time.

        order: the rows of each batch, positions in the dataset's images.

        Yields, for each batch, the rows that are usable, and their X, [b, K, Ce] float32 on the device.
        """
        raise NotImplementedError


class OnTheFly(Features):
    """Decodes the images and runs the trunk whenever a batch is asked for, while the next images are being decoded.

    dataset, backbone: whose images go through which trunk.
    why, identity: see `Features`.
    workers: threads that decode images; None for one a core, at most 8.
    mirrored: look at the images' mirror images.
    """

    def __init__(
        self,
        dataset: Dataset,
        backbone: ImageTextBackbone,
        why: str,
        identity: str,
        workers: int | None = None,
        mirrored: bool = False,
    ) -> None:
        self._dataset, self._backbone, self.identity = dataset, backbone, identity
        self._preprocess = _mirror(backbone.preprocess) if mirrored else backbone.preprocess
        self._workers = workers or default_workers()
        self.usable = np.ones(len(dataset.images), bool)
        self.skipped: list[Skipped] = []
        self.why = why

    def batches(self, order: Iterable[Rows]) -> Iterator[tuple[Rows, Tensor]]:
        wanted = list(order)
        records = [self._dataset.images[row] for rows in wanted for row in rows]
        size = self._backbone.image_size
        ahead = 2 * max(_BATCH, self._workers)
        stream = decoded(records, self._dataset.image_root, 2 * size, self._preprocess, self._workers, ahead)
        with contextlib.closing(stream):
            for rows in wanted:
                images = [(row, next(stream)) for row in rows]
                kept, pixels = [], []
                for row, image in images:
                    if isinstance(image, ImageError):
                        self._skip(int(row), str(image))
                    else:
                        kept.append(row)
                        pixels.append(image)
                parts = [
                    self._backbone.features(torch.stack(pixels[start : start + _BATCH]))
                    for start in range(0, len(pixels), _BATCH)
                ]
                empty = torch.zeros(0, self._backbone.n_tokens, self._backbone.width, device=self._backbone.device)
                yield np.array(kept, np.int64), torch.cat([empty, *parts])

    def _skip(self, row: int, reason: str) -> None:
        if all(image.row != row for image in self.skipped):
            self.skipped.append(Skipped(row, self._dataset.images[row].path, reason))


class Kept(Features):
    """Reads feature maps from a memory-mapped array that `_keep` has filled.

    array: [M, K, Ce], the feature maps.
    skipped: the images that couldn't be decoded; their rows of the array are meaningless.
    device: where batches go.
    why, identity: see `Features`.
    """

    def __init__(
        self,
        array: NDArray[np.floating[Any]],
        skipped: Sequence[Skipped],
        device: torch.device,
        why: str,
        identity: str,
    ) -> None:
        self._array, self._device, self.identity = array, device, identity
        self.skipped = list(skipped)
        self.usable = np.ones(len(array), bool)
        self.usable[[image.row for image in skipped]] = False
        self.why = why

    def batches(self, order: Iterable[Rows]) -> Iterator[tuple[Rows, Tensor]]:
        for rows in order:
            rows = rows[self.usable[rows]]
            yield rows, torch.from_numpy(self._array[rows]).to(self._device, torch.float32)


def rows_in_order(count: int, size: int, first: int = 0) -> list[Rows]:
    """The rows from `first` up to `count`, `size` at a time."""
    return [np.arange(start, min(start + size, count)) for start in range(first, count, size)]


def every_image(features: Features, size: int, what: str) -> "tqdm[tuple[Rows, Tensor]]":
    """All usable images in the dataset's order, `size` at a time, with a progress bar: rows and X [b, K, Ce].

    what: the bar's words.
    """
    order = rows_in_order(len(features.usable), size)
    return tqdm(features.batches(order), total=len(order), desc=what, unit="batch", disable=None)


def open_features(
    dataset: Dataset,
    backbone: ImageTextBackbone,
    budget_gib: float,
    folder: Path | None = None,
    workers: int | None = None,
    exact: bool = False,
    mirrored: bool = False,
) -> Features:
    """The dataset's feature maps: kept on disk if all of them fit `budget_gib` and the disk, else on the fly.

    Feature maps that an earlier call has kept are used, and a call that was stopped half way is gone on with. The log
    says which of the two it is, and why.

    dataset, backbone: whose images go through which trunk.
    budget_gib: how much disk they may take, in GiB.
    folder: where they are kept; None for `features` in FOR's cache folder.
    workers: threads that decode images; None for one a core, at most 8.
    exact: keep float32 as the trunk gives it, for scoring, instead of float16, for training.
    mirrored: the feature maps of the images' mirror images, which are kept apart.

    Raises UsageError for a negative budget; StoreError when another process is filling the same folder or the disk
    can't be written; DataError when no image is usable.
    """
    if not budget_gib >= 0:
        raise UsageError(f"features.cache_gib is {budget_gib}: expected 0 or more")
    identity = _identity(dataset, backbone, mirrored)
    dtype = np.dtype(np.float32 if exact else np.float16)
    name = f"{dataset.name}_{dataset.split}_{backbone.name}_{identity[:12]}{'_mirrored' * mirrored}{'_float32' * exact}"
    target = (cache_dir() / "features" if folder is None else folder) / name
    size = len(dataset.images) * backbone.n_tokens * backbone.width * dtype.itemsize
    what = f"feature maps of {len(dataset.images):,} {'mirror ' * mirrored}images: {size / GIB:.1f} GiB"
    if size > budget_gib * GIB:
        why = f"{what}, more than the {budget_gib:g} GiB of features.cache_gib: the trunk runs anew in every epoch"
        log.info(why)
        return OnTheFly(dataset, backbone, why, identity, workers, mirrored)
    free = _free_bytes(target)
    if not (target / "features.npy").exists() and size > 0.95 * free:
        why = f"{what}, but only {free / GIB:.1f} GiB are free at {target.parent}: the trunk runs anew in every epoch"
        log.info(why)
        return OnTheFly(dataset, backbone, why, identity, workers, mirrored)
    why = f"{what}, within the {budget_gib:g} GiB of features.cache_gib: the trunk runs once, kept in {target}"
    log.info(why)
    busy = StoreError(f"{target} is being filled by another process: wait for it to finish")
    try:
        with locked(target / "lock", busy):
            skipped = _keep(
                OnTheFly(dataset, backbone, why, identity, workers, mirrored),
                target,
                (backbone.n_tokens, backbone.width),
                dtype,
            )
    except OSError as error:
        raise StoreError(
            f"{target} can't be written ({error.strerror or error}): free some space, or set features.cache_gib=0"
        ) from error
    if len(skipped) == len(dataset.images):
        shutil.rmtree(target)
        raise DataError(
            f"none of the {len(skipped)} images in {dataset.image_root} is usable "
            f"(the first: {skipped[0].path}: {skipped[0].reason}): check the folder"
        )
    array = np.load(target / "features.npy", mmap_mode="r", allow_pickle=False)
    return Kept(array, skipped, backbone.device, why, identity)


def _identity(dataset: Dataset, backbone: ImageTextBackbone, mirrored: bool) -> str:
    images = [[image.id, image.path] for image in dataset.images]
    made_by = [backbone.weights_sha256, backbone.image_size, *["mirrored"] * mirrored]
    return sha256_json([*made_by, str(dataset.image_root), images])


def _mirror(preprocess: Callable[[Image.Image], Tensor]) -> Callable[[Image.Image], Tensor]:
    """What `preprocess` makes of an image's mirror image."""
    return lambda image: preprocess(ImageOps.mirror(image))


def _free_bytes(path: Path) -> int:
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    return shutil.disk_usage(existing).free


def _keep(source: OnTheFly, target: Path, shape: tuple[int, int], dtype: "np.dtype[Any]") -> list[Skipped]:
    """Fill `target` with the source's feature maps, or go on filling it. Returns the images that were skipped."""
    count = len(source.usable)
    array_path, note_path = target / "features.npy", target / "progress.json"
    note = read_note(note_path) or {}
    known = {"done", "skipped"} <= note.keys() and array_path.exists()
    done = int(note["done"]) if known else 0
    source.skipped = [Skipped(**image) for image in note["skipped"]] if done else []
    if done == count:
        return source.skipped
    mode, options = ("r+", {}) if done else ("w+", {"dtype": dtype, "shape": (count, *shape)})
    array = np.lib.format.open_memmap(array_path, mode, **options)
    starts = range(done, count, _CHUNK)
    order = rows_in_order(count, _BATCH, first=done)
    with tqdm(total=count, initial=done, desc="feature maps", unit="image", disable=None) as bar:
        batches = source.batches(order)
        for start in starts:
            end = min(start + _CHUNK, count)
            for first in range(start, end, _BATCH):
                rows, X = next(batches)
                array[rows] = X.cpu().numpy().astype(dtype)
                bar.update(min(_BATCH, end - first))
                bar.set_postfix(skipped=len(source.skipped), refresh=False)
            array.flush()
            write_json(note_path, {"done": end, "skipped": [vars(image) for image in source.skipped]})
    return source.skipped
