"""What a training minimises: a loss on labels and a loss on what is not labelled, of a part of a batch.

`SetObjective` is the paper's, `RankingObjective` ours. The loop (`train.py`) weighs and adds the two losses.
Shapes: b images, N embeddings an image, C base categories, V names of the vocabulary, Co joint width.
"""

from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from for_model.backbones.protocol import ImageTextBackbone
from for_model.training.config import TrainConfig
from for_model.training.features import Rows
from for_model.training.losses.ranking import best_cosines, ranking_loss, teacher_loss
from for_model.training.losses.set_prediction import set_prediction_loss
from for_model.training.targets import Targets, frequencies


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

    Nouns of captions, where they are labels too, are ranked among themselves in the same way, and their loss is added.
    A label counts by how rare its name is: by frequency ** -rarity, scaled so that the mean over all labels is 1.
    """

    def __init__(self, config: TrainConfig, targets: Targets) -> None:
        self._config, self._targets = config, targets
        self._scale, self._teacher_scale = 1 / config.loss.temperature, 1 / config.loss.teacher_temperature
        self._weights = self._rarity(targets.frequencies)
        if targets.nouns is not None:
            self._noun_weights = self._rarity(frequencies(targets.nouns, len(targets.noun_texts)))

    def _rarity(self, counts: NDArray[np.float64]) -> Tensor:
        """What a label of each name counts. counts: [C], in how many images each name is. Returns [C] float32."""
        weights = np.maximum(counts, 1) ** -self._config.loss.rarity
        if counts.sum():
            weights *= counts.sum() / (weights * counts).sum()
        return torch.from_numpy(weights).float()

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        return {}

    def on_labels(self, Y: Tensor, rows: Rows, step: int) -> Tensor:
        targets = self._targets
        known = targets.known(rows, self._config.loss.negatives, (self._config.seed, step))
        loss = self._ranked(Y, targets.base_texts, [targets.base[row] for row in rows], self._weights, known)
        if targets.nouns is not None:
            loss = loss + self._ranked(Y, targets.noun_texts, [targets.nouns[row] for row in rows], self._noun_weights)
        return loss

    def _ranked(
        self, Y: Tensor, texts: Tensor, labels: list[list[int]], weights: Tensor, known: Tensor | None = None
    ) -> Tensor:
        """texts: [C, Co].  labels: of each of the b images.  weights: [C].  known: [b, C] bool, None for all."""
        positive = torch.zeros(len(labels), len(texts), dtype=torch.bool)
        for place, found in enumerate(labels):
            positive[place, found] = True
        negative = ~positive if known is None else known & ~positive
        scores = best_cosines(Y.float(), texts)  # [b, C]
        device = scores.device
        return ranking_loss(scores, positive.to(device), self._scale, negative.to(device), weights.to(device))

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
