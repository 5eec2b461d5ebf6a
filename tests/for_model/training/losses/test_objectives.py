"""What a training minimises, of stand-in targets: the paper's objective and ours, each against its loss."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from for_model.training.config import TrainConfig, config_from
from for_model.training.losses.objectives import RankingObjective, SetObjective
from for_model.training.losses.ranking import best_cosines, ranking_loss, teacher_loss
from for_model.training.losses.set_prediction import set_prediction_loss
from for_model.training.targets import Targets
from for_model.training.teacher import Teacher

IMAGES, N, DIM = 8, 3, 6
BASE = [[0], [0, 2], [], [1], [0], [2], [0], [0, 1]]
FREQUENCIES = np.array([5.0, 2.0, 2.0, 0.0])
ROWS = np.array([7, 1, 2, 3])


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@dataclass
class SomePseudo:
    """Pseudo-labels: of each image its number and the next, best first."""

    def of(self, row: int, limit: int) -> np.ndarray:
        return np.array([row % 5, (row + 1) % 5])[:limit]


@dataclass
class SomeTargets:
    """What the objectives use of `Targets`."""

    base: list[list[int]] = field(default_factory=lambda: BASE)
    absent: list[list[int]] | None = None
    frequencies: np.ndarray = field(default_factory=lambda: FREQUENCIES)
    base_texts: Tensor = field(default_factory=lambda: unit(4, DIM, seed=1))
    nouns: list[list[int]] | None = None
    pseudo_texts: Tensor = field(default_factory=lambda: unit(5, DIM, seed=2))
    pseudo: SomePseudo | None = None
    teacher: Teacher | None = None
    known = Targets.known


def config(pseudo_labels: dict[str, Any] | None = None, **loss: Any) -> TrainConfig:
    data = {"dataset": "coco", "split": "train2017"}
    return config_from({"data": data, "loss": loss, "pseudo_labels": pseudo_labels or {}})


BACKBONE: Any = SimpleNamespace(logit_scale=10.0, dim=DIM, device=torch.device("cpu"))
Y = unit(len(ROWS), N, DIM, seed=3)


def ranking(settings: TrainConfig, **targets: Any) -> RankingObjective:
    return RankingObjective(settings, SomeTargets(**targets))  # type: ignore[arg-type]


def positives() -> Tensor:
    return torch.tensor([[c in BASE[row] for c in range(4)] for row in ROWS])


class TestSet:
    def made(self, settings: TrainConfig, limit: int = N, **targets: Any) -> SetObjective:
        torch.manual_seed(0)
        return SetObjective(settings, SomeTargets(**targets), BACKBONE, limit)  # type: ignore[arg-type]

    @pytest.mark.parametrize("weight", [0.0, 0.3])
    def test_is_the_set_loss_on_labels(self, weight: float) -> None:
        objective = self.made(config(no_object_weight=weight, scale=0.5))
        no_object = objective.parameters.get("no_object")
        assert (no_object is None) == (weight == 0)
        wanted = [BASE[row] for row in ROWS]
        expected = set_prediction_loss(Y, SomeTargets().base_texts, wanted, 5.0, no_object, weight, None)
        assert float(objective.on_labels(Y, ROWS, 3).detach()) == pytest.approx(float(expected.detach()), rel=1e-6)

    def test_is_the_set_loss_on_pseudo_labels_cut_to_its_limit(self) -> None:
        objective = self.made(config(no_object_weight=0.0), limit=1, pseudo=SomePseudo())
        wanted = [[row % 5] for row in ROWS.tolist()]
        expected = set_prediction_loss(Y, SomeTargets().pseudo_texts, wanted, 10.0)
        assert float(objective.on_unlabelled(Y, ROWS, 3).detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
        assert float(self.made(config()).on_unlabelled(Y, ROWS, 3).detach()) == 0

    def test_a_federated_image_is_compared_with_what_is_known(self) -> None:
        settings = config(no_object_weight=0.0, negatives=0)
        objective = self.made(settings, absent=[[1]] * IMAGES)
        known = torch.tensor([[c in BASE[row] or c == 1 for c in range(4)] for row in ROWS])
        wanted = [BASE[row] for row in ROWS]
        expected = set_prediction_loss(Y, SomeTargets().base_texts, wanted, 10.0, None, 0.0, known)
        assert float(objective.on_labels(Y, ROWS, 3).detach()) == pytest.approx(float(expected.detach()), rel=1e-6)


class TestRanking:
    @pytest.mark.parametrize("rarity", [0.0, 0.5, 1.0])
    def test_a_label_counts_by_how_rare_its_name_is(self, rarity: float) -> None:
        settings = config(objective="ranking", rarity=rarity)
        counts = [max(1.0, n) ** -rarity for n in FREQUENCIES]
        mean = sum(count * n for count, n in zip(counts, FREQUENCIES, strict=True)) / FREQUENCIES.sum()
        weights = torch.tensor([count / mean for count in counts]).float()
        assert float((weights * torch.tensor(FREQUENCIES)).sum()) == pytest.approx(sum(map(len, BASE)))  # 1 a label
        scores = best_cosines(Y, SomeTargets().base_texts)
        expected = ranking_loss(scores, positives(), 15.0, weights=weights)
        assert float(ranking(settings).on_labels(Y, ROWS, 3)) == pytest.approx(float(expected), rel=1e-5)

    def test_the_temperature_is_its_own(self) -> None:
        scores = best_cosines(Y, SomeTargets().base_texts)
        expected = ranking_loss(scores, positives(), 4.0)
        got = ranking(config(objective="ranking", temperature=0.25)).on_labels(Y, ROWS, 3)
        assert float(got) == pytest.approx(float(expected), rel=1e-5)

    def test_a_federated_dataset_has_judged_negatives_alone(self) -> None:
        objective = ranking(config(objective="ranking", negatives=0), absent=[[2]] * IMAGES)
        # the name 2 has all images that aren't labelled with it against it, the others none
        absent = torch.tensor([[c == 2 for c in range(4)]] * len(ROWS)) & ~positives()
        scores = best_cosines(Y, SomeTargets().base_texts)
        expected = ranking_loss(scores, positives(), 15.0, absent)
        assert 0 < float(expected) < float(ranking_loss(scores, positives(), 15.0))
        assert float(objective.on_labels(Y, ROWS, 3)) == pytest.approx(float(expected), rel=1e-5)

    def test_without_labels_at_all(self) -> None:
        objective = ranking(config(objective="ranking", rarity=0.5), base=[[]] * IMAGES, frequencies=np.zeros(4))
        assert float(objective.on_labels(Y, ROWS, 3)) == 0

    def test_what_is_not_labelled_is_taught_by_the_teachers_rows(self) -> None:
        logits = torch.randn(IMAGES, 5, generator=torch.Generator().manual_seed(5)).half()
        objective = ranking(config(objective="ranking"), teacher=Teacher(logits))
        scores = best_cosines(Y, SomeTargets().pseudo_texts)
        expected = teacher_loss(scores, logits[torch.from_numpy(ROWS)].float(), 15.0)
        assert float(objective.on_unlabelled(Y, ROWS, 3)) == pytest.approx(float(expected), rel=1e-5)
        assert float(ranking(config(objective="ranking")).on_unlabelled(Y, ROWS, 3)) == 0

    def test_so_many_names_a_step_are_drawn_by_the_step_alone(self) -> None:
        logits = torch.randn(IMAGES, 5, generator=torch.Generator().manual_seed(5)).half()
        settings = config({"a_step": 2}, objective="ranking")
        objective, again = (ranking(settings, teacher=Teacher(logits)) for _ in range(2))
        scores = best_cosines(Y, SomeTargets().pseudo_texts)
        rows = logits[torch.from_numpy(ROWS)].float()
        pairs = {
            (a, b): float(teacher_loss(scores[:, [a, b]], rows[:, [a, b]], 15.0)) for a in range(5) for b in range(a)
        }
        drawn = set()
        for step in range(12):
            loss = float(objective.on_unlabelled(Y, ROWS, step))
            assert loss == float(again.on_unlabelled(Y, ROWS, step))
            drawn |= {pair for pair, of_pair in pairs.items() if of_pair == pytest.approx(loss, rel=1e-6)}
        assert 4 <= len(drawn) <= 10
        assert {name for pair in drawn for name in pair} == set(range(5))
        every = ranking(config({"a_step": 5}, objective="ranking"), teacher=Teacher(logits))
        assert float(every.on_unlabelled(Y, ROWS, 0)) == pytest.approx(
            float(teacher_loss(scores, rows, 15.0)), rel=1e-5
        )
