"""How long exact search and the score matrix take: `pytest tests/benchmarks/bench_index.py --benchmark-only`."""

from dataclasses import replace
from typing import Any

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from for_eval.metrics.score_matrix import score_matrix
from for_model.data.dataset import ImageRecord
from for_model.methods.protocol import MethodInfo
from for_search.index.flat_engine import FlatEngine
from for_search.index.index import SearchIndex
from for_search.index.index_files import build_index, open_index
from for_search.store.shards import write_shard
from for_search.store.store import Store, open_store, write_store

N_IMAGES, N_EMBEDDINGS, DIM, SHARD = 10_000, 25, 512, 1000


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    path = tmp_path_factory.mktemp("benchmark") / "store"
    path.mkdir()
    rng = np.random.default_rng(0)
    shards = []
    for number in range(N_IMAGES // SHARD):
        block = rng.standard_normal((SHARD, N_EMBEDDINGS, DIM), dtype=np.float32)
        shards.append(write_shard(path, number, block / np.linalg.norm(block, axis=-1, keepdims=True)))
    images = tuple(ImageRecord(i, f"{i}.jpg") for i in range(N_IMAGES))
    info = MethodInfo("cluster-clip", "RN50", "random", "0" * 64, N_EMBEDDINGS, DIM, 224, {})
    write_store(path, info, "benchmark", "val", path, images, (), tuple(shards))
    return open_store(path)


@pytest.fixture(scope="module")
def index(store: Store) -> SearchIndex:
    return build_index(store.path, store.path.parent / "index")


@pytest.fixture(scope="module")
def queries() -> NDArray[np.float32]:
    values = np.random.default_rng(1).standard_normal((65, DIM), dtype=np.float32)
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


class Float32Index(FlatEngine):
    """The alternative to `flat`'s float16: `IndexFlatIP`, mapped from disk too."""

    def __init__(self, index: SearchIndex, store: Store) -> None:
        path = str(index.path.parent / "float32.faiss")
        flat = faiss.IndexFlatIP(DIM)
        for shard in store.iter_shards():
            flat.add(shard.reshape(-1, DIM).astype(np.float32))
        faiss.write_index(flat, path)
        super().__init__(faiss.read_index(path, faiss.IO_FLAG_MMAP_IFC))


@pytest.mark.benchmark(group="exact search, 10,000 x 25 x 512, k = 10")
@pytest.mark.parametrize("engine", ["flat", "float32"])
def bench_search(benchmark: Any, index: SearchIndex, store: Store, queries: NDArray[np.float32], engine: str) -> None:
    searched = index
    if engine != "flat":
        (segment,) = index.segments
        searched = replace(index, segments=(replace(segment, engine=Float32Index(index, store)),))
    benchmark.extra_info["bytes"] = index.n_bytes if engine == "flat" else N_IMAGES * N_EMBEDDINGS * DIM * 4
    hits = benchmark.pedantic(searched.search, (queries[:1], 10), rounds=30, warmup_rounds=3)
    assert len(hits[0]) == 10


@pytest.mark.benchmark(group="open an index, 10,000 x 25 x 512")
@pytest.mark.parametrize("verify", ["quick", "full"])
def bench_open_index(benchmark: Any, index: SearchIndex, verify: str) -> None:
    opened = benchmark.pedantic(open_index, (index.path, verify), rounds=3, warmup_rounds=1)
    assert len(opened.images) == N_IMAGES


@pytest.mark.benchmark(group="score matrix, 65 categories, 10,000 x 25 x 512")
def bench_score_matrix(benchmark: Any, store: Store, queries: NDArray[np.float32]) -> None:
    scores = benchmark.pedantic(score_matrix, (store, queries), rounds=3, warmup_rounds=1)
    assert scores.shape == (65, N_IMAGES)
