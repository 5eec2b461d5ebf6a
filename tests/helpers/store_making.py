"""Small embedding stores for the tests of what reads them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from for_model.data.dataset import ImageRecord
from for_model.files import sealed, sha256_file, write_json
from for_model.methods.protocol import MethodInfo
from for_search.store.shards import Shard, shard_file, write_shard
from for_search.store.store import SkippedImage, Store, open_store, write_store


def method_info(n_embeddings: int, dim: int, **changes: object) -> MethodInfo:
    fields = {"method": "cluster-clip", "backbone": "RN-mini", "weights": "rn-mini", "weights_sha256": "ab" * 32}
    sizes = {"n_embeddings": n_embeddings, "dim": dim, "image_size": 160, "settings": {"clusters": n_embeddings}}
    return MethodInfo(**{**fields, **sizes, **changes})  # type: ignore[arg-type]


def make_store(path: Path, embeddings: NDArray[np.floating], shard_size: int = 7, **changes: object) -> Store:
    """Write a store of [M, N, Co] unit-norm embeddings; image ids are 10, 13, 16, ..., and image 11 was skipped."""
    path.mkdir(parents=True)
    n_images, n_embeddings, dim = embeddings.shape
    starts = range(0, n_images, shard_size)
    shards = tuple(write_shard(path, i, embeddings[start : start + shard_size]) for i, start in enumerate(starts))
    images = tuple(ImageRecord(10 + 3 * i, f"sub/{10 + 3 * i}.jpg") for i in range(n_images))
    skipped = (SkippedImage(11, "sub/11.jpg", "truncated"),)
    info = method_info(n_embeddings, dim, **changes)
    write_store(path, info, "tiny", "val", path.parent / "images", images, skipped, shards)
    return open_store(path)


def write_state(path: Path, parts: dict[int, NDArray[np.floating]], rows: dict[int, tuple[int, int]]) -> Store:
    """Write a store as growth leaves it.

    parts: number of a shard -> [m, N, Co] unit-norm embeddings; a shard that is there already is left as it is.
    rows: image id -> number of a shard and row in it; rows of no image are dead.
    """
    starts, shards, first = {}, [], 0
    for number, rows_of in sorted(parts.items()):
        file = path / shard_file(number)
        known = Shard(file.name, len(rows_of), sha256_file(file)) if file.exists() else None
        shards.append(known or write_shard(path, number, rows_of))
        starts[number] = first
        first += len(rows_of)
    images = tuple(ImageRecord(image_id, f"sub/{image_id}.jpg") for image_id in sorted(rows))
    own_rows = np.array([starts[rows[image.id][0]] + rows[image.id][1] for image in images], np.int64)  # type: ignore[index]
    _, n_embeddings, dim = next(iter(parts.values())).shape
    info = method_info(n_embeddings, dim)
    write_store(path, info, "tiny", "val", path.parent / "images", images, (), tuple(shards), own_rows)
    return open_store(path)


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the fields of a store's or an index's manifest, and the hash that it has of itself."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_bytes())
    change(manifest)
    manifest.pop("sha256", None)
    write_json(path, sealed(manifest))


def random_units(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float32]:
    """Unit vectors along the last axis, float32."""
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def dyadic_units(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float32]:
    """Unit vectors with four entries of +-1/2: their cosines are multiples of 1/4, exact in any order of summation."""
    rng = np.random.default_rng(seed)
    flat = np.zeros((int(np.prod(shape[:-1])), shape[-1]), dtype=np.float32)
    for row in flat:
        row[rng.choice(shape[-1], 4, replace=False)] = rng.choice([-0.5, 0.5], 4)
    return flat.reshape(shape)
