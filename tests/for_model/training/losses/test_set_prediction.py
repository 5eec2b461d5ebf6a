import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from for_model.errors import ForError, UsageError
from for_model.training.losses.set_prediction import match, set_prediction_loss, with_pseudo_negatives


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


def slow_loss(Y, texts, targets, scale, no_object, weight, known=None) -> float:
    """Eq. 5 and 6 word by word: every assignment is tried, every probability is one of a list."""
    losses = []
    for b, wanted in enumerate(targets):
        allowed = [c for c in range(len(texts)) if known is None or known[b, c]]
        tables = []
        for y in Y[b]:
            scores = {c: math.exp(scale * float(y @ texts[c])) for c in allowed}
            if no_object is not None:
                scores[None] = math.exp(scale * float(y @ (no_object / no_object.norm())))
            tables.append({c: s / sum(scores.values()) for c, s in scores.items()})
        n = len(tables)
        if len(wanted) <= n:
            options = [list(zip(rows, wanted, strict=True)) for rows in itertools.permutations(range(n), len(wanted))]
        else:
            options = [list(zip(range(n), some, strict=True)) for some in itertools.permutations(wanted, n)]
        best = max(options, key=lambda pairs: sum(tables[i][c] for i, c in pairs))
        loss = -sum(math.log(tables[i][c]) for i, c in best)
        if no_object is not None:
            loss -= weight * sum(math.log(tables[i][None]) for i in set(range(n)) - {i for i, _ in best})
        losses.append(loss)
    return sum(losses) / len(losses)


@pytest.mark.parametrize("weight", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_equals_the_equations_word_by_word(seed: int, weight: float) -> None:
    Y, texts, no_object = unit(4, 3, 6, seed=seed), unit(7, 6, seed=seed + 50), 3 * unit(6, seed=seed + 99)
    targets = [[2, 5], [], [6], [0, 1, 3, 4]]  # the last has more targets than embeddings
    expected = slow_loss(Y, texts, targets, 8.0, no_object, weight)
    assert float(set_prediction_loss(Y, texts, targets, 8.0, no_object, weight)) == pytest.approx(expected, rel=1e-4)


def test_only_known_categories_are_in_the_softmax() -> None:
    Y, texts, no_object = unit(2, 3, 6), unit(5, 6, seed=1), unit(6, seed=2)
    known = torch.tensor([[True, True, False, False, True], [False, True, True, True, False]])
    targets = [[0, 4], [2]]
    expected = slow_loss(Y, texts, targets, 5.0, no_object, 0.3, known)
    got = set_prediction_loss(Y, texts, targets, 5.0, no_object, 0.3, known)
    assert float(got) == pytest.approx(expected, rel=1e-4)
    assert float(got) < float(set_prediction_loss(Y, texts, targets, 5.0, no_object, 0.3))
    with pytest.raises(UsageError, match="not among"):
        set_prediction_loss(Y, texts, [[2], [2]], 5.0, no_object, 0.3, known)


def test_without_a_no_object_vector() -> None:
    Y, texts = unit(2, 3, 6), unit(5, 6, seed=1)
    expected = slow_loss(Y, texts, [[0], [3, 1]], 5.0, None, 0.0)
    assert float(set_prediction_loss(Y, texts, [[0], [3, 1]], 5.0)) == pytest.approx(expected, rel=1e-4)


def test_one_category_alone_is_certain_without_no_object() -> None:
    assert float(set_prediction_loss(unit(1, 2, 4), unit(1, 4, seed=1), [[0]], 10.0)) == pytest.approx(0, abs=1e-6)


def test_no_targets_and_no_weight_give_a_zero_that_can_be_differentiated() -> None:
    Y = unit(2, 3, 6).requires_grad_()
    for embeddings, targets in ((Y, [[], []]), (Y[:0], [])):
        loss = set_prediction_loss(embeddings, unit(5, 6, seed=1), targets, 10.0)
        assert float(loss.detach()) == 0
        (gradient,) = torch.autograd.grad(loss, Y)
        assert not gradient.any()


def test_the_loss_falls_when_it_is_followed() -> None:
    raw = unit(2, 4, 6).float().requires_grad_()
    no_object = unit(6, seed=3).float().requires_grad_()
    texts, targets = unit(5, 6, seed=1).float(), [[0, 2], [3]]
    optimizer = torch.optim.Adam([raw, no_object], lr=0.05)
    losses = []
    for _ in range(150):
        loss = set_prediction_loss(F.normalize(raw, dim=-1), texts, targets, 20.0, no_object, 0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]
    best = (F.normalize(raw, dim=-1) @ texts.T).amax(1)
    assert set(best[0].topk(2).indices.tolist()) == {0, 2}


def test_matching_is_the_best_in_sum_and_not_greedy() -> None:
    rows, columns = match([np.array([[0.9, 0.8], [0.7, 0.1]])])[0]
    assert list(zip(rows, columns, strict=True)) == [(0, 1), (1, 0)]
    assert [len(side) for side in match([np.zeros((3, 0))])[0]] == [0, 0]
    with pytest.raises(ForError, match="not finite"):
        match([np.array([[np.nan]])])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"targets": [[0]]}, "targets of 1 images"),
        ({"targets": [[0, 0], []]}, "distinct"),
        ({"targets": [[5], []]}, "0..4"),
        ({"texts": torch.zeros(5, 7)}, "expected"),
        ({"no_object_weight": 0.1}, "no_object vector"),
        ({"known": torch.ones(2, 4, dtype=torch.bool)}, "known"),
    ],
)
def test_what_does_not_fit_is_said(arguments: dict, said: str) -> None:
    good = {"Y": unit(2, 3, 6), "texts": unit(5, 6, seed=1), "targets": [[0], [1]], "scale": 10.0}
    with pytest.raises(UsageError, match=said):
        set_prediction_loss(**{**good, **arguments})


