"""An embedding store on disk: the embeddings of a dataset's images by one method.

    STORE/embeddings-00000.npy   [m, N, Co] float16, unit-norm; one file a shard, never changed once it is written
          images-HASH.sqlite     the table of images, see `for_search.store.image_table`, named by its content
          manifest.json          the method, the dataset, which rows are each image's, what was skipped, all hashes
          timing.json            how long it took; the only file that differs between two runs of one command
          .partial/              while it is being made or grows: whose it is, and a note of each finished shard

The rows of a fresh store are in the order of the images' ids. A store that has grown has the rows of the images that
came later in shards of their own, after the others; `rows` says which row is whose, and rows that are nobody's any more
stay where they are until their shard is written again. What a store holds changes when its manifest is renamed into its
place, so a reader sees the store before a change or after it. Whoever has opened a store keeps what was there.
`for_search.store.embed` writes stores.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from for_model.data.dataset import Dataset, ImageId, ImageRecord
from for_model.errors import StoreError
from for_model.files import cache_dir, read_own_json, sealed, sha256_file, sha256_json, slug, write_json
from for_model.methods.protocol import MethodInfo
from for_search.store.changes import Stamp
from for_search.store.image_rows import HIDDEN_COLUMNS, StoredImage, image_of, row_of
from for_search.store.image_table import ColumnType, ImageTable, write_image_table
from for_search.store.metadata import Metadata
from for_search.store.shards import Shard, ShardFiles

FORMAT = "for-store/3"
MANIFEST = "manifest.json"
TIMING = "timing.json"
PARTIAL = ".partial"

_AGAIN = "delete the store and embed again"  # what to do about a damaged one
_TABLE = re.compile(r"images-[0-9a-f]{16}\.sqlite")
_BLOCK_IMAGES = 512  # gathered at once where rows aren't in the order of the images


@dataclass(frozen=True)
class SkippedImage:
    """An image of the dataset that the store has no embeddings of, and why."""

    id: ImageId
    path: str
    reason: str


@dataclass(frozen=True)
class Store:
    """An open store; its embeddings and its table of images stay on disk until they are asked for.

    images: the M images with embeddings, in ascending order of id.
    skipped_images: the dataset's other images, in ascending order of id.
    shards: the files, in the order of their rows.
    own_rows: [M] int64, the row of each image among those of all shards; None where row i is image i's.
    types: of the user's columns, by name.
    sha256: the hash that the manifest has of itself: that of another store, or of this one in another state, differs.
    """

    path: Path
    info: MethodInfo
    dataset: str
    split: str
    image_root: Path
    images: ImageTable
    skipped_images: tuple[StoredImage, ...]
    shards: tuple[Shard, ...]
    own_rows: NDArray[np.int64] | None
    types: Mapping[str, ColumnType]
    sha256: str

    @cached_property
    def files(self) -> ShardFiles:
        """The shards' embeddings on disk."""
        return ShardFiles(self.path, self.info.n_embeddings, self.info.dim, self.shards)

    @property
    def file_names(self) -> set[str]:
        """What the manifest lists of the store's folder."""
        return {self.images.path.name, *(shard.file for shard in self.shards)}

    @property
    def ids(self) -> tuple[ImageId, ...]:
        """The ids of the M images."""
        return tuple(image.id for image in self.images)

    @cached_property
    def skipped(self) -> tuple[SkippedImage, ...]:
        """The dataset's other images, and why they were skipped."""
        return tuple(SkippedImage(each.record.id, each.record.path, each.reason or "") for each in self.skipped_images)

    def known_images(self) -> Iterator[StoredImage]:
        """The M images with all that is known of them, in the order of `images`, read as they are asked for."""
        return (image_of(row, self.types) for row in self.images.iter_rows())

    @property
    def metadata(self) -> Metadata:
        """What is said of the images beside what their files tell; read anew each time."""
        known = (*self.known_images(), *self.skipped_images)
        return Metadata(self.types, {each.record.id: each.cells for each in known if each.cells})

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
    """Open a store: its manifest and its table of images are checked, its shards are there and of the right size; no
    embedding is read.

    Raises StoreError when there is no store at `path`, it is incomplete, damaged or of another format version, or it
    can't be read.
    """
    path = Path(path)
    while True:
        manifest = _read_manifest(path)
        try:
            store = _store_of(path, manifest)
            store.files.map_all()
        except StoreError:
            if _read_manifest(path) == manifest:
                raise
        else:
            return store
        # The store has changed since its manifest was read, and its earlier files are gone.


def check_store(path: Path) -> Iterator[tuple[str, StoreError | None]]:
    """Check every byte of a store: the name of each file, and what is wrong with it."""
    try:
        manifest = _read_manifest(path)
        table, _ = _table_of(path, manifest)
    except StoreError as error:
        yield MANIFEST, error
        return
    try:
        store = _store_of(path, manifest)
    except StoreError as error:
        at_table = str(path / table) in str(error)
        yield MANIFEST, None if at_table else error
        if at_table:
            yield table, error
        return
    yield MANIFEST, None
    yield table, problem_of(partial(_check_ids, store))
    for shard in store.shards:
        yield shard.file, problem_of(partial(store.shard, shard))


