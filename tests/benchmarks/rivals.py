"""What could be taken instead of the compact engine, on the same rows and at the same recall.

  uv pip install -r requirements-rivals.txt
  python -m tests.benchmarks.rivals                     # 2,000 images of 50 x 512: 100,000 rows
  python -m tests.benchmarks.rivals --images 10000 --only compact scan ivf
  python -m tests.benchmarks.rivals --folder F          # goes on where it was stopped

Each engine holds all rows and is asked for the 50 images whose best row scores highest, by texts as `scale` makes them.
Those that know rows only are asked for F rows, and the images are taken from these. Each has a list of settings, from
fast to thorough; the first that finds 99% is reported, or else the last. One thread, one process each; milliseconds are
those of the processor, the median of the queries. A package that isn't installed is said to be missing.
"""

import argparse
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from for_model.files import cache_dir, write_json
from for_search.index.index_files import build_index
from tests.benchmarks.scale import N_TEXTS, World, in_its_own_process, make_store, memory_gb

K, MIN_RECALL, DIM, N_EMBEDDINGS, N_QUERIES = 50, 0.99, 512, 50, 60
FETCHES = (250, 500, 1000, 2000, 4000)
N_FETCH = 1000  # of engines whose other settings decide
Search = Callable[[NDArray[np.float32], Any], NDArray[np.int64]]  # query [Co] and a setting -> images, best first


def scan(store: Path, folder: Path) -> tuple[Search, Sequence[Any]]:
    index = build_index(store, folder / "flat")
    return lambda query, _: np.array([hit.image.id for hit in index.search(query[None], K)[0]]), ("all rows",)


def compact(store: Path, folder: Path) -> tuple[Search, Sequence[Any]]:
    index = build_index(store, folder / "compact", "compact", texts=World(DIM).texts(N_TEXTS, seed=1))
    return lambda query, _: np.array([hit.image.id for hit in index.search(query[None], K)[0]]), ("--recall 0.99",)


