"""An embedding store on disk: the embeddings of a dataset's images by one method.

    STORE/embeddings-00000.npy   [m, N, Co] float16, unit-norm; one file a shard, never changed once it is written
          manifest.json          the method, the dataset, which rows are each image's, what was skipped, all hashes
          timing.json            how long it took; the only file that differs between two runs of one command
          .partial/              while it is being made or grows: whose it is, and a note of each finished shard

The rows of a fresh store are in the order of the images' ids. A store that has grown has the rows of the images that
came later in shards of their own, after the others; `rows` says which row is whose, and rows that are nobody's any more
stay where they are until their shard is written again. What a store holds changes when its manifest is renamed into its
place, so a reader sees the store before a change or after it. Whoever has opened a store keeps what was there.
`for_search.store.embed` writes stores.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from for_model import files
from for_model.data.dataset import Dataset, ImageId, ImageRecord
from for_model.errors import StoreError
from for_model.files import cache_dir, sha256_json, slug
from for_model.methods.protocol import MethodInfo
from for_search.store.changes import Stamp
from for_search.store.metadata import Metadata

FORMAT = "for-store/2"
MANIFEST = "manifest.json"
TIMING = "timing.json"
PARTIAL = ".partial"

# Rounding to float16 changes the norm of a unit vector by at most one part in 2,048.
_NORM_TOLERANCE = 2e-3
_BLOCK_IMAGES = 512  # gathered at once where rows aren't in the order of the images


@dataclass(frozen=True)
class SkippedImage:
    """An image of the dataset that the store has no embeddings of, and why."""

    id: ImageId
    path: str
    reason: str


@dataclass(frozen=True)
class Shard:
    """One file of embeddings: its name within the store, its rows and its hash."""

    file: str
    n_images: int
    sha256: str


@dataclass(frozen=True)
class Store:
    """An open store; its embeddings stay on disk until they are asked for.

    images: the M images with embeddings, in ascending order of id.
    skipped: the dataset's other images, in ascending order of id.
    shards: the files, in the order of their rows.
    own_rows: [M] int64, the row of each image among those of all shards; None where row i is image i's.
    stamps: image id -> its file as it was embedded or skipped; without the ids of images that aren't files.
    metadata: what is said of the images beside that.
    sha256: the hash that the manifest has of itself: that of another store, or of this one in another state, differs.
    """

    path: Path
    info: MethodInfo
    dataset: str
    split: str
    image_root: Path
    images: tuple[ImageRecord, ...]
    skipped: tuple[SkippedImage, ...]
    shards: tuple[Shard, ...]
    own_rows: NDArray[np.int64] | None = field(default=None, compare=False)
    stamps: Mapping[ImageId, Stamp] = field(default_factory=dict, compare=False, repr=False)
    metadata: Metadata = field(default_factory=Metadata, compare=False, repr=False)
    sha256: str = field(default="", compare=False)
    _maps: dict[str, NDArray[np.float16]] = field(default_factory=dict, compare=False, repr=False)
    _sound: set[str] = field(default_factory=set, compare=False, repr=False)

    @property
    def ids(self) -> tuple[ImageId, ...]:
        """The ids of the M images."""
        return tuple(image.id for image in self.images)

    @property
    def n_rows(self) -> int:
        """The rows of all shards, those that are nobody's any more included."""
        return sum(shard.n_images for shard in self.shards)

    @property
    def rows(self) -> NDArray[np.int64]:
        """[M] int64, the row of each image, in the order of `images`."""
        return np.arange(len(self.images)) if self.own_rows is None else self.own_rows

    def image_path(self, image: ImageRecord | SkippedImage) -> Path:
        """Where an image's file lies, or lay when the store was made."""
        return self.image_root / image.path

    def shard(self, shard: Shard) -> NDArray[np.float16]:
        """The rows of one shard, [m, N, Co] float16, memory-mapped and read-only, its hash checked on first use.

        Raises StoreError when a byte differs from what was written.
        """
        if shard.file not in self._maps:
            self._maps[shard.file] = _map_shard(self.path, shard, self.info)
        array = self._maps[shard.file]
        if shard.file not in self._sound:
            digest = hashlib.sha256(_npy_header(array.shape))
            digest.update(array.reshape(-1).view(np.uint8).data)
            if digest.hexdigest() != shard.sha256:
                raise StoreError(
                    f"{self.path / shard.file} is damaged, its hash is not the manifest's: "
                    "delete the store and embed again"
                )
            self._sound.add(shard.file)
        return array

    def iter_shards(self) -> Iterator[NDArray[np.float16]]:
        """The embeddings in the order of `images`, in blocks [m, N, Co] float16 that shall not be written to.

        The blocks are the shards themselves, memory-mapped, where the store hasn't grown. Raises as `shard` does.
        """
        if self.own_rows is None:
            yield from (self.shard(shard) for shard in self.shards)
        else:
            for start in range(0, len(self.images), _BLOCK_IMAGES):
                yield self.take(self.own_rows[start : start + _BLOCK_IMAGES])

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        """Some rows, in the order in which they are asked for: [m, N, Co] float16. Raises as `shard` does."""
        ends = np.cumsum([shard.n_images for shard in self.shards])
        places = np.searchsorted(ends, rows, side="right")
        taken = np.empty((len(rows), self.info.n_embeddings, self.info.dim), dtype=np.float16)
        for place in np.unique(places).tolist():
            chosen = places == place
            taken[chosen] = self.shard(self.shards[place])[rows[chosen] - ends[place] + self.shards[place].n_images]
        return taken

    def embeddings(self) -> NDArray[np.float16]:
        """All embeddings in memory, in the order of `images`: [M, N, Co] float16, M x N x Co x 2 bytes."""
        return self.take(self.rows)

    def verify(self) -> None:
        """Read every byte of every shard. Raises StoreError for the first that differs from what was written."""
        self._sound.clear()
        for shard in self.shards:
            self.shard(shard)


