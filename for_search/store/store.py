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

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from for_model.data.dataset import Dataset, ImageId, ImageRecord
from for_model.errors import StoreError
from for_model.files import cache_dir, read_own_json, sealed, sha256_json, slug, write_json
from for_model.methods.protocol import MethodInfo
from for_search.store.changes import Stamp
from for_search.store.metadata import Metadata
from for_search.store.shards import Shard, ShardFiles

FORMAT = "for-store/2"
MANIFEST = "manifest.json"
TIMING = "timing.json"
PARTIAL = ".partial"

_AGAIN = "delete the store and embed again"  # what to do about a damaged one
_BLOCK_IMAGES = 512  # gathered at once where rows aren't in the order of the images


@dataclass(frozen=True)
class SkippedImage:
    """An image of the dataset that the store has no embeddings of, and why."""

    id: ImageId
    path: str
    reason: str


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

    @cached_property
    def files(self) -> ShardFiles:
        """The shards' embeddings on disk."""
        return ShardFiles(self.path, self.info.n_embeddings, self.info.dim, self.shards)

    @property
    def ids(self) -> tuple[ImageId, ...]:
        """The ids of the M images."""
        return tuple(image.id for image in self.images)

    @property
    def n_rows(self) -> int:
        """The rows of all shards, those that are nobody's any more included."""
        return self.files.n_rows

    @property
    def rows(self) -> NDArray[np.int64]:
        """[M] int64, the row of each image, in the order of `images`."""
        return np.arange(len(self.images)) if self.own_rows is None else self.own_rows

    def image_path(self, image: ImageRecord | SkippedImage) -> Path:
        """Where an image's file lies, or lay when the store was made."""
        return self.image_root / image.path

    def shard(self, shard: Shard) -> NDArray[np.float16]:
        """See `ShardFiles.shard`."""
        return self.files.shard(shard)

    def iter_shards(self) -> Iterator[NDArray[np.float16]]:
        """The embeddings in the order of `images`, in blocks [m, N, Co] float16 that shall not be written to.

        The blocks are the shards themselves, memory-mapped, where the store hasn't grown. Raises as `shard` does.
        """
        if self.own_rows is None:
            yield from (self.shard(shard) for shard in self.shards)
        else:
            for start in range(0, len(self.images), _BLOCK_IMAGES):
                yield self.files.take(self.own_rows[start : start + _BLOCK_IMAGES])

    def embeddings(self) -> NDArray[np.float16]:
        """All embeddings in memory, in the order of `images`: [M, N, Co] float16, M x N x Co x 2 bytes."""
        return self.files.take(self.rows)

    def verify(self) -> None:
        """Read every byte of every shard. Raises StoreError for the first that differs from what was written."""
        self.files.verify()


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
            store.files.map_all()
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
        raise StoreError(f"{path / MANIFEST} is damaged ({_short(error)}): {_AGAIN}") from error


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
        return read_own_json(path / MANIFEST, FORMAT, _AGAIN, StoreError)
    except (FileNotFoundError, NotADirectoryError):
        if (path / PARTIAL).is_dir():
            raise StoreError(f"store {path} is incomplete: run the same embed command again to finish it") from None
        what = "is not an embedding store, it has no manifest.json" if path.exists() else "doesn't exist"
        raise StoreError(f"store {path} {what}: make one with the embed command") from None


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


def write_manifest(store: Store) -> None:
    """Write `store`'s manifest, which makes its folder a complete store; the shards must be there."""
    rows = None if store.own_rows is None else store.own_rows.tolist()

    def listed(image: ImageRecord | SkippedImage) -> dict[str, Any]:
        stamp = store.stamps.get(image.id)
        cells = store.metadata.cells.get(image.id, {})
        return {**asdict(image), "stamp": stamp and asdict(stamp), "cells": dict(cells)}

    write_json(
        store.path / MANIFEST,
        sealed(
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
