"""FT-CLIP and FT-Dense-CLIP: CLIP's and Dense-CLIP's heads, fine-tuned, that FOR is compared with (Table 2)."""

from typing import Any

from torch import Tensor

from for_model.backbones.protocol import Pool
from for_model.heads.clip import ClipHead
from for_model.heads.config import HeadConfig
from for_model.heads.dense import DenseHead
from for_model.heads.projections import own_projections, with_own
from for_model.heads.protocol import TrainableHead


class FineTunedHead(TrainableHead):
    """CLIP's or Dense-CLIP's head with projections of its own, started from CLIP's (Table 2).

    FT-CLIP trains q, k, v and c; FT-Dense-CLIP v and c, all that it has. Raises UsageError for a pool without them.
    """

    def __init__(self, head: ClipHead | DenseHead, pool: Pool) -> None:
        super().__init__()
        self._head = head
        self.own = own_projections(pool, "qkvc" if isinstance(head, ClipHead) else "vc")

    @property
    def settings(self) -> dict[str, Any]:
        return self._head.settings

    def n_embeddings(self, n_cells: int) -> int:
        return self._head.n_embeddings(n_cells)

    def forward(self, X: Tensor, pool: Pool) -> Tensor:
        """X: [B, K, Ce] float32 -> [B, N, Co] float32, unit-norm, N = 1 or K. Differentiable."""
        return self._head(X, with_own(pool, self.own))

    def evidence(self, X: Tensor, pool: Pool) -> Tensor:
        """See `heads.Head.evidence`."""
        return self._head.evidence(X, with_own(pool, self.own))


def fine_tuned_clip(config: HeadConfig, pool: Pool) -> FineTunedHead:
    """FT-CLIP before training. config: none of its settings shapes it.  pool: of the backbone that it is for."""
    return FineTunedHead(ClipHead(), pool)


def fine_tuned_dense_clip(config: HeadConfig, pool: Pool) -> FineTunedHead:
    """FT-Dense-CLIP before training. config: none of its settings shapes it.  pool: of the backbone that it is for."""
    return FineTunedHead(DenseHead(), pool)
