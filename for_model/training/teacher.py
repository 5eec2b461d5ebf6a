"""The soft teacher of the ranking objective: how the untrained heads order a dataset's images for each name.

Ours, not the paper's: pseudo-labels (eq. 4) say yes or no to an image; this keeps the whole order of the images.
Shapes: M images of the dataset, V names, K cells, Ce backbone width, Co joint width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from for_model.backbones.protocol import ImageTextBackbone
from for_model.heads.for_plus import FrozenParts, frozen_parts
from for_model.training.features import Features, Rows, every_image, rows_in_order
from for_model.training.losses.ranking import best_cosines, teacher_logits

_BATCH = 64
_MOST_BYTES = 2**31  # of frozen parts that are kept in memory


@dataclass(frozen=True)
class Frozen:
    """What the frozen backbone makes of every image, kept in memory as float16: see `heads.for_plus.FrozenParts`.

    dense: [M, K, Co].  whole: [M, 1, Co]. Zeros for images that can't be decoded.
    """

    dense: Tensor
    whole: Tensor

    def of(self, rows: Rows, device: torch.device) -> FrozenParts:
        """Some images' parts, float32, on the device."""
        chosen = torch.from_numpy(rows)
        return FrozenParts(*(part[chosen].to(device, torch.float32) for part in (self.dense, self.whole)))


@dataclass(frozen=True)
class Survey:
    """What one look at all images of a dataset finds.

    means: [m, Ce] float32, the mean cell of each image that can be decoded.
    frozen: what the frozen backbone makes of every image; None when it would take more than 2 GiB.
    """

    means: Tensor
    frozen: Frozen | None


@torch.no_grad()
def survey(features: Features, backbone: ImageTextBackbone) -> Survey:
    """Look at every image of a dataset once.

    features: the feature maps of the dataset.
    backbone: that made them.
    """
    count, dim = len(features.usable), backbone.dim
    frozen = None
    if 2 * count * (backbone.n_cells + 1) * dim <= _MOST_BYTES:
        dense = torch.zeros(count, backbone.n_cells, dim, dtype=torch.float16)
        frozen = Frozen(dense, torch.zeros(count, 1, dim, dtype=torch.float16))
    means = torch.zeros(count, backbone.width)  # [M, Ce], of each image's cells
    for rows, X in every_image(features, _BATCH, "feature maps"):
        chosen = torch.from_numpy(rows)
        means[chosen] = backbone.pool.cells(X).mean(dim=1).cpu()
        if frozen is not None:
            parts = frozen_parts(X, backbone.pool)
            frozen.dense[chosen], frozen.whole[chosen] = parts.dense.half().cpu(), parts.whole.half().cpu()
    return Survey(means[torch.from_numpy(features.usable)], frozen)


@dataclass(frozen=True)
class Teacher:
    """logits: [M, V] float16, as `teacher_logits` gives them; 0 for images that can't be decoded."""

    logits: Tensor

    def of(self, rows: Rows, device: torch.device) -> Tensor:
        """Some images' logits: [b, V] float32, on the device."""
        return self.logits[torch.from_numpy(rows)].to(device, torch.float32)


@torch.no_grad()
def soft_teacher(
    views: Sequence[tuple[Features, Frozen | None]], backbone: ImageTextBackbone, texts: Tensor, sharpness: float
) -> Teacher:
    """What CLIP's own embedding and Dense-CLIP's cells together say of every image for every name.

    views: the feature maps of the dataset's images, and of their mirror images if they are to be looked at too, each
        with what `survey` kept of them; without that it is made again. All have the same usable images.
    backbone: that made them.
    texts: [V, Co] float32, unit-norm, the names' embeddings, on the backbone's device.
    sharpness: see `teacher_logits`.
    """
    usable = torch.from_numpy(views[0][0].usable)
    count, scores = len(usable), []
    for features, frozen in views:
        of_view = [torch.zeros(count, len(texts)) for _ in FrozenParts._fields]  # [M, V] of Dense-CLIP and of CLIP
        for rows, parts in _parts(features, backbone, frozen):
            for of_head, part in zip(of_view, parts, strict=True):
                of_head[torch.from_numpy(rows)] = best_cosines(F.normalize(part, dim=-1), texts).cpu()
        scores += [of_head[usable] for of_head in of_view]
    logits = torch.zeros(count, len(texts), dtype=torch.float16)
    logits[usable] = teacher_logits(scores, sharpness).half()
    return Teacher(logits)


def _parts(
    features: Features, backbone: ImageTextBackbone, frozen: Frozen | None
) -> Iterator[tuple[Rows, FrozenParts]]:
    """The frozen parts of all usable images, some at a time; no feature map is looked at where they are kept."""
    if frozen is None:
        for rows, X in every_image(features, _BATCH, "soft teacher"):
            yield rows, frozen_parts(X, backbone.pool)
        return
    order = rows_in_order(len(features.usable), _BATCH)
    for some in tqdm(order, desc="soft teacher", unit="batch", disable=None):
        rows = some[features.usable[some]]
        yield rows, frozen.of(rows, backbone.device)
