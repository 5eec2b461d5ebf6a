"""The last layer of a CLIP ResNet, taken apart: q, k, v, c and the positions of its attention pool (eq. 1).

Shapes: B images, K cells of the feature map, N queries, Ce backbone width, Co joint width.
"""

import copy
import math
from collections.abc import Mapping
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from for_model.errors import UsageError

WeightAndBias = tuple[Tensor, Tensor]  # of a linear map: its weight and its bias


class AttentionPool(nn.Module):
    """The last layer of a CLIP ResNet, taken apart: q, k, v, c and the positional embedding of `AttentionPool2d`.

    The projections are the model's own modules, shared, not copied.

    attnpool: open_clip's `AttentionPool2d`.
    grid: cells a side of the feature map, so K = grid * grid.
    """

    positional_embedding: Tensor

    def __init__(self, attnpool: Any, grid: int) -> None:
        super().__init__()
        self.q_proj: nn.Linear = attnpool.q_proj
        self.k_proj: nn.Linear = attnpool.k_proj
        self.v_proj: nn.Linear = attnpool.v_proj
        self.c_proj: nn.Linear = attnpool.c_proj
        self.num_heads = int(attnpool.num_heads)
        self.grid = grid
        self.width, self.dim = self.v_proj.in_features, self.c_proj.out_features
        embedding = interpolate_positions(attnpool.positional_embedding.detach(), grid)
        self.register_buffer("positional_embedding", embedding, persistent=False)  # [K + 1, Ce]
        self._folded: tuple[list[tuple[int, int, int]], tuple[Tensor, Tensor]] | None = None  # see `_c_after_v`

    def with_projections(self, own: Mapping[str, nn.Module]) -> "AttentionPool":
        """The same pool with other modules in place of some projections, `{"v_proj": module}`; all else is shared."""
        mixed = copy.copy(self)
        mixed._modules = {**self._modules, **own}
        return mixed

    def cells(self, X: Tensor) -> Tensor:
        """X itself: a ResNet has no class token."""
        return X

    def tokens(self, X: Tensor) -> Tensor:
        """X: [B, K, Ce], a feature map -> [B, K + 1, Ce]: the mean of its cells, then the cells, positions added.

        Raises UsageError when K is not the pool's.
        """
        check_tokens(X, self.grid)
        X = torch.cat([X.mean(dim=1, keepdim=True), X], dim=1)  # [B, K + 1, Ce]
        return X + self.positional_embedding.to(X.dtype)

    @overload
    def attend(self, queries: Tensor, tokens: Tensor, return_weights: Literal[False] = False) -> Tensor: ...

    @overload
    def attend(self, queries: Tensor, tokens: Tensor, return_weights: Literal[True]) -> tuple[Tensor, Tensor]: ...

    def attend(self, queries: Tensor, tokens: Tensor, return_weights: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Multi-head attention: Y = c(Z), Z = softmax(q(queries) k(tokens)^T) v(tokens) (eq. 1 and 3).

        queries: [B, N, Ce], what goes into q.
        tokens: [B, K', Ce], what goes into k and v; K' is free.
        return_weights: whether to return the attention weights as well.

        Returns Y [B, N, Co], not normalised; with `return_weights` also the attention weights [B, N, K'], averaged over
        the heads, each row summing to 1. Differentiable in both arguments.
        """
        k, v = ((linear.weight, linear.bias) for linear in (self.k_proj, self.v_proj))
        Z, weights = attend_tokens(self.q_proj(queries), tokens, tokens, k, v, self.num_heads)
        Y: Tensor = self.c_proj(Z)  # [B, N, Co]
        return (Y, weights.mean(dim=1)) if return_weights else Y

    def project(self, X: Tensor) -> Tensor:
        """y_i = c(v(x_i)) for every cell (eq. 2): no positions, no attention.

        X: [B, K, Ce], a feature map.

        Returns [B, K, Co], not normalised.
        """
        return self.c_proj(self.v_proj(X))

    def dense_and_whole(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """See `protocol.Pool`. c(v(x)) is one linear map here, and is taken as one."""
        return F.linear(X, *self._c_after_v()), self._attend_with_the_mean(X)

    def _c_after_v(self) -> tuple[Tensor, Tensor]:
        """c(v(x)) as one map: its weight [Co, Ce] and bias [Co]. Made once, and again when a projection has changed."""
        v, c = self.v_proj, self.c_proj
        made_of = [(id(p), p.data_ptr(), p._version) for p in (v.weight, v.bias, c.weight, c.bias)]
        if self._folded is None or self._folded[0] != made_of:
            # It is kept: in full precision, and so that a training can use it, whatever the first caller is at.
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(v.weight.device.type, enabled=False):
                self._folded = made_of, (c.weight @ v.weight, F.linear(v.bias, c.weight, c.bias))
        return self._folded[1]

    def _attend_with_the_mean(self, X: Tensor) -> Tensor:
        """CLIP's own embedding (eq. 1), [B, 1, Co], without k or v of any token, and without a copy of the tokens.

        The one query goes through k the other way round, and the tokens' weighted mean through v. The mean token's
        logit is the mean of the cells' (before the positions), and its weight is a share of each cell's.
        """
        check_tokens(X, self.grid)
        heads, positions = (self.num_heads, -1), self.positional_embedding.to(X.dtype)  # [K + 1, Ce]
        q = self.q_proj(X.mean(dim=1) + positions[0]).unflatten(-1, heads)  # [B, heads, Ce / heads]
        asked = torch.einsum("bhd,hdc->bhc", q, self.k_proj.weight.unflatten(0, heads))  # k's bias moves all alike
        of_cells = asked @ X.transpose(1, 2)  # [B, heads, K]
        logits = torch.cat([of_cells.mean(dim=-1, keepdim=True), of_cells], dim=-1) + asked @ positions.T
        weights = (logits / math.sqrt(q.shape[-1])).softmax(dim=-1).to(X.dtype)  # [B, heads, K + 1]
        pooled = (weights[..., 1:] + weights[..., :1] / X.shape[1]) @ X + weights @ positions  # [B, heads, Ce]
        Z = torch.einsum("bhc,hdc->bhd", pooled, self.v_proj.weight.unflatten(0, heads))
        Y: Tensor = self.c_proj(Z.flatten(1) + self.v_proj.bias)
        return Y[:, None]


def attend_tokens(
    q: Tensor, keys: Tensor, values: Tensor, k: WeightAndBias, v: WeightAndBias, heads: int, dropout: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Multi-head attention of projected queries to tokens: Z = softmax(q k(keys)^T) v(values) (eq. 1 and 3).

    q: [B or 1, N, Ce], projected; 1 for the same queries in every image.
    keys, values: [B, K', Ce], not projected.
    k, v: the weight [Ce, Ce] and the bias [Ce] of their projections.
    heads: their number, which divides Ce.
    dropout: of the weights, a probability.

    Returns Z [B, N, Ce] and the weights [B, heads, N, K'], rows summing to 1 without dropout.

    A few queries go through k the other way round, and the tokens that they attend to through v once they are summed,
    so that no token is projected: it is the same sum in another order.
    """
    # Written out: on a CPU in bfloat16 the fused kernel takes longer, and a few queries need little memory.
    (k_weight, k_bias), (v_weight, v_bias) = k, v
    n, width = q.shape[1:]
    q = q.unflatten(-1, (heads, -1)).transpose(1, 2)  # [B or 1, heads, N, Ce / heads]
    few = n * (1 + heads * keys.shape[1] / width) < keys.shape[1]
    if few:
        asked = torch.einsum("bhnd,hdc->bhnc", q, k_weight.unflatten(0, (heads, -1))).flatten(1, 2)
        logits = (asked @ keys.transpose(1, 2)).unflatten(1, (heads, n))
        logits = logits + q @ k_bias.unflatten(0, (heads, -1))[..., None]
    else:
        logits = q @ F.linear(keys, k_weight, k_bias).unflatten(-1, (heads, -1)).transpose(1, 2).transpose(-2, -1)
    weights = F.dropout((logits / math.sqrt(q.shape[-1])).softmax(dim=-1), dropout, training=dropout > 0)
    mixed = weights.to(values.dtype)  # [B, heads, N, K']
    if few:
        summed = (mixed.flatten(1, 2) @ values).unflatten(1, (heads, n))  # [B, heads, N, Ce]
        Z = torch.einsum("bhnc,hdc->bnhd", summed, v_weight.unflatten(0, (heads, -1)))
        Z = Z + mixed.sum(-1).transpose(1, 2)[..., None] * v_bias.unflatten(0, (heads, -1))
    else:
        Z = (mixed @ F.linear(values, v_weight, v_bias).unflatten(-1, (heads, -1)).transpose(1, 2)).transpose(1, 2)
    return Z.flatten(2), weights


def packed_projections(attention: nn.MultiheadAttention) -> list[WeightAndBias]:
    """q, k and v of torch's attention, which keeps them in one matrix."""
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    return list(zip(weight.chunk(3), bias.chunk(3), strict=True))


def check_tokens(X: Tensor, grid: int, extra: int = 0) -> None:
    """Raise UsageError when X isn't a feature map [B, grid * grid + extra, Ce].

    X: the feature map to check.
    grid: cells a side that are expected.
    extra: class tokens that are expected before the cells.
    """
    if X.ndim != 3 or X.shape[1] != grid * grid + extra:
        raise UsageError(
            f"got features {list(X.shape)}, expected [B, {grid * grid + extra}, Ce]; "
            f"load the backbone with the image size that the features were made at"
        )


def interpolate_positions(embedding: Tensor, grid: int) -> Tensor:
    """Fit a positional embedding to another grid.

    embedding: [G * G + 1, Ce], the mean token's first, then the cells row by row.
    grid: cells a side wanted.

    Returns [grid * grid + 1, Ce], the cells' part interpolated bicubically, the mean token's kept. At the embedding's
    own grid it is returned as it is.
    """
    own = math.isqrt(len(embedding) - 1)
    if own == grid:
        return embedding
    cells = embedding[1:].reshape(1, own, own, -1).permute(0, 3, 1, 2)  # [1, Ce, G, G]
    # antialias matters below the own grid only: plain bicubic would skip cells there
    cells = F.interpolate(cells.float(), size=(grid, grid), mode="bicubic", align_corners=False, antialias=grid < own)
    cells = cells.permute(0, 2, 3, 1).reshape(grid * grid, -1).to(embedding.dtype)
    return torch.cat([embedding[:1], cells])
