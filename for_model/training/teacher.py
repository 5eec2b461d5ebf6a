"""The soft teacher of the ranking objective: how the untrained heads order a dataset's images for each name.

Ours, not the paper's: pseudo-labels (eq. 4) say yes or no to an image; this keeps the whole order of the images.
Shapes: M images of the dataset, V names, K cells, Ce backbone width, Co joint width.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from for_model.backbones.protocol import ImageTextBackbone
from for_model.heads.clip import ClipHead
from for_model.heads.dense import DenseHead
from for_model.heads.protocol import Head
from for_model.training.features import Features, Rows
from for_model.training.losses.ranking import best_cosines, teacher_logits

_BATCH = 64


@dataclass(frozen=True)
class Teacher:
    """logits: [M, V] float16, as `ranking_losses.teacher_logits` gives them; 0 for images that can't be decoded."""

    logits: Tensor

    def of(self, rows: Rows, device: torch.device) -> Tensor:
        """[b, V] float32: some images' logits."""
        return self.logits[torch.from_numpy(rows)].to(device, torch.float32)


@torch.no_grad()
def soft_teacher(features: Features, backbone: ImageTextBackbone, texts: Tensor, sharpness: float) -> Teacher:
    """What CLIP's own embedding and Dense-CLIP's cells together say of every image for every name.

    features: the feature maps of the dataset.
    backbone: that made them.
    texts: [V, Co] float32, unit-norm, the names' embeddings, on the backbone's device.
    sharpness: see `teacher_logits`.
    """
    heads: tuple[Head, ...] = (ClipHead(), DenseHead())
    count = len(features.usable)
    scores = [torch.zeros(count, len(texts)) for _ in heads]  # [M, V] each
    order = [np.arange(start, min(start + _BATCH, count)) for start in range(0, count, _BATCH)]
    for rows, X in tqdm(features.batches(order), total=len(order), desc="soft teacher", unit="batch", disable=None):
        for of_head, head in zip(scores, heads, strict=True):
            of_head[torch.from_numpy(rows)] = best_cosines(head(X, backbone.pool), texts).cpu()
    usable = torch.from_numpy(features.usable)
    logits = torch.zeros(count, len(texts), dtype=torch.float16)
    logits[usable] = teacher_logits([of_head[usable] for of_head in scores], sharpness).half()
    return Teacher(logits)
