"""An embedding store on disk: the embeddings of a dataset's images by one method.

    STORE/embeddings-00000.npy   [m, N, Co] float16, unit-norm; one file a shard
          manifest.json          the method, the dataset, which image each row is, and what was skipped
          timing.json            how long it took; the only file that differs between two runs of one command
          .partial/              while it is being made: the plan, and a note of each finished shard

The manifest is written last, so that a folder with one is complete. `for_search.store.embed` writes stores.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
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

FORMAT = "for-store/1"
MANIFEST = "manifest.json"
TIMING = "timing.json"
PARTIAL = ".partial"

# Rounding to float16 changes the norm of a unit vector by at most one part in 2,048.
_NORM_TOLERANCE = 2e-3


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

    images: the M images with embeddings, in ascending order of id, which is the order of the rows.
    skipped: the dataset's other images, in ascending order of id.
    """

    path: Path
    info: MethodInfo
    dataset: str
    split: str
    image_root: Path
    images: tuple[ImageRecord, ...]
    skipped: tuple[SkippedImage, ...]
    shards: tuple[Shard, ...]

    @property
    def ids(self) -> tuple[ImageId, ...]:
        """The ids of the M images, in the order of the rows."""
        return tuple(image.id for image in self.images)

    def image_path(self, image: ImageRecord | SkippedImage) -> Path:
        """Where an image's file lies, or lay when the store was made."""
        return self.image_root / image.path

    def iter_shards(self) -> Iterator[NDArray[np.float16]]:
        """The shards in the order of `images`, each [m, N, Co] float16, memory-mapped and read-only."""
        for shard in self.shards:
            yield _map_shard(self.path, shard, self.info)

    def embeddings(self) -> NDArray[np.float16]:
        """All embeddings in memory: [M, N, Co] float16, M x N x Co x 2 bytes."""
        array = np.empty((len(self.images), self.info.n_embeddings, self.info.dim), dtype=np.float16)
        start = 0
        for shard in self.iter_shards():
            array[start : start + len(shard)] = shard
            start += len(shard)
        return array

    def verify(self, hashes: bool = True) -> None:
        """Check every shard's shape and, when `hashes`, its bytes. Raises StoreError for the first that differs."""
        for shard in self.shards:
            _map_shard(self.path, shard, self.info)
            if hashes and files.sha256_file(self.path / shard.file) != shard.sha256:
                raise StoreError(
                    f"{self.path / shard.file} is damaged, its hash is not the manifest's: "
                    "delete the store and embed again"
                )


def open_store(path: Path) -> Store:
    """Read a store's manifest and check that its shards are there and of the right shape; no embedding is read.

    Raises StoreError when there is no store at `path`, or it is incomplete, damaged or of another format version.
    """
    path = Path(path)
    manifest = _read_manifest(path)
    try:
        store = _from_manifest(path, manifest)
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{path / MANIFEST} is damaged ({_short(error)}): delete the store and embed again") from error
    for shard in store.shards:
        _map_shard(path, shard, store.info)
    return store


def store_path(dataset: Dataset, info: MethodInfo, stores: Path | None = None) -> Path:
    """Where the store of a dataset and a method is kept, so that a later run finds it again."""
    identity = [info.to_json(), str(dataset.image_root), [image.id for image in dataset.images]]
    name = slug(dataset.name, dataset.split, info.backbone, info.method, sha256_json(identity)[:12])
    return (stores or cache_dir() / "stores") / name


def _short(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error)


def _read_manifest(path: Path) -> dict[str, Any]:
    """The manifest as JSON, its format checked."""
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        if (path / PARTIAL).is_dir():
            raise StoreError(f"store {path} is incomplete: run the same embed command again to finish it") from None
        what = "is not an embedding store, it has no manifest.json" if path.exists() else "doesn't exist"
        raise StoreError(f"store {path} {what}: make one with the embed command") from None
    except OSError as error:
        raise StoreError(f"{path / MANIFEST} can't be read ({error.strerror}): check its permissions") from error
    except ValueError as error:
        raise StoreError(
            f"{path / MANIFEST} is damaged, it is not valid JSON ({error}): delete the store and embed again"
        ) from error
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise StoreError(f"{path / MANIFEST} is of format {found!r}, expected {FORMAT!r}: embed again")
    return manifest


def _from_manifest(path: Path, manifest: dict[str, Any]) -> Store:
    """Raises KeyError, TypeError or ValueError for a manifest that contradicts itself."""
    store = Store(
        path=path,
        info=MethodInfo(**manifest["method"]),
        dataset=manifest["dataset"],
        split=manifest["split"],
        image_root=Path(manifest["image_root"]),
        images=tuple(ImageRecord(**image) for image in manifest["images"]),
        skipped=tuple(SkippedImage(**image) for image in manifest["skipped"]),
        shards=tuple(Shard(**shard) for shard in manifest["shards"]),
    )
    ids = store.ids
    if any(a >= b for a, b in pairwise(ids)):  # type: ignore[operator]
        raise ValueError("image ids are not ascending")
    rows = sum(shard.n_images for shard in store.shards)
    if not len(ids) == rows == manifest["n_images"]:
        raise ValueError(f"n_images is {manifest['n_images']}, but {len(ids)} images and {rows} rows are listed")
    for shard in store.shards:
        if Path(shard.file).name != shard.file:  # a manifest from elsewhere must not lead out of its folder
            raise ValueError(f"shard {shard.file!r} is not a plain file name")
    return store


def _map_shard(folder: Path, shard: Shard, info: MethodInfo) -> NDArray[np.float16]:
    """Memory-map a shard, [m, N, Co] float16. Raises StoreError when it isn't what the manifest says."""
    path = folder / shard.file
    expected = (shard.n_images, info.n_embeddings, info.dim)
    try:
        array = np.lib.format.open_memmap(path, mode="r")  # refuses pickles and archives
    except FileNotFoundError:
        raise StoreError(f"{path} is missing: delete the store and embed again") from None
    except (OSError, ValueError, EOFError) as error:
        raise StoreError(f"{path} is damaged ({error}): delete the store and embed again") from error
    if array.shape != expected or array.dtype != np.float16:
        raise StoreError(
            f"{path} holds {array.dtype} {list(array.shape)}, expected float16 {list(expected)}: "
            "delete the store and embed again"
        )
    return array


def shard_file(number: int) -> str:
    """The file name of a shard, by its number in the plan."""
    return f"embeddings-{number:05d}.npy"


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
    files.write_json(
        store.path / MANIFEST,
        {
            "format": FORMAT,
            "method": store.info.to_json(),
            "dataset": store.dataset,
            "split": store.split,
            "image_root": str(store.image_root),
            "n_images": len(store.images),
            "shards": [asdict(shard) for shard in store.shards],
            "images": [asdict(image) for image in store.images],
            "skipped": [asdict(image) for image in store.skipped],
        },
    )
