"""SUM-CLIP: a few embeddings an image from learnable queries (eq. 3), the head that FOR trains.

Shapes: B images, K cells, N queries and embeddings, Ce backbone width, Co joint width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from for_model.backbones.attention_pool import AttentionPool, attend_tokens, packed_projections
from for_model.backbones.protocol import Pool
from for_model.errors import UsageError
from for_model.heads.config import Freeze, SumSettings
from for_model.heads.projections import attend_adding, own_projections, value_residual, with_own
from for_model.heads.protocol import TrainableHead

_TRAINED: dict[Freeze, str] = {"none": "qkvc", "vo": "qk", "qkvo": ""}


class DecoderLayer(nn.Module):
    """One decoder layer of DETR (post-norm): the queries attend to one another, then to the cells, then feed forward.

    As in DETR, the queries' own embeddings are added to what asks and to the keys of the self-attention, the cells'
    positions to the keys of the cross-attention, neither to the values.

    width: Ce, of the queries and the cells.
    heads: attention heads, which divide the width.
    feedforward: hidden width of the two linear maps at the end.
    dropout: a probability.
    """

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.self_attention = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.cross_attention = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.expand, self.contract = nn.Linear(width, feedforward), nn.Linear(feedforward, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, queries: Tensor, cells: Tensor, placed: Tensor) -> Tensor:
        """One layer.

        x: [B or 1, N, Ce], what the layer before gave, or the queries at first; 1 while all images have the same.
        queries: [1, N, Ce], the queries' own embeddings.
        cells: [B, K, Ce], the feature map without positions.
        placed: [B, K, Ce], the feature map with positions.

        Returns the next x, [B, N, Ce].
        """
        asking = x + queries
        x = self.norms[0](x + self.dropout(self.self_attention(asking, asking, x, need_weights=False)[0]))
        x = self.norms[1](x + self.dropout(self._look(x + queries, cells, placed)))
        return self.norms[2](x + self.dropout(self.contract(self.dropout(F.relu(self.expand(x))))))

    def _look(self, asking: Tensor, cells: Tensor, placed: Tensor) -> Tensor:
        """The cross-attention, in the way that is fast for a few queries. Arguments as of `forward`."""
        attention = self.cross_attention
        q, k, v = packed_projections(attention)
        dropout = attention.dropout if self.training else 0.0
        Z, _ = attend_tokens(F.linear(asking, *q), placed, cells, k, v, attention.num_heads, dropout)
        looked: Tensor = attention.out_proj(Z)
        return looked


class SumHead(TrainableHead):
    """SUM-CLIP (eq. 3): Y = c(Z), Z = softmax(q(F(Q, X)) k(X)^T) v(X).

    The last attention is the backbone's attention pool, mean token and positions included, so that with CLIP's own
    query it gives CLIP's embedding. Projections that are not frozen are the head's own copies, started from CLIP's; on
    a pool that has none (photo-lite's), a linear map of the tokens, zero at first, is added to the values instead.
    The decoder F starts from the queries themselves: started from zeros, as DETR's, its queries are all but alike at
    first, and it learns little. Queries and decoder are Xavier-uniform.

    settings: what shapes the head.
    pool: of the backbone that the head is for.

    Raises UsageError when `heads` doesn't divide the backbone's width, or the pool has no projections to unfreeze.
    """

    name = "for"

    def __init__(self, settings: SumSettings, pool: Pool) -> None:
        super().__init__()
        if pool.width % settings.heads:
            raise UsageError(f"{settings.heads} decoder heads don't divide the backbone's width of {pool.width}")
        self._settings = settings
        self.queries = nn.Parameter(torch.empty(settings.queries, pool.width))
        self.layers = nn.ModuleList(
            DecoderLayer(pool.width, settings.heads, settings.feedforward, settings.dropout)
            for _ in range(settings.layers)
        )
        self.norm = nn.LayerNorm(pool.width) if settings.layers else nn.Identity()
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
        trains_values = settings.freeze == "none" and not isinstance(pool, AttentionPool)
        self.residual: nn.Module | None = value_residual(pool, hidden=0) if trains_values else None
        self.own = own_projections(pool, "" if trains_values else _TRAINED[settings.freeze])

    @property
    def settings(self) -> dict[str, Any]:
        return self._settings.model_dump()

    def n_embeddings(self, n_cells: int) -> int:
        return self._settings.queries

    def forward(self, X: Tensor, pool: Pool) -> Tensor:
        """X: [B, K, Ce] float32, the backbone's feature map -> [B, N, Co] float32, unit-norm. Differentiable."""
        tokens = pool.tokens(X)
        queries = self._modulate(pool.cells(X), tokens)
        if self.residual is None:
            Y = with_own(pool, self.own).attend(queries, tokens)
        else:
            Y = attend_adding(pool, self.residual, queries, tokens)
        return F.normalize(Y.float(), dim=-1)

    def evidence(self, X: Tensor, pool: Pool) -> Tensor:
        """Where each embedding looked: [B, N, K], the pool's attention over the cells, averaged over its heads.

        The mean token's share is left out, so a row sums to at most 1.
        """
        tokens = pool.tokens(X)
        _, weights = with_own(pool, self.own).attend(self._modulate(pool.cells(X), tokens), tokens, return_weights=True)
        return weights[..., 1:]

    def _modulate(self, cells: Tensor, tokens: Tensor) -> Tensor:
        """F(Q, X): the queries that the pool is asked with, [B, N, Ce]."""
        x = queries = self.queries[None]
        if self.training and self._settings.dropout:
            x = x.expand(len(cells), -1, -1)  # each image drops others of its numbers
        for layer in self.layers:
            x = layer(x, queries, cells, tokens[:, 1:])
        modulated: Tensor = self.norm(x)
        return modulated.expand(len(cells), -1, -1)
