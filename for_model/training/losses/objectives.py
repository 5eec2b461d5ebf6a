"""What a training minimises: a loss on labels and a loss on what is not labelled, of a part of a batch.

`SetObjective` is the paper's, `RankingObjective` ours. The loop (`train.py`) weighs and adds the two losses.
Shapes: b images, N embeddings an image, C base categories, V names of the vocabulary, Co joint width.
"""

from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from for_model.backbones.protocol import ImageTextBackbone
from for_model.training.config import TrainConfig
from for_model.training.features import Rows
from for_model.training.losses.ranking import best_cosines, ranking_loss, teacher_loss
from for_model.training.losses.set_prediction import set_prediction_loss
from for_model.training.targets import Targets


class TrainingObjective(Protocol):
    """The two losses of a training, each the mean over the images that it is given."""

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained besides the head, by name."""
        ...

    def on_labels(self, Y: Tensor, rows: Rows, step: int) -> Tensor:
        """The loss on labels. Y: [b, N, Co] float32, unit-norm.  rows: [b], which images of the dataset, all labelled.
        Returns a scalar."""
        ...

    def on_unlabelled(self, Y: Tensor, rows: Rows, step: int) -> Tensor:
        """The loss on what no label says, of any images. Arguments and result are as of `on_labels`."""
        ...


class SetObjective:
    """The set prediction loss on labels and on pseudo-labels (eq. 5 and 6).

    limit: N, since more pseudo-labels than embeddings can't be matched.
    """

    def __init__(self, config: TrainConfig, targets: Targets, backbone: ImageTextBackbone, limit: int) -> None:
        self._config, self._targets, self._limit = config, targets, limit
        self._scale = config.loss.scale * backbone.logit_scale
        self._no_object: nn.Parameter | None = None
        if config.loss.no_object_weight:
            start = F.normalize(torch.randn(backbone.dim), dim=0)
            self._no_object = nn.Parameter(start.to(backbone.device))

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        return {} if self._no_object is None else {"no_object": self._no_object}

    def on_labels(self, Y: Tensor, rows: Rows, step: int) -> Tensor:
        wanted = [self._targets.base[row] for row in rows]
        known = self._targets.known(rows, self._config.loss.negatives, (self._config.seed, step))
        known = None if known is None else known.to(Y.device)
        return self._loss(Y, self._targets.base_texts, wanted, known)

    def on_unlabelled(self, Y: Tensor, rows: Rows, step: int) -> Tensor:
        if self._targets.pseudo is None:
            return 0.0 * Y.sum()
        labels = [self._targets.pseudo.of(row, self._limit).tolist() for row in rows]
        return self._loss(Y, self._targets.pseudo_texts, labels)

    def _loss(self, Y: Tensor, texts: Tensor, wanted: list[list[int]], known: Tensor | None = None) -> Tensor:
        weight = self._config.loss.no_object_weight
        return set_prediction_loss(Y, texts, wanted, self._scale, self._no_object, weight, known)


class RankingObjective:
    """The ranking of a batch's images for each labelled name, and a soft teacher's for the others (ours).

    A label counts by how rare its name is: by frequency ** -rarity, scaled so that the mean over all labels is 1.
    """

    def __init__(self, config: TrainConfig, targets: Targets) -> None:
        self._config, self._targets = config, targets
        self._scale, self._teacher_scale = 1 / config.loss.temperature, 1 / config.loss.teacher_temperature
        weights = np.maximum(targets.frequencies, 1) ** -config.loss.rarity  # [C]
        total = targets.frequencies.sum()
        if total:
            weights *= total / (weights * targets.frequencies).sum()
        self._weights = torch.from_numpy(weights).float()

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        return {}

    def on_labels(self, Y: Tensor, rows: Rows, step: int) -> Tensor:
        texts = self._targets.base_texts
        positive = torch.zeros(len(rows), len(texts), dtype=torch.bool)
        for place, row in enumerate(rows):
            positive[place, self._targets.base[row]] = True
        known = self._targets.known(rows, self._config.loss.negatives, (self._config.seed, step))
        negative = ~positive if known is None else known & ~positive
        scores = best_cosines(Y.float(), texts)  # [b, C]
        device = scores.device
        return ranking_loss(scores, positive.to(device), self._scale, negative.to(device), self._weights.to(device))

    def on_unlabelled(self, Y: Tensor, rows: Rows, step: int) -> Tensor:
        if self._targets.teacher is None:
            return 0.0 * Y.sum()
        texts, teacher = self._targets.pseudo_texts, self._targets.teacher.of(rows, Y.device)
        if 0 < self._config.pseudo_labels.a_step < len(texts):
            rng = np.random.default_rng([self._config.seed, step, 11])
            drawn = rng.choice(len(texts), self._config.pseudo_labels.a_step, replace=False)
            chosen = torch.from_numpy(np.sort(drawn)).to(Y.device)
            texts, teacher = texts[chosen], teacher[:, chosen]
        return teacher_loss(best_cosines(Y.float(), texts), teacher, self._teacher_scale)
