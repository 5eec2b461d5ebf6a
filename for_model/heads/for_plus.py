"""FOR+: a partition of the cells in CLIP's own dense space, with values that are trained.

Ours, not the paper's. SUM-CLIP's learned queries forget where to look for what they weren't shown (docs/training.md); a
partition by CLIP's own dense embeddings can't. It starts as a soft Cluster-CLIP.
Shapes: B images, K cells, N embeddings an image, Ce backbone width, Co joint width.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from for_model.backbones.protocol import Pool
from for_model.heads.config import PlusSettings
from for_model.heads.kmeans import seed_clusters
from for_model.heads.projections import value_residual, zeroed
from for_model.heads.protocol import TrainableHead


class FrozenParts(NamedTuple):
    """What the head needs of the frozen backbone besides X: the same in every step of a training.

    dense: [B, K, Co], c(v(x)) of every cell (eq. 2), not normalised.
    whole: [B, 1, Co], CLIP's own embedding (eq. 1), unit-norm.
    """

    dense: Tensor
    whole: Tensor


@torch.no_grad()
def frozen_parts(X: Tensor, pool: Pool) -> FrozenParts:
    """X: [B, K, Ce] float32, the backbone's feature map -> the parts, float32."""
    dense, whole = pool.dense_and_whole(X)
    return FrozenParts(dense.float(), F.normalize(whole.float(), dim=-1))


class ForPlusHead(TrainableHead):
    """FOR+: y_n = norm(norm(z_n) + whole * y_CLIP), with z_n a weighted mean of the cells' values.

    With d_k = norm(c(v(x_k))), the frozen dense embedding of cell k (eq. 2), y_CLIP CLIP's own embedding (eq. 1) and
    s_n the d of the n-th of N seed cells:

        w_k  = exp(a x_k + b)                                          a, b zero at first
        P_nk = softmax over n of sharpness * cos(q s_n, k d_k)         q, k: [Co, Co], the identity at first
        A_nk = P_nk w_k / sum over k of P_nk w_k
        z_n  = sum_k A_nk c(v(x_k)) + r((root(sum_k A_nk x_k) - m) / s)   r zero at first

    The seeds are those of K-means' greedy seeding (`kmeans.seed_clusters`), cells counting by w_k so that fewer seeds
    go to what is never asked for; there are no iterations, and no gradient through the choice. Where there are fewer
    distinct cells than N, the first seed is repeated.
    r is what is trained of the values: a linear map of X, or one with a hidden layer, added to the frozen c(v(x)),
    which may be anything: a CLIP's projections, or photo-lite's classifier and fixed names. root is the identity,
    or, with `root`, the signed square root, which tames a few large features; no gradient reaches the shares through
    it, as its slope at 0 has no bound. m [Ce] and the number s (`centre`, `spread`) are its mean and spread over the
    training images, so that r learns alike on any backbone; 0 and 1 until `fit_to` is called.

    pool: of the backbone that the head is for.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, settings: PlusSettings, pool: Pool) -> None:
        super().__init__()
        self._settings = settings
        self.q = nn.Linear(pool.dim, pool.dim, bias=False)
        self.k = nn.Linear(pool.dim, pool.dim, bias=False)
        nn.init.eye_(self.q.weight)
        nn.init.eye_(self.k.weight)
        self.weight = zeroed(nn.Linear(pool.width, 1))
        self.residual = value_residual(pool, settings.hidden)
        self.register_buffer("centre", torch.zeros(pool.width))
        self.register_buffer("spread", torch.ones(()))

    @property
    def settings(self) -> dict[str, Any]:
        return self._settings.model_dump()

    def n_embeddings(self, n_cells: int) -> int:
        return self._settings.queries

    def fit_to(self, means: Tensor) -> None:
        """Take the features' mean and spread into the head, before training.

        means: [M, Ce] float32, the mean cell of each training image, at least one.
        """
        rooted = self._root(means)
        self.centre.copy_(rooted.mean(dim=0))
        self.spread.fill_((rooted - rooted.mean(dim=0)).square().mean().sqrt().clamp(min=1e-6))

    def _root(self, x: Tensor) -> Tensor:
        return x.abs().sqrt().copysign(x) if self._settings.root else x

    def forward(self, X: Tensor, pool: Pool, frozen: FrozenParts | None = None) -> Tensor:
        """X: [B, K, Ce] float32, the backbone's feature map -> [B, N, Co] float32, unit-norm. Differentiable.

        frozen: the parts of X, if they are at hand.
        """
        dense, whole = frozen_parts(X, pool) if frozen is None else frozen
        shares = self._shares(pool.cells(X), dense)
        pooled = self._root((shares.detach() if self._settings.root else shares) @ pool.cells(X))  # [B, N, Ce]
        z = shares @ dense + self.residual((pooled - self.centre) / self.spread).float()  # [B, N, Co]
        return F.normalize(F.normalize(z, dim=-1) + self._settings.whole * whole, dim=-1)

    def evidence(self, X: Tensor, pool: Pool) -> Tensor:
        """The cells' shares A in each embedding: [B, N, K], a row summing to 1."""
        return self._shares(pool.cells(X), frozen_parts(X, pool).dense)

    def _shares(self, cells: Tensor, dense: Tensor) -> Tensor:
        """A: [B, N, K]. cells: [B, K, Ce].  dense: [B, K, Co], not normalised."""
        unit = F.normalize(dense, dim=-1)
        log_weight = self.weight(cells).squeeze(-1).float()  # [B, K]
        with torch.no_grad():
            gram = unit @ unit.transpose(1, 2)  # [B, K, K]
            # Two cells that nobody else is near are as good a seed one as the other: rounding shall not choose.
            gram = ((gram + gram.transpose(1, 2)) / 2).double()
            seeds = seed_clusters(gram, self._settings.queries, log_weight.double().exp())
            seeds = torch.where(seeds < 0, seeds[:, :1], seeds)
        asked = unit.gather(1, seeds[..., None].expand(-1, -1, unit.shape[-1]))  # [B, N, Co]
        keys = self.k(unit)
        cosines = F.normalize(self.q(asked), dim=-1) @ keys.transpose(1, 2)  # [B, N, K], times the keys' lengths
        cosines = cosines.float() / keys.norm(dim=-1).float().clamp(min=1e-12)[:, None, :]
        log_p = (self._settings.sharpness * cosines).log_softmax(dim=1)  # over the seeds
        return (log_p + log_weight[:, None, :]).softmax(dim=-1)
