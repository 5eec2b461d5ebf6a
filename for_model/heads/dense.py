"""Dense-CLIP: one embedding a cell (eq. 2)."""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from for_model.backbones.protocol import Pool


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
        """Each embedding comes from one cell: [B, K, K] float32, the identity."""
        return torch.eye(pool.cells(X).shape[1], device=X.device).expand(len(X), -1, -1)
