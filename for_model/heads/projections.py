"""What fine-tuning changes of an attention pool: copies of its projections, or a map that is added to its values."""

import copy

from torch import Tensor, nn

from for_model.backbones.attention_pool import AttentionPool
from for_model.backbones.protocol import Pool
from for_model.errors import UsageError


def own_projections(pool: Pool, letters: str) -> nn.ModuleDict:
    """Trainable copies of some of the pool's projections, started from CLIP's.

    pool: a CLIP's, whose projections are copied.
    letters: which of `qkvc` to copy; an empty string for none.

    Returns the copies, named `q_proj` and so on.
    Raises UsageError for a pool that isn't a CLIP's, as photo-lite's, which has no such projections.
    """
    if letters and not isinstance(pool, AttentionPool):
        raise UsageError("this backbone has no q, k, v, c of CLIP's to train: use head.kind=for with head.freeze=qkvo")
    own = {f"{letter}_proj": copy.deepcopy(getattr(pool, f"{letter}_proj")) for letter in letters}
    return nn.ModuleDict(own).requires_grad_(True)


def with_own(pool: Pool, own: nn.ModuleDict) -> Pool:
    """The pool with a head's own projections in place of its frozen ones."""
    if not len(own) or not isinstance(pool, AttentionPool):
        return pool
    return pool.with_projections(dict(own.items()))


def value_residual(pool: Pool, hidden: int) -> nn.Module:
    """A trainable map [..., Ce] -> [..., Co] that is zero at first, to be added to a pool's frozen values.

    pool: whose widths Ce and Co the map has.
    hidden: units of a ReLU layer; 0 for a linear map.
    """
    if not hidden:
        return zeroed(nn.Linear(pool.width, pool.dim))
    return nn.Sequential(nn.Linear(pool.width, hidden), nn.ReLU(), zeroed(nn.Linear(hidden, pool.dim)))


def attend_adding(pool: Pool, residual: nn.Module, queries: Tensor, tokens: Tensor) -> Tensor:
    """The pool's attention with a trained map of the tokens added to its values: attend(queries) + r(A tokens).

    residual: r, of `value_residual`.
    queries, tokens: as of `Pool.attend`, whose weights are A.
    Returns Y [B, N, Co], not normalised.
    """
    frozen, weights = pool.attend(queries, tokens, return_weights=True)  # [B, N, Co], [B, N, K']
    added: Tensor = residual(weights @ tokens)
    return frozen + added


def zeroed(linear: nn.Linear) -> nn.Linear:
    """The same linear map, its weight and bias set to zero."""
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
