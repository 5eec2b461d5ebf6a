"""How long the heads take on feature maps of four backbones' sizes, and what batching K-means saves.

Run with `pytest --benchmark-only tests/benchmarks/bench_heads.py`; the time per call is for a batch of images, and of
CPU time, so that what else runs on the machine matters less. All weights are random. A FOR+ of the same N stands beside
each Cluster-CLIP, with the settings that its config has on that backbone.
"""

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from for_model.backbones.attention_pool import AttentionPool
from for_model.backbones.photo_lite import PhotoPool, PhotoSettings
from for_model.backbones.protocol import Pool
from for_model.heads.clip import ClipHead
from for_model.heads.cluster import ClusterHead
from for_model.heads.config import PlusSettings, SumSettings
from for_model.heads.dense import DenseHead
from for_model.heads.for_plus import ForPlusHead
from for_model.heads.kmeans import kmeans_batched, kmeans_reference
from for_model.heads.sum_clip import SumHead

IMAGES = 8
SIZES = {"K49-N8": (49, 8, 2048, 1024), "K196-N50": (196, 50, 2048, 1024)}  # K, N, Ce, Co; of RN50 at 224 and 448 px
SMALL = {"RN-mini": (25, 8, 512, 256), "photo-lite": (49, 8, 1280, 385)}
SMALL_IMAGES = 64
CLASSES = 1000  # of photo-lite's classifier


def random_pool(n_cells: int, width: int, dim: int) -> AttentionPool:
    """A CLIP ResNet's."""

    class Projections(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
            self.c_proj = nn.Linear(width, dim)
            self.num_heads = width // 64
            self.positional_embedding = nn.Parameter(torch.randn(n_cells + 1, width) * width**-0.5)

    torch.manual_seed(0)
    return AttentionPool(Projections(), round(n_cells**0.5)).eval().requires_grad_(False)


def random_photo_pool(n_cells: int, width: int, dim: int) -> PhotoPool:
    torch.manual_seed(0)
    names = F.normalize(torch.randn(CLASSES, dim - 1), dim=-1)
    pool = PhotoPool(nn.Linear(width, CLASSES), names, round(n_cells**0.5), PhotoSettings())
    return pool.eval().requires_grad_(False)


def clumped_points(n_cells: int, dim: int, images: int = IMAGES) -> torch.Tensor:
    """[images, n_cells, dim] unit-norm: a dozen things an image, as real feature maps have, rather than pure noise."""
    generator = torch.Generator().manual_seed(0)
    things = torch.randn(images, 12, dim, generator=generator)
    which = torch.randint(12, (images, n_cells, 1), generator=generator).expand(-1, -1, dim)
    noise = torch.randn(images, n_cells, dim, generator=generator)
    return F.normalize(things.gather(1, which) + 0.7 * noise, dim=-1)


@pytest.mark.benchmark(timer=time.thread_time)
@pytest.mark.parametrize("size", [*SIZES, *SMALL])
@pytest.mark.parametrize("name", ["clip", "dense-clip", "cluster-clip", "for", "for+"])
def bench_head(benchmark: Any, name: str, size: str) -> None:
    n_cells, n_embeddings, width, dim = {**SIZES, **SMALL}[size]
    images = IMAGES if size in SIZES else SMALL_IMAGES
    pool: Pool = (random_photo_pool if size == "photo-lite" else random_pool)(n_cells, width, dim)
    linear = PlusSettings(queries=n_embeddings, hidden=0, root=True)
    heads: dict[str, Callable[[], Callable[[Tensor, Pool], Tensor]]] = {
        "clip": ClipHead,
        "dense-clip": DenseHead,
        "cluster-clip": lambda: ClusterHead(n_embeddings),
        "for": lambda: SumHead(SumSettings(queries=n_embeddings), pool).eval().requires_grad_(False),
        "for+": lambda: ForPlusHead(
            linear if size == "photo-lite" else PlusSettings(queries=n_embeddings), pool
        ).requires_grad_(False),
    }
    X = clumped_points(n_cells, width, images) * 30
    benchmark.group = f"head {size}, {images} images"
    Y = benchmark.pedantic(heads[name](), args=(X, pool), rounds=15, warmup_rounds=2)
    assert Y.shape == (images, {"clip": 1, "dense-clip": n_cells}.get(name, n_embeddings), dim)


@pytest.mark.benchmark(timer=time.thread_time)
@pytest.mark.parametrize("size", SMALL)
def bench_training_of_for(benchmark: Any, size: str) -> None:
    """Forward and backward through FOR's head of as many queries as its config for the backbone has."""
    n_cells, n_embeddings, width, dim = SMALL[size]
    pool: Pool = (random_photo_pool if size == "photo-lite" else random_pool)(n_cells, width, dim)
    settings = SumSettings(queries=n_embeddings, layers=2, feedforward=1024, dropout=0.0)
    head, X = SumHead(settings, pool), clumped_points(n_cells, width, SMALL_IMAGES) * 30

    def step() -> Tensor:
        head.zero_grad()
        head(X, pool).sum().backward()
        assert head.queries.grad is not None
        return head.queries.grad

    benchmark.group = f"training step of FOR's head, {SMALL_IMAGES} images"
    assert benchmark.pedantic(step, rounds=9, warmup_rounds=2).isfinite().all()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("engine", [kmeans_reference, kmeans_batched], ids=["reference", "batched"])
def bench_kmeans(benchmark: Any, engine: Any, size: str) -> None:
    n_cells, n_clusters, _, dim = SIZES[size]
    points = clumped_points(n_cells, dim)
    benchmark.group = f"k-means {size}, {IMAGES} images"
    clusters = benchmark.pedantic(engine, args=(points, n_clusters), rounds=5, warmup_rounds=1)
    assert clusters.centres.shape == (IMAGES, n_clusters, dim)