def open_store(path: Path) -> Store:
    """Read a store's manifest and check that its shards are there and of the right size; no embedding is read.

    Raises StoreError when there is no store at `path`, it is incomplete, damaged or of another format version, or it
    can't be read.
    """
    path = Path(path)
    while True:
        manifest = _read_manifest(path)
        store = _store_of(path, manifest)
        try:
            store._maps.update({shard.file: _map_shard(path, shard, store.info) for shard in store.shards})
        except StoreError:
            if _read_manifest(path) == manifest:
                raise
        else:
            return store
        # The store has changed since its manifest was read, and its earlier shards are gone.


def check_store(path: Path) -> Iterator[tuple[str, StoreError | None]]:
    """Check every byte of a store: the name of each file, and what is wrong with it."""
    try:
        store = _store_of(path, _read_manifest(path))
    except StoreError as error:
        yield MANIFEST, error
        return
    yield MANIFEST, None
    for shard in store.shards:
        yield shard.file, problem_of(partial(store.shard, shard))


def problem_of(check: Callable[[], object]) -> StoreError | None:
    """What a check raises; None for nothing."""
    try:
        check()
    except StoreError as error:
        return error
    return None


def _store_of(path: Path, manifest: dict[str, Any]) -> Store:
    try:
        return _from_manifest(path, manifest)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(f"{path / MANIFEST} is damaged ({_short(error)}): delete the store and embed again") from error


def store_path(dataset: Dataset, info: MethodInfo, stores: Path | None = None) -> Path:
    """Where the store of a dataset and a method is kept, so that a later run finds it again."""
    identity = [info.to_json(), str(dataset.image_root), [image.id for image in dataset.images]]
    name = slug(dataset.name, dataset.split, info.backbone, info.method, sha256_json(identity)[:12])
    return (stores or cache_dir() / "stores") / name


def _short(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error)


def _read_manifest(path: Path) -> dict[str, Any]:
    """The manifest as JSON, its format and its own hash checked."""
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        if (path / PARTIAL).is_dir():
            raise StoreError(f"store {path} is incomplete: run the same embed command again to finish it") from None
        what = "is not an embedding store, it has no manifest.json" if path.exists() else "doesn't exist"
        raise StoreError(f"store {path} {what}: make one with the embed command") from None
    except OSError as error:
        raise StoreError(f"{path / MANIFEST} can't be read ({error.strerror}): check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise StoreError(
            f"{path / MANIFEST} is damaged, it is not valid JSON ({_short(error)}): delete the store and embed again"
        ) from error
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise StoreError(f"{path / MANIFEST} is of format {found!r}, expected {FORMAT!r}: embed again")
    if not files.is_sealed(manifest):
        raise StoreError(f"{path / MANIFEST} is damaged, its own hash differs: delete the store and embed again")
    return manifest