def test_pseudo_negatives_fill_up_by_frequency() -> None:
    frequencies = np.array([5, 5, 0, 1, 100, 1, 1, 1.0])
    drawn = [with_pseudo_negatives(np.random.default_rng(s), [0], [1], frequencies, 3) for s in range(200)]
    assert all(row.sum() == 4 for row in drawn)  # the positive, the negative, two pseudo negatives
    assert all(row[0] and row[1] and not row[2] for row in drawn)
    share = np.mean(drawn, axis=0)
    assert share[4] > 0.95
    assert 0.1 < share[3] < 0.5
    everything = with_pseudo_negatives(np.random.default_rng(0), [0], [1], frequencies, 50)
    assert everything.sum() == 7
    assert with_pseudo_negatives(np.random.default_rng(0), [0], [1, 3], frequencies, 1).sum() == 3


def _peak_bytes(action: Callable[[], None]) -> int:
    """The most memory that torch held at once for what an action made: of tensors alone, however busy the machine."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        action()
    events = [event for event in watched.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    return int(held.max())


@pytest.mark.slow
def test_imagenet21k_fits_in_4_gb() -> None:
    """A batch of 64 images of 50 embeddings, 1,024 wide. Measured on 8 of them, for the memory grows with the batch."""
    n_images, measured = 64, 8
    Y = unit(measured, 50, 1024).float().requires_grad_(True)
    texts = unit(21_841, 1024, seed=1).float()
    targets = [torch.randperm(21_841)[:30].tolist() for _ in Y]
    no_object = torch.randn(1024, requires_grad=True)
    peak = _peak_bytes(lambda: set_prediction_loss(Y, texts, targets, 100.0, no_object, 0.1).backward())
    assert Y.grad is not None
    assert Y.grad.abs().sum() > 0
    logits_bytes = measured * 50 * 21_841 * 4
    assert logits_bytes < peak < 5 * logits_bytes  # four copies of the logits, and what is small
    assert peak * n_images / measured + texts.nbytes < 2.5e9  # the rest is for the backbone and the libraries
