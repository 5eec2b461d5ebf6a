"""What a training step is made of, what kept feature maps save, and FOR's head beside the Cluster head.

Run with `make bench ARGS="-k training"`, or `pytest --benchmark-only tests/benchmarks/bench_training.py`. The sizes are
those of the issue at RN-mini's width: B = 64, N = 50, up to 30 targets of 65 categories, or of ImageNet-21K's 21,841.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from for_model.backbones.clip_resnet import load_clip_resnet
from for_model.data.coco import load_coco
from for_model.data.miniscenes.scenes import write_scenes
from for_model.heads.cluster import ClusterHead
from for_model.heads.config import SumSettings
from for_model.heads.dense import DenseHead
from for_model.heads.protocol import Head
from for_model.heads.sum_clip import SumHead
from for_model.training.features import open_features
from for_model.training.losses.set_prediction import set_prediction_loss
from for_model.training.train import _cpu_has_bfloat16
from tests.benchmarks.bench_heads import random_pool

BATCH, QUERIES, TARGETS = 64, 50, 30
WIDTH, DIM = 512, 256  # RN-mini's


def some_targets(n_categories: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.choice(n_categories, int(rng.integers(TARGETS + 1)), replace=False).tolist() for _ in range(BATCH)]


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(0)), dim=-1)


@pytest.mark.parametrize("w", [0.0, 0.1])
@pytest.mark.parametrize("n_categories", [65, 21_841])
def bench_loss(benchmark: Any, n_categories: int, w: float) -> None:
    """Matching and loss, forward and backward: to be set against the whole step below."""
    Y, texts, targets = (
        unit(BATCH, QUERIES, DIM).requires_grad_(True),
        unit(n_categories, DIM),
        some_targets(n_categories),
    )
    no_object = unit(DIM).requires_grad_(True)
    benchmark.group = "training step, B=64 N=50"

    def step() -> None:
        Y.grad = None
        set_prediction_loss(Y, texts, targets, 25.0, no_object if w else None, w).backward()

    benchmark.pedantic(step, rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("n_categories", [65, 21_841])
def bench_step(benchmark: Any, n_categories: int) -> None:
    """A whole step of FOR's head on 196 cells: head, matching, loss, gradient, Adam."""
    pool = random_pool(196, WIDTH, DIM)
    head = SumHead(SumSettings(queries=QUERIES), pool)
    optimizer = torch.optim.Adam(head.parameters(), 1e-4, fused=True)
    X, texts, targets = torch.randn(BATCH, 196, WIDTH).relu(), unit(n_categories, DIM), some_targets(n_categories)
    benchmark.group = "training step, B=64 N=50"

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=_cpu_has_bfloat16()):
            Y = head(X, pool)
        optimizer.zero_grad()
        set_prediction_loss(Y, texts, targets, 25.0).backward()
        optimizer.step()

    benchmark.pedantic(step, rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("where", ["kept", "on the fly"])
def bench_features(benchmark: Any, where: str, tmp_path: Path) -> None:
    """The feature maps of 512 scenes, from disk or through RN-mini's trunk."""
    write_scenes(tmp_path / "scenes", {"dev": 512})
    dataset = load_coco(tmp_path / "scenes", "dev")
    features = open_features(
        dataset, load_clip_resnet("RN-mini"), 1.0 if where == "kept" else 0.0, tmp_path / "features"
    )
    order = np.random.default_rng(0).permutation(512).reshape(8, 64)
    benchmark.group = "feature maps of 512 scenes"
    benchmark.pedantic(lambda: sum(len(rows) for rows, _ in features.batches(order)), rounds=3, warmup_rounds=1)


@pytest.mark.parametrize("width", [WIDTH, 2048])
@pytest.mark.parametrize("name", ["for", "cluster-clip reference", "cluster-clip batched", "dense-clip"])
def bench_head_against_clusters(benchmark: Any, name: str, width: int) -> None:
    """Images a second of the heads alone, 196 cells to 50 embeddings, 8 images: the paper's claim is 3 to 1."""
    pool = random_pool(196, width, width // 2)
    heads: dict[str, Head] = {
        "for": SumHead(SumSettings(queries=50), pool).eval().requires_grad_(False),
        "cluster-clip reference": ClusterHead(50, engine="reference"),
        "cluster-clip batched": ClusterHead(50),
        "dense-clip": DenseHead(),
    }
    X = torch.randn(8, 196, width, generator=torch.Generator().manual_seed(0)).relu() * 3
    benchmark.group = f"heads on 196 cells of width {width}, N=50, 8 images"
    benchmark.pedantic(heads[name], args=(X, pool), rounds=5, warmup_rounds=1)
