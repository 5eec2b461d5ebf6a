"""Ranking and scoring LVIS val at the paper's size: 19,809 images x 50 embeddings x 1,203 categories, width 1,024.

    python -m pytest tests/benchmarks/bench_lvis.py --benchmark-only

Time is in the table, memory in the test: the ranking's process must stay under 4 GB. Writes 2 GB to a temporary folder.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from for_eval.metrics.bootstrap import bootstrap_interval
from for_eval.metrics.kept_rankings import DEPTH
from for_eval.metrics.retrieval import recall_at_k, retrieval_scores
from for_eval.metrics.score_matrix import score_matrix
from for_model.data.dataset import ImageRecord
from for_model.methods.protocol import MethodInfo
from for_search.query.ranking import top_k
from for_search.store.shards import write_shard
from for_search.store.store import open_store, write_store

N_IMAGES, N_EMBEDDINGS, N_CATEGORIES, DIM, SHARD = 19_809, 50, 1_203, 1_024, 1_000
PRESENT, KNOWN = 0.009, 0.02  # shares of the pairs of image and category, about LVIS's
LIMIT = 4e9


def make_large_store(path: Path) -> None:
    path.mkdir()
    rng = np.random.default_rng(0)
    shards = []
    for number, start in enumerate(range(0, N_IMAGES, SHARD)):
        block = rng.standard_normal((min(SHARD, N_IMAGES - start), N_EMBEDDINGS, DIM), dtype=np.float32)
        shards.append(write_shard(path, number, block / np.linalg.norm(block, axis=-1, keepdims=True)))
    images = tuple(ImageRecord(i, f"{i}.jpg") for i in range(N_IMAGES))
    info = MethodInfo("for", "RN50x64", "random", "0" * 64, N_EMBEDDINGS, DIM, 448, {})
    write_store(path, info, "lvis", "val", path, images, (), tuple(shards))


def measure(path: Path) -> dict[str, float]:
    """Rank and score as `leaderboard.evaluate` does, in both protocols. Returns seconds and this process's peak."""
    rng = np.random.default_rng(1)
    texts = rng.standard_normal((N_CATEGORIES, DIM), dtype=np.float32)
    texts /= np.linalg.norm(texts, axis=-1, keepdims=True)
    drawn = rng.random((N_CATEGORIES, N_IMAGES), dtype=np.float32)
    relevance, known = drawn < PRESENT, drawn < KNOWN
    groups = {"base": np.arange(N_CATEGORIES) < 866, "all": np.ones(N_CATEGORIES, bool)}
    start = time.perf_counter()
    scores = score_matrix(open_store(path), texts)
    ranked = time.perf_counter()
    orders = [top_k(scores, DEPTH * 50, of_which_known) for of_which_known in (None, known)]
    for of_which_known, order in zip((None, known), orders, strict=True):
        found = retrieval_scores(scores, relevance, 50, of_which_known, order)
        assert found.mean().n_categories == N_CATEGORIES
        recall_at_k(scores, relevance, known=of_which_known, order=order)
    scored = time.perf_counter()
    for of_which_known, order in zip((None, known), orders, strict=True):
        bootstrap_interval(scores, relevance, groups, known=of_which_known, order=order)
    return {
        "ranking_s": ranked - start,
        "scores_s": scored - ranked,
        "bootstrap_s": time.perf_counter() - scored,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def bench_lvis_val(benchmark: Any, tmp_path: Path) -> None:
    make_large_store(tmp_path / "store")

    def run() -> dict[str, float]:
        done = subprocess.run([sys.executable, __file__, tmp_path / "store"], capture_output=True, check=True)
        found: dict[str, float] = json.loads(done.stdout)
        return found

    found = benchmark.pedantic(run, rounds=1)
    benchmark.extra_info.update(found)
    print(found)
    assert found["peak_bytes"] < LIMIT


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]))))
