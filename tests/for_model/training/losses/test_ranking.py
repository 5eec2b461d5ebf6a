"""The ranking loss and the soft teacher's against small cases by hand, loops, and numerical gradients."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from for_model.errors import UsageError
from for_model.training.losses.ranking import best_cosines, ranking_loss, teacher_logits, teacher_loss

SCORES = torch.tensor([[0.5, 0.1], [0.2, 0.4], [0.3, 0.3]])
POSITIVE = torch.tensor([[True, False], [False, False], [False, True]])


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_ranking(scores: Tensor, positive: Tensor, scale: float, negative: Tensor, weights: list[float]) -> float:
    losses = []
    for b, c in positive.nonzero().tolist():
        own = math.exp(scale * float(scores[b, c]))
        others = sum(math.exp(scale * float(scores[j, c])) for j in range(len(scores)) if negative[j, c])
        losses.append(-weights[c] * math.log(own / (own + others)))
    return sum(losses) / len(losses)


def test_best_cosines_are_those_of_the_best_embedding() -> None:
    Y, texts = F.normalize(some(3, 4, 8), dim=-1), F.normalize(some(5, 8, seed=1), dim=-1)
    got = best_cosines(Y, texts)
    for b in range(3):
        for c in range(5):
            assert float(got[b, c]) == pytest.approx(max(float(y @ texts[c]) for y in Y[b]))


def test_three_images_and_two_names_by_hand() -> None:
    first = math.log(1 + math.exp(10 * (0.2 - 0.5)) + math.exp(10 * (0.3 - 0.5)))
    second = math.log(1 + math.exp(10 * (0.1 - 0.3)) + math.exp(10 * (0.4 - 0.3)))
    assert float(ranking_loss(SCORES, POSITIVE, 10.0)) == pytest.approx((first + second) / 2, rel=1e-5)
    weighted = ranking_loss(SCORES, POSITIVE, 10.0, weights=torch.tensor([3.0, 0.5]))
    assert float(weighted) == pytest.approx((3 * first + 0.5 * second) / 2, rel=1e-5)
    known = torch.tensor([[False, False], [True, False], [False, False]])  # of the second name none is known
    of_known = math.log(1 + math.exp(10 * (0.2 - 0.5)))
    assert float(ranking_loss(SCORES, POSITIVE, 10.0, known)) == pytest.approx(of_known / 2, rel=1e-5)


def test_is_its_formula_with_loops() -> None:
    scores, positive = some(6, 4) / 4, some(6, 4, seed=1) > 0.3
    negative, weights = ~positive & (some(6, 4, seed=2) > -0.5), [0.5, 1.0, 2.0, 0.1]
    got = ranking_loss(scores, positive, 7.0, negative, torch.tensor(weights))
    assert float(got) == pytest.approx(slow_ranking(scores, positive, 7.0, negative, weights), rel=1e-9)


def test_other_positives_are_no_negatives() -> None:
    positive = torch.tensor([[True], [True], [False]])
    scores = torch.tensor([[0.1], [0.9], [0.0]])
    alone = math.log(1 + math.exp(-1.0)), math.log(1 + math.exp(-9.0))
    assert float(ranking_loss(scores, positive, 10.0)) == pytest.approx(sum(alone) / 2, rel=1e-5)


@pytest.mark.parametrize("positive", [torch.zeros(3, 2, dtype=torch.bool), torch.ones(3, 2, dtype=torch.bool)])
def test_without_positives_or_without_negatives_there_is_nothing_to_learn(positive: Tensor) -> None:
    scores = SCORES.clone().requires_grad_()
    loss = ranking_loss(scores, positive, 15.0)
    assert float(loss.detach()) == 0
    loss.backward()
    assert scores.grad is not None
    assert not scores.grad.any()


def test_without_names_the_loss_is_zero() -> None:
    assert float(ranking_loss(torch.zeros(3, 0), torch.zeros(3, 0, dtype=torch.bool), 15.0)) == 0


def test_the_ranking_losss_gradient() -> None:
    positive = torch.tensor([[True, False, True], [False, False, True], [True, False, True], [False, True, True]])
    scores = some(4, 3).requires_grad_()
    weights = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: ranking_loss(s, positive, 3.0, weights=weights), (scores,))


def test_extreme_scores_stay_finite() -> None:
    scores = torch.tensor([[-1.0], [1.0]], requires_grad=True)
    loss = ranking_loss(scores, torch.tensor([[True], [False]]), 1e4)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(2e4)
    assert torch.isfinite(scores.grad).all()


@pytest.mark.parametrize(
    ("scores", "positive", "negative"),
    [((3, 2), (2, 3), None), ((3, 2), (3, 2), (3, 1)), ((3,), (3,), None)],
)
def test_shapes_that_differ_are_refused(scores: tuple, positive: tuple, negative: tuple | None) -> None:
    known = None if negative is None else torch.zeros(negative, dtype=torch.bool)
    with pytest.raises(UsageError, match=r"expected \[B, C\] of all"):
        ranking_loss(torch.zeros(scores), torch.zeros(positive, dtype=torch.bool), 1.0, known)


def test_the_teacher_standardises_each_name_of_each_head_and_their_sum() -> None:
    parts = [some(7, 3).float() * torch.tensor([1.0, 5.0, 0.1]) + 4, some(7, 3, seed=1).float()]
    got = teacher_logits(parts, 1.5)
    for name in range(3):
        total = [0.0] * 7
        for part in parts:
            column = part[:, name].tolist()
            mean = sum(column) / 7
            spread = math.sqrt(sum((value - mean) ** 2 for value in column) / 7)
            total = [old + (value - mean) / spread for old, value in zip(total, column, strict=True)]
        spread = math.sqrt(sum(value**2 for value in total) / 7)  # the mean is 0 already
        assert got[:, name].tolist() == pytest.approx([1.5 * value / spread for value in total], abs=1e-4)
    torch.testing.assert_close(got.std(0, correction=0), torch.full((3,), 1.5))


def test_a_name_that_all_images_are_as_like_as_another_is_not_taught() -> None:
    assert not teacher_logits([torch.full((4, 1), 0.25)], 1.5).any()


def test_a_student_that_says_what_the_teacher_says_has_nothing_to_learn() -> None:
    teacher = some(5, 3)
    level = torch.tensor([[1.0, -2.0, 0.3]], dtype=torch.float64)  # a name's own, which no ranking depends on
    student = (teacher / 4 + level).requires_grad_()
    loss = teacher_loss(student, teacher, 4.0)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-12)
    assert student.grad.abs().amax() < 1e-12


def test_the_teachers_loss_is_kl_divergence_by_hand() -> None:
    scores, teacher = some(4, 3) / 2, some(4, 3, seed=1)
    expected = 0.0
    for name in range(3):
        p = [math.exp(float(value)) for value in teacher[:, name]]
        q = [math.exp(5 * float(value)) for value in scores[:, name]]
        expected += sum(a / sum(p) * math.log(a / sum(p) / (b / sum(q))) for a, b in zip(p, q, strict=True)) / 3
    assert expected > 0.1
    assert float(teacher_loss(scores, teacher, 5.0)) == pytest.approx(expected, rel=1e-9)


def test_the_teachers_losss_gradient() -> None:
    teacher = some(4, 3, seed=1)
    assert torch.autograd.gradcheck(lambda s: teacher_loss(s, teacher, 3.0), (some(4, 3).requires_grad_(),))


@pytest.mark.parametrize("shape", [(1, 4), (0, 4), (4, 0)])
def test_one_image_or_no_name_teaches_nothing(shape: tuple[int, int]) -> None:
    scores = torch.ones(shape, requires_grad=True)
    loss = teacher_loss(scores, torch.ones(shape), 3.0)
    assert float(loss.detach()) == 0
    loss.backward()


def test_a_teacher_of_another_shape_is_refused() -> None:
    for scores, teacher in (((3, 2), (3, 3)), ((3,), (3,))):
        with pytest.raises(UsageError, match=r"expected \[B, V\] of both"):
            teacher_loss(torch.zeros(scores), torch.zeros(teacher), 1.0)
