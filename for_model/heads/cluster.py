"""Cluster-CLIP: the dense embeddings of an image, grouped (section 3.1)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from for_model.backbones.protocol import Pool
from for_model.errors import UsageError
from for_model.heads.kmeans import MAX_ITERATIONS, Clusters, kmeans_batched, kmeans_reference

ClusterEngine = Literal["batched", "reference"]
_ENGINES: dict[str, Callable[[Tensor, int, int], Clusters]] = {
    "batched": kmeans_batched,
    "reference": kmeans_reference,
}


def default_clusters(n_cells: int) -> int:
    """N of Cluster-CLIP where nobody chose one: 8 up to the 49 cells of a 224-pixel image, else the paper's 50.

    n_cells: K, the cells of the backbone's feature map; 196 in the paper.
    """
    return 8 if n_cells <= 49 else 50


@dataclass(frozen=True)
class ClusterHead:
    """Cluster-CLIP: K-means over the unit-norm dense embeddings of an image, the mean of each cluster (section 3.1).

    clusters: N. An image of fewer distinct cells repeats the embedding of its largest cluster.
    iterations: of K-means, at most.
    engine: `batched` (on the device of X) or `reference` (scikit-learn, image by image); both give the same clusters,
        so it is no part of the settings.
    Raises UsageError for N or iterations below 1 or an unknown engine.
    """

    clusters: int
    iterations: int = MAX_ITERATIONS
    engine: ClusterEngine = "batched"
    name: str = field(default="cluster-clip", init=False)

    def __post_init__(self) -> None:
        if self.clusters < 1 or self.iterations < 1:
            raise UsageError(f"got {self.clusters} clusters, {self.iterations} iterations; expected at least 1 of each")
        if self.engine not in _ENGINES:
            raise UsageError(f"unknown cluster engine {self.engine!r}; expected one of {', '.join(_ENGINES)}")

    @property
    def settings(self) -> dict[str, Any]:
        return {"clusters": self.clusters, "iterations": self.iterations}

    def n_embeddings(self, n_cells: int) -> int:
        return self.clusters

    def __call__(self, X: Tensor, pool: Pool) -> Tensor:
        return F.normalize(self._clusters(X, pool).centres, dim=-1)  # [B, N, Co]

    def evidence(self, X: Tensor, pool: Pool) -> Tensor:
        """The cells of each cluster, in equal shares: [B, N, K] float32, rows summing to 1.

        A cluster without cells repeats the embedding of the largest cluster, and so its cells.
        """
        members = F.one_hot(self._clusters(X, pool).labels, self.clusters).float().transpose(1, 2)  # [B, N, K]
        sizes = members.sum(dim=2)  # [B, N]
        largest = members[torch.arange(len(X), device=X.device), sizes.argmax(dim=1)]  # [B, K]
        members = torch.where(sizes[:, :, None] > 0, members, largest[:, None, :])
        return members / members.sum(dim=2, keepdim=True)

    def _clusters(self, X: Tensor, pool: Pool) -> Clusters:
        dense = F.normalize(pool.project(X).float(), dim=-1)  # [B, K, Co]
        return _ENGINES[self.engine](dense, self.clusters, self.iterations)