def _from_manifest(path: Path, manifest: dict[str, Any]) -> Store:
    """Raises KeyError, TypeError, ValueError or AttributeError for a manifest that contradicts itself."""
    listed = [*manifest["images"], *manifest["skipped"]]
    rows = manifest["rows"]
    store = Store(
        path=path,
        info=MethodInfo(**manifest["method"]),
        dataset=manifest["dataset"],
        split=manifest["split"],
        image_root=Path(manifest["image_root"]),
        images=tuple(ImageRecord(image["id"], image["path"]) for image in manifest["images"]),
        skipped=tuple(SkippedImage(image["id"], image["path"], image["reason"]) for image in manifest["skipped"]),
        shards=tuple(Shard(**shard) for shard in manifest["shards"]),
        own_rows=None if rows is None else np.array(rows, dtype=np.int64),
        stamps={image["id"]: Stamp(**image["stamp"]) for image in listed if image["stamp"]},
        metadata=Metadata(
            dict(manifest["columns"]), {image["id"]: image["cells"] for image in listed if image["cells"]}
        ),
        sha256=manifest["sha256"],
    )
    if any(a >= b for a, b in pairwise(store.ids)):  # type: ignore[operator]
        raise ValueError("image ids are not ascending")
    n_images = manifest["n_images"]
    if not len(store.images) == len(store.rows) == n_images or (rows is None and n_images != store.n_rows):
        raise ValueError(f"n_images is {n_images}, but {len(store.images)} images and {store.n_rows} rows are listed")
    if n_images and not 0 <= store.rows.min() <= store.rows.max() < store.n_rows:
        raise ValueError(f"images have rows beyond the {store.n_rows} that there are")
    for shard in store.shards:
        if Path(shard.file).name != shard.file:  # a manifest from elsewhere must not lead out of its folder
            raise ValueError(f"shard {shard.file!r} is not a plain file name")
    return store


def _npy_header(shape: tuple[int, ...]) -> bytes:
    """How a shard's file begins: NumPy writes the same bytes for the same shape."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f2", "fortran_order": False, "shape": tuple(shape)})
    return header.getvalue()


def _map_shard(folder: Path, shard: Shard, info: MethodInfo) -> NDArray[np.float16]:
    """Memory-map a shard, [m, N, Co] float16. Raises StoreError when it isn't what the manifest says.

    The header is compared, not parsed: nothing in a damaged one can mislead NumPy.
    """
    path = folder / shard.file
    shape = (shard.n_images, info.n_embeddings, info.dim)
    header = _npy_header(shape)
    n_bytes = len(header) + 2 * shard.n_images * info.n_embeddings * info.dim
    try:
        with path.open("rb") as stream:
            found = path.stat().st_size
            if found != n_bytes or stream.read(len(header)) != header:
                raise StoreError(
                    f"{path} is damaged, it isn't the {n_bytes} bytes of float16 {list(shape)} "
                    f"that were written (it has {found}): delete the store and embed again"
                )
            return np.memmap(stream, np.dtype("<f2"), "r", len(header), shape)
    except FileNotFoundError:
        raise StoreError(f"{path} is missing: delete the store and embed again") from None
    except OSError as error:
        raise StoreError(f"{path} can't be read ({error.strerror or error}): check its permissions") from error


def shard_file(number: int) -> str:
    """The file name of a shard, by its number in the plan."""
    return f"embeddings-{number:05d}.npy"


def shard_number(file: str) -> int:
    """The number of a shard, by its file name."""
    return int(file.removeprefix("embeddings-").removesuffix(".npy"))


def write_shard(folder: Path, number: int, embeddings: NDArray[np.float32]) -> Shard:
    """Write one shard atomically, as float16.

    embeddings: [m, N, Co] float32, unit-norm; m at least 1.
    Raises StoreError when a value isn't finite or a vector isn't unit-norm after rounding to float16.
    """
    rounded = embeddings.astype(np.float16)
    norms = np.linalg.norm(rounded.astype(np.float32), axis=-1)  # [m, N]
    if not np.isfinite(norms).all():
        raise StoreError(f"shard {number}: the method gave embeddings that are not finite: check its weights")
    worst = float(np.abs(norms - 1).max())
    if worst > _NORM_TOLERANCE:
        raise StoreError(
            f"shard {number}: the method gave an embedding whose length is off 1 by {worst:.2g}, expected unit length"
        )
    path = folder / shard_file(number)
    with files.atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, rounded, allow_pickle=False)
    return Shard(path.name, len(rounded), files.sha256_file(path))


def write_manifest(store: Store) -> None:
    """Write `store`'s manifest, which makes its folder a complete store; the shards must be there."""
    rows = None if store.own_rows is None else store.own_rows.tolist()

    def listed(image: ImageRecord | SkippedImage) -> dict[str, Any]:
        stamp = store.stamps.get(image.id)
        cells = store.metadata.cells.get(image.id, {})
        return {**asdict(image), "stamp": stamp and asdict(stamp), "cells": dict(cells)}

    files.write_json(
        store.path / MANIFEST,
        files.sealed(
            {
                "format": FORMAT,
                "method": store.info.to_json(),
                "dataset": store.dataset,
                "split": store.split,
                "image_root": str(store.image_root),
                "n_images": len(store.images),
                "shards": [asdict(shard) for shard in store.shards],
                "rows": rows if rows != list(range(store.n_rows)) else None,
                "columns": dict(store.metadata.types),
                "images": [listed(image) for image in store.images],
                "skipped": [listed(image) for image in store.skipped],
            }
        ),
    )
