"""How long the heads take on feature maps of RN50's and RN50x64's size, and what batching K-means saves.

Run with `pytest --benchmark-only tests/benchmarks/bench_heads.py`; the time per call is for a batch of 8 images.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from for_model.backbones.attention_pool import AttentionPool
from for_model.heads.clip import ClipHead
from for_model.heads.cluster import ClusterHead
from for_model.heads.dense import DenseHead
from for_model.heads.kmeans import kmeans_batched, kmeans_reference
from for_model.heads.protocol import Head

IMAGES = 8
SIZES = {"K49-N8": (49, 8, 2048, 1024), "K196-N50": (196, 50, 2048, 1024)}  # K, N, Ce, Co


def random_pool(n_cells: int, width: int, dim: int) -> AttentionPool:
    class Projections(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
            self.c_proj = nn.Linear(width, dim)
            self.num_heads = width // 64
            self.positional_embedding = nn.Parameter(torch.randn(n_cells + 1, width) * width**-0.5)

    torch.manual_seed(0)
    return AttentionPool(Projections(), round(n_cells**0.5)).eval().requires_grad_(False)


def clumped_points(n_cells: int, dim: int) -> torch.Tensor:
    """[IMAGES, n_cells, dim] unit-norm: a dozen things an image, as real feature maps have, rather than pure noise."""
    generator = torch.Generator().manual_seed(0)
    things = torch.randn(IMAGES, 12, dim, generator=generator)
    which = torch.randint(12, (IMAGES, n_cells, 1), generator=generator).expand(-1, -1, dim)
    noise = torch.randn(IMAGES, n_cells, dim, generator=generator)
    return F.normalize(things.gather(1, which) + 0.7 * noise, dim=-1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["clip", "dense-clip", "cluster-clip"])
def bench_head(benchmark: Any, name: str, size: str) -> None:
    n_cells, n_clusters, width, dim = SIZES[size]
    heads: dict[str, Head] = {"clip": ClipHead(), "dense-clip": DenseHead(), "cluster-clip": ClusterHead(n_clusters)}
    pool, X = random_pool(n_cells, width, dim), clumped_points(n_cells, width) * 30
    benchmark.group = f"head {size}, {IMAGES} images"
    Y = benchmark.pedantic(heads[name], args=(X, pool), rounds=5, warmup_rounds=1)
    assert Y.shape == (IMAGES, heads[name].n_embeddings(n_cells), dim)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("engine", [kmeans_reference, kmeans_batched], ids=["reference", "batched"])
def bench_kmeans(benchmark: Any, engine: Any, size: str) -> None:
    n_cells, n_clusters, _, dim = SIZES[size]
    points = clumped_points(n_cells, dim)
    benchmark.group = f"k-means {size}, {IMAGES} images"
    clusters = benchmark.pedantic(engine, args=(points, n_clusters), rounds=5, warmup_rounds=1)
    assert clusters.centres.shape == (IMAGES, n_clusters, dim)