def problem_of(check: Callable[[], object]) -> StoreError | None:
    """What a check raises; None for nothing."""
    try:
        check()
    except StoreError as error:
        return error
    return None


def _check_ids(store: Store) -> None:
    if any(not a < b for a, b in pairwise(store.ids)):  # type: ignore[operator]
        raise StoreError(f"{store.images.path} is damaged (image ids are not ascending): {_AGAIN}")


def _table_of(path: Path, manifest: dict[str, Any]) -> tuple[str, str]:
    """The table's file name and hash. Raises StoreError for a name that isn't one."""
    table = manifest.get("table")
    if not isinstance(table, dict) or not isinstance(table.get("sha256"), str):
        raise StoreError(f"{path / MANIFEST} is damaged (no table): {_AGAIN}")
    if not isinstance(table.get("file"), str) or not _TABLE.fullmatch(table["file"]):
        raise StoreError(f"{path / MANIFEST} is damaged ({table.get('file')!r} is no table's name): {_AGAIN}")
    return table["file"], table["sha256"]


def _store_of(path: Path, manifest: dict[str, Any]) -> Store:
    file, sha256 = _table_of(path, manifest)
    table = path / file
    try:
        sound = sha256_file(table) == sha256
    except FileNotFoundError:
        raise StoreError(f"{table} is missing: {_AGAIN}") from None
    except OSError as error:
        raise StoreError(f"{table} can't be read ({error.strerror or error}): check its permissions") from error
    if not sound:
        raise StoreError(f"{table} is damaged, its hash is not the manifest's: {_AGAIN}")
    try:
        return _from_manifest(path, manifest, ImageTable.open(table))
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


def _from_manifest(path: Path, manifest: dict[str, Any], images: ImageTable) -> Store:
    """Raises KeyError, TypeError, ValueError or AttributeError for a manifest that contradicts itself or the table."""
    rows = manifest["rows"]
    store = Store(
        path=path,
        info=MethodInfo(**manifest["method"]),
        dataset=manifest["dataset"],
        split=manifest["split"],
        image_root=Path(manifest["image_root"]),
        images=images,
        skipped_images=tuple(
            StoredImage(
                ImageRecord(image["id"], image["path"]),
                Stamp(**image["stamp"]) if image["stamp"] else None,
                image["cells"],
                image["reason"],
            )
            for image in manifest["skipped"]
        ),
        shards=tuple(Shard(**shard) for shard in manifest["shards"]),
        own_rows=None if rows is None else np.array(rows, dtype=np.int64),
        types=dict(manifest["columns"]),
        sha256=manifest["sha256"],
    )
    n_images = manifest["n_images"]
    if not len(images) == len(store.rows) == n_images or (rows is None and n_images != store.n_rows):
        raise ValueError(f"n_images is {n_images}, but {len(images)} images and {store.n_rows} rows are listed")
    if n_images and not 0 <= store.rows.min() <= store.rows.max() < store.n_rows:
        raise ValueError(f"images have rows beyond the {store.n_rows} that there are")
    for shard in store.shards:
        if Path(shard.file).name != shard.file:  # a manifest from elsewhere must not lead out of its folder
            raise ValueError(f"shard {shard.file!r} is not a plain file name")
    return store


def write_store(
    path: Path,
    info: MethodInfo,
    dataset: str,
    split: str,
    image_root: Path,
    images: Sequence[ImageRecord],
    skipped: Sequence[SkippedImage],
    shards: Sequence[Shard],
    own_rows: NDArray[np.int64] | None = None,
    stamps: Mapping[ImageId, Stamp] = MappingProxyType({}),
    metadata: Metadata | None = None,
) -> set[str]:
    """Write the table of images and the manifest, which makes a folder a complete store; the shards must be there.

    stamps: image id -> its file as it was embedded or skipped; without the ids of images that aren't files.
    For the others see `Store`. Returns the names of all files that the manifest lists.
    """
    metadata = metadata or Metadata()
    cells = metadata.cells
    known = (StoredImage(image, stamps.get(image.id), cells.get(image.id, {})) for image in images)
    new = path / "images-new.sqlite"
    write_image_table(new, map(row_of, known), metadata.types, HIDDEN_COLUMNS)
    sha256 = sha256_file(new)
    table = new.replace(path / f"images-{sha256[:16]}.sqlite")

    def listed(image: SkippedImage) -> dict[str, Any]:
        stamp = stamps.get(image.id)
        return {**asdict(image), "stamp": stamp and asdict(stamp), "cells": dict(cells.get(image.id, {}))}

    n_rows = sum(shard.n_images for shard in shards)
    plain = own_rows is None or np.array_equal(own_rows, np.arange(n_rows))
    write_json(
        path / MANIFEST,
        sealed(
            {
                "format": FORMAT,
                "method": info.to_json(),
                "dataset": dataset,
                "split": split,
                "image_root": str(image_root),
                "n_images": len(images),
                "shards": [asdict(shard) for shard in shards],
                "rows": None if plain or own_rows is None else own_rows.tolist(),
                "table": {"file": table.name, "sha256": sha256},
                "columns": dict(metadata.types),
                "skipped": [listed(image) for image in skipped],
            }
        ),
    )
    return {table.name, *(shard.file for shard in shards)}