def ivf(store: Path, folder: Path) -> tuple[Search, Sequence[Any]]:
    """FAISS's partitions of float16 rows, their number about the square root of the rows'."""
    values = rows_of(store).astype(np.float32)
    n_partitions = 2 ** round(np.log2(len(values)) / 2)
    index: Any = faiss.index_factory(DIM, f"IVF{n_partitions},SQfp16", faiss.METRIC_INNER_PRODUCT)
    index.train(values[:: max(1, len(values) // (64 * n_partitions))])
    index.add(values)

    def search(query: NDArray[np.float32], n_probe: int) -> NDArray[np.int64]:
        index.nprobe = n_probe
        return images_of(index.search(query[None], N_FETCH)[1][0])

    return search, [max(1, n_partitions * share // 16) for share in (1, 2, 4, 6, 8, 10, 12, 16)]


def hnsw(store: Path, folder: Path) -> tuple[Search, Sequence[Any]]:
    """FAISS's graph over float16 rows."""
    index: Any = faiss.index_factory(DIM, "HNSW32,SQfp16", faiss.METRIC_INNER_PRODUCT)
    values = rows_of(store).astype(np.float32)
    index.train(values)
    index.add(values)

    def search(query: NDArray[np.float32], fetch: int) -> NDArray[np.int64]:
        index.hnsw.efSearch = fetch
        return images_of(index.search(query[None], fetch)[1][0])

    return search, FETCHES


def usearch(store: Path, folder: Path) -> tuple[Search, Sequence[Any]]:
    from usearch.index import Index

    values = rows_of(store)
    index = Index(ndim=DIM, metric="ip", dtype="f16")
    index.add(np.arange(len(values)), values, threads=1)

    def search(query: NDArray[np.float32], fetch: int) -> NDArray[np.int64]:
        index.expansion_search = fetch
        return images_of(index.search(query, fetch, threads=1).keys.astype(np.int64))

    return search, FETCHES


def qdrant(store: Path, folder: Path) -> tuple[Search, Sequence[Any]]:
    """Qdrant's embedded core: a point an image, MAX_SIM over its embeddings, the graph of images."""
    import qdrant_edge as edge

    (folder / "qdrant").mkdir()
    shard = edge.EdgeShard.create(
        str(folder / "qdrant"),
        edge.EdgeConfig(
            vectors=edge.EdgeVectorParams(
                size=DIM,
                distance=edge.Distance.Dot,
                multivector_config=edge.MultiVectorConfig(comparator=edge.MultiVectorComparator.MaxSim),
                datatype=edge.VectorStorageDatatype.Float16,
            ),
            hnsw_config=edge.HnswIndexConfig(m=16, ef_construct=64, full_scan_threshold=1, max_indexing_threads=1),
            optimizers=edge.EdgeOptimizersConfig(indexing_threshold=1),
            max_search_threads=1,
        ),
    )
    images = rows_of(store).astype(np.float32).reshape(-1, N_EMBEDDINGS, DIM)
    for start in range(0, len(images), 100):
        points = [
            edge.Point(id=start + i, vector=image.tolist(), payload={})
            for i, image in enumerate(images[start : start + 100])
        ]
        shard.update(edge.UpdateOperation.upsert_points(points))
    while shard.optimize():
        pass

    def search(query: NDArray[np.float32], ef: int | None) -> NDArray[np.int64]:
        parameters = edge.SearchParams(exact=True) if ef is None else edge.SearchParams(hnsw_ef=ef)
        request = edge.SearchRequest(query=edge.Query.Nearest(query.tolist()), limit=K, params=parameters)
        return np.array([int(point.id) for point in shard.search(request)])

    return search, (64, 128, 256, 512, 1024, None)


def lancedb(store: Path, folder: Path) -> tuple[Search, Sequence[Any]]:
    """LanceDB's partitions with product quantisation, its best rows scored exactly; of float32 rows, as to index
    float16 ones takes it several times as long."""
    import lancedb as lance
    import pyarrow
    from lancedb.index import IvfPq

    values = rows_of(store).astype(np.float32)
    vectors = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(values.reshape(-1)), DIM)
    rows = pyarrow.table({"row": np.arange(len(values)), "vector": vectors})
    table = lance.connect(str(folder / "lance")).create_table("rows", rows)
    n_partitions = 2 ** round(np.log2(len(values)) / 2)
    table.create_index(
        "vector", config=IvfPq(distance_type="dot", num_partitions=n_partitions, num_sub_vectors=DIM // 8)
    )

    def search(query: NDArray[np.float32], setting: tuple[int, int]) -> NDArray[np.int64]:
        n_probe, refine = setting
        found = table.search(query, vector_column_name="vector").distance_type("dot").nprobes(n_probe)
        return images_of(
            found.refine_factor(refine).limit(N_FETCH).select(["row", "_distance"]).to_arrow()["row"].to_numpy()
        )

    return search, [(n_partitions * share // 8, refine) for share, refine in ((1, 2), (2, 2), (4, 4), (6, 8), (8, 20))]


RIVALS: dict[str, tuple[str | None, Callable[[Path, Path], tuple[Search, Sequence[Any]]]]] = {
    "scan": (None, scan),
    "compact": (None, compact),
    "ivf": (None, ivf),
    "hnsw": (None, hnsw),
    "usearch": ("usearch", usearch),
    "qdrant": ("qdrant_edge", qdrant),
    "lancedb": ("lancedb", lancedb),
}


def rows_of(store: Path) -> NDArray[np.float16]:
    """All rows of a store, [R, Co]."""
    parts = [np.load(path, allow_pickle=False).reshape(-1, DIM) for path in sorted(store.glob("embeddings-*.npy"))]
    return np.concatenate(parts)


def images_of(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first K distinct images of some rows, in their order."""
    images, first = np.unique(rows[rows >= 0] // N_EMBEDDINGS, return_index=True)
    return images[np.argsort(first)][:K]


def measure(name: str, store: Path, folder: Path) -> dict[str, Any]:
    """Build an engine and try its settings."""
    faiss.omp_set_num_threads(1)
    base, started = memory_gb()[0], time.process_time()
    search, settings = RIVALS[name][1](store, folder)
    build_s = time.process_time() - started
    queries = World(DIM).texts(N_QUERIES, seed=0)
    scores = queries @ rows_of(store).astype(np.float32).T
    best = np.argsort(-scores.reshape(N_QUERIES, -1, N_EMBEDDINGS).max(axis=2), axis=1)[:, :K].tolist()
    result: dict[str, Any] = {}
    for setting in settings:
        search(queries[0], setting)
        seconds, shares = [], []
        for query, images in zip(queries, best, strict=True):
            started = time.process_time()
            found = search(query, setting)
            seconds.append(time.process_time() - started)
            shares.append(len(set(images) & set(found.tolist())) / K)
        result = {
            "setting": setting,
            "cpu_ms": 1e3 * statistics.median(seconds),
            "recall": statistics.fmean(shares),
            "worst": min(shares),
        }
        if result["recall"] >= MIN_RECALL:
            break
    return {**result, "build_cpu_seconds": build_s, "peak_gb_above_base": memory_gb()[1] - base}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--only", nargs="+", choices=RIVALS, default=list(RIVALS))
    parser.add_argument("--folder", type=Path, help="for all files, instead of one in FOR's cache; nothing is removed")
    arguments = parser.parse_args(argv)
    # Before the processes that measure start: each of these libraries has threads of its own.
    os.environ |= {"LANCE_CPU_THREADS": "1", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    folder = arguments.folder or cache_dir() / "benchmarks" / f"rivals-{arguments.images}"
    store, path = folder / "store", folder / "figures.json"
    if not (store / "manifest.json").exists():
        in_its_own_process(make_store, store, arguments.images, N_EMBEDDINGS, DIM)
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name in arguments.only:
        package = RIVALS[name][0]
        if package is not None and importlib.util.find_spec(package) is None:
            print(f"{name}: missing, see requirements-rivals.txt", flush=True)
            continue
        if name not in results:
            results[name] = in_its_own_process(measure, name, store, folder)
            write_json(path, results)
        found = results[name]
        print(
            f"{name:10}{found['cpu_ms']:9.1f} ms  recall {found['recall']:.4f}, worst {found['worst']:.2f}  "
            f"built in {found['build_cpu_seconds']:.0f} s  {found['setting']}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
