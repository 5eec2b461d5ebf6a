"""FT-CLIP and FT-Dense-CLIP: CLIP's and Dense-CLIP's heads, fine-tuned, that FOR is compared with (Table 2)."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from for_model.backbones.attention_pool import AttentionPool
from for_model.backbones.protocol import Pool
from for_model.heads.clip import ClipHead
from for_model.heads.dense import DenseHead
from for_model.heads.projections import attend_adding, own_projections, value_residual, with_own
from for_model.heads.protocol import TrainableHead


class FineTunedHead(TrainableHead):
    """CLIP's or Dense-CLIP's head with values of its own, started from the frozen ones (Table 2).

    On a CLIP's pool, FT-CLIP trains copies of q, k, v and c, FT-Dense-CLIP copies of v and c, all that it has. On a
    pool without them (photo-lite's v is a classifier and its c fixed names) a linear map of the tokens, zero at first,
    is trained and added to the frozen values.

    head: CLIP's or Dense-CLIP's, which is fine-tuned.
    pool: of the backbone that it is for.
    """

    def __init__(self, head: ClipHead | DenseHead, pool: Pool) -> None:
        super().__init__()
        self._head = head
        has_projections = isinstance(pool, AttentionPool)
        letters = "qkvc" if isinstance(head, ClipHead) else "vc"
        self.own = own_projections(pool, letters if has_projections else "")
        self.residual: nn.Module | None = None if has_projections else value_residual(pool, hidden=0)

    @property
    def settings(self) -> dict[str, Any]:
        return self._head.settings

    def n_embeddings(self, n_cells: int) -> int:
        return self._head.n_embeddings(n_cells)

    def forward(self, X: Tensor, pool: Pool) -> Tensor:
        """X: [B, K, Ce] float32 -> [B, N, Co] float32, unit-norm, N = 1 or K. Differentiable."""
        if self.residual is None:
            return self._head(X, with_own(pool, self.own))
        if isinstance(self._head, DenseHead):
            return F.normalize((pool.project(X) + self.residual(pool.cells(X))).float(), dim=-1)
        tokens = pool.tokens(X)
        return F.normalize(attend_adding(pool, self.residual, tokens[:, :1], tokens).float(), dim=-1)  # [B, 1, Co]

    def evidence(self, X: Tensor, pool: Pool) -> Tensor:
        """See `Head.evidence`."""
        return self._head.evidence(X, with_own(pool, self.own))
