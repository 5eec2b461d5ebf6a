"""How a store and an index of many images open, and how long conditions over an index's columns take.

  python -m tests.benchmarks.many_images                        1,000,000 images
  python -m tests.benchmarks.many_images --images 100000

Makes a store and an index of images that there aren't, one embedding of width 8 each, with columns as photographs have.
Then opens each in a process of its own, which prints the seconds that opening takes and the memory that the process has
then beyond what it had after its imports; of the index also the median seconds of a few conditions. Beside the store,
the same list of images in JSON, as stores had it up to format 2, is opened in the same way. Ends with an error if
opening store or index takes more than 2 s or 300 MB.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from for_model.data.dataset import ImageRecord
from for_model.files import is_sealed, sealed, write_json
from for_model.methods.protocol import MethodInfo
from for_search.index.index import SearchIndex
from for_search.index.index_files import build_index, open_index
from for_search.store.changes import Stamp
from for_search.store.metadata import LABEL_COLUMN, Metadata
from for_search.store.shards import write_shard
from for_search.store.store import open_store, write_store

DIM, SHARD = 8, 50_000
LISTING = "listing.json"
MAX_SECONDS, MAX_MB = 2, 300
CONDITIONS = (
    "folder = 'trips/0042/'",
    "taken >= '2024-01-01' and camera like 'Canon%'",
    "rating >= 4 and latitude between 40 and 50",
    "has(labels, 'dog')",
)


def make(folder: Path, n_images: int) -> None:
    """Write a store and its index."""
    store = folder / "store"
    store.mkdir()
    rng = np.random.default_rng(0)
    shards = []
    for number, start in enumerate(range(0, n_images, SHARD)):
        block = rng.standard_normal((min(SHARD, n_images - start), 1, DIM), dtype=np.float32)
        shards.append(write_shard(store, number, block / np.linalg.norm(block, axis=-1, keepdims=True)))
    images = tuple(ImageRecord(path, path) for path in (f"trips/{i // 1000:04d}/{i:08d}.jpg" for i in range(n_images)))
    stamps, cells = {}, {}
    for i, image in enumerate(images):
        facts = {"width": 4000, "height": 3000, "taken": f"20{i % 25:02d}-06-01 12:00:00", "camera": f"Canon {i % 9}"}
        place = {"latitude": i % 90 + 0.5, "longitude": i % 180 + 0.25}
        stamps[image.id] = Stamp(3_000_000 + i, 1_700_000_000_000_000_000 + i, f"{i:064x}", {**facts, **place})
        cells[image.id] = {"rating": i % 6, LABEL_COLUMN: "dog;person" if i % 3 else "car"}
    info = MethodInfo("clip", "RN50", "random", "0" * 64, 1, DIM, 224, {})
    metadata = Metadata({"rating": "INTEGER"}, cells)
    write_store(store, info, "folder", "all", folder, images, (), tuple(shards), None, stamps, metadata)
    listed = [{**asdict(i), "stamp": asdict(stamps[i.id]), "cells": cells[i.id]} for i in images]
    write_json(folder / LISTING, sealed({"images": listed}))
    build_index(store, folder / "index")


@dataclass(frozen=True)
class Opening:
    """seconds: of opening.  mb: of memory that it took."""

    seconds: float
    mb: float


def open_listing(path: Path) -> dict[str, list[object]]:
    """What opening a store was up to format 2: a list of images in JSON with its own hash."""
    value = json.loads(path.read_bytes())
    assert is_sealed(value)
    return {
        "images": [ImageRecord(image["id"], image["path"]) for image in value["images"]],
        "stamps": [Stamp(**image["stamp"]) for image in value["images"]],
        "cells": [image["cells"] for image in value["images"]],
    }


def opening(path: Path) -> Opening:
    """Open a store, an index or a listing, in this process; prints what it measures."""
    resident = _resident_mb()
    began, cpu = time.perf_counter(), time.process_time()
    opened = {"index": open_index, "store": open_store, LISTING: open_listing}[path.name](path)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
    mb = _resident_mb() - resident
    print(
        f"opening {path.name}: {seconds:.2f} s ({cpu_seconds:.2f} s of CPU), {mb:.0f} MB more than the {resident:.0f} "
        "before",
        flush=True,
    )
    if isinstance(opened, SearchIndex):
        time_conditions(opened)
    return Opening(seconds, mb)


def time_conditions(index: SearchIndex) -> None:
    """Print how long conditions take over all images of an index."""
    for condition in CONDITIONS:
        times = []
        for _ in range(3):
            began = time.perf_counter()
            allowed = index.where(condition)
            times.append(time.perf_counter() - began)
        assert allowed is not None
        print(f"{condition}: {allowed.sum():,} images in {statistics.median(times):.2f} s")


def _resident_mb() -> float:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000, help="how many (default 1,000,000)")
    parser.add_argument("--open", type=Path, metavar="PATH", help="only open this, which it has made before")
    arguments = parser.parse_args(argv)
    if arguments.open is not None:
        found = opening(arguments.open)
        return int(arguments.open.name != LISTING and (found.seconds > MAX_SECONDS or found.mb > MAX_MB))
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), arguments.images)
        again = [sys.executable, "-m", "tests.benchmarks.many_images", "--open"]
        names = (LISTING, "store", "index")
        return max(subprocess.run([*again, str(Path(folder) / name)], check=False).returncode for name in names)


if __name__ == "__main__":
    sys.exit(main())
