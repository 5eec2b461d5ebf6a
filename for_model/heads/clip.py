"""CLIP's own head: one embedding an image (eq. 1)."""

from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from for_model.backbones.protocol import Pool


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
