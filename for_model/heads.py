"""Heads: feature map X -> the embeddings Y of an image.

Shapes: B images, K cells, N embeddings an image, Ce backbone width, Co joint width. Every head returns [B, N, Co]
float32, unit-norm, on the device of X; each image's result depends on that image only. (A vector of length zero can't
be normalised and stays zero; with real weights none occurs.)
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from for_model.backbone import Pool
from for_model.errors import UsageError
from for_model.kmeans import MAX_ITERATIONS, Clusters, kmeans_batched, kmeans_reference

ClusterEngine = Literal["batched", "reference"]

ENGINES: dict[str, Callable[[Tensor, int, int], Clusters]] = {
    "batched": kmeans_batched,
    "reference": kmeans_reference,
}


class Head(Protocol):
    """What turns a feature map into embeddings.

    name: of the method that it makes, `clip`.  settings: what changes its embeddings, as a store records it.
    """

    @property
    def name(self) -> str: ...

    @property
    def settings(self) -> dict[str, Any]: ...

    def n_embeddings(self, n_cells: int) -> int:
        """N, for a feature map of K = n_cells."""
        ...

    def __call__(self, X: Tensor, pool: Pool) -> Tensor:
        """X: [B, K, Ce] float32, the backbone's feature map -> [B, N, Co] float32, unit-norm."""
        ...

    def evidence(self, X: Tensor, pool: Pool) -> Tensor:
        """Where each embedding comes from: [B, N, K] float32, the cells' shares in it, a row summing to at most 1."""
        ...


@dataclass(frozen=True)
class ClipHead:
    """CLIP's own: one embedding, the attention pool queried with the mean token (eq. 1)."""

    name: str = field(default="clip", init=False)

    @property
    def settings(self) -> dict[str, Any]:
        return {}

    def n_embeddings(self, n_cells: int) -> int:
        return 1

    def __call__(self, X: Tensor, pool: Pool) -> Tensor:
        tokens = pool.tokens(X)  # [B, K + 1, Ce]
        return F.normalize(pool.attend(tokens[:, :1], tokens).float(), dim=-1)  # [B, 1, Co]

    def evidence(self, X: Tensor, pool: Pool) -> Tensor:
        """The attention over the cells, averaged over the pool's heads, without the mean token's share: [B, 1, K]."""
        tokens = pool.tokens(X)
        return pool.attend(tokens[:, :1], tokens, return_weights=True)[1][..., 1:]


@dataclass(frozen=True)
class DenseHead:
    """Dense-CLIP: one embedding a cell, c(v(x)), without attention or positions (eq. 2)."""

    name: str = field(default="dense-clip", init=False)

    @property
    def settings(self) -> dict[str, Any]:
        return {}

    def n_embeddings(self, n_cells: int) -> int:
        return n_cells

    def __call__(self, X: Tensor, pool: Pool) -> Tensor:
        return F.normalize(pool.project(X).float(), dim=-1)  # [B, K, Co]

    def evidence(self, X: Tensor, pool: Pool) -> Tensor:
        """Each embedding is one cell's: [B, K, K], the identity."""
        return torch.eye(pool.cells(X).shape[1], device=X.device).expand(len(X), -1, -1)


@dataclass(frozen=True)
class ClusterHead:
    """Cluster-CLIP: K-means over the unit-norm dense embeddings of an image, the mean of each cluster (section 3.1).

    clusters: N.  An image of fewer distinct cells repeats the embedding of its largest cluster.
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
        if self.engine not in ENGINES:
            raise UsageError(f"unknown cluster engine {self.engine!r}; expected one of {', '.join(ENGINES)}")

    @property
    def settings(self) -> dict[str, Any]:
        return {"clusters": self.clusters, "iterations": self.iterations}

    def n_embeddings(self, n_cells: int) -> int:
        return self.clusters

    def __call__(self, X: Tensor, pool: Pool) -> Tensor:
        return F.normalize(self._clusters(X, pool).centres, dim=-1)  # [B, N, Co]

    def evidence(self, X: Tensor, pool: Pool) -> Tensor:
        """The cells of each cluster, in equal shares; where one has none, those of the largest, which it repeats."""
        members = F.one_hot(self._clusters(X, pool).labels, self.clusters).float().transpose(1, 2)  # [B, N, K]
        sizes = members.sum(dim=2)  # [B, N]
        largest = members[torch.arange(len(X), device=X.device), sizes.argmax(dim=1)]  # [B, K]
        members = torch.where(sizes[:, :, None] > 0, members, largest[:, None, :])
        return members / members.sum(dim=2, keepdim=True)

    def _clusters(self, X: Tensor, pool: Pool) -> Clusters:
        dense = F.normalize(pool.project(X).float(), dim=-1)  # [B, K, Co]
        return ENGINES[self.engine](dense, self.clusters, self.iterations)
