import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from for_eval.metrics.calibration_scores import N_BINS, auroc, best_cutoff, f1, reliability
from for_model.errors import UsageError


def test_the_calibration_error_by_hand() -> None:
    said = np.array([0.01, 0.02, 0.95, 0.97])
    found = reliability(said, np.array([False, False, True, False]))
    assert found.count.tolist() == [2, *[0] * (N_BINS - 2), 2]
    assert found.said[[0, -1]] == pytest.approx([0.015, 0.96])
    assert found.true[[0, -1]] == pytest.approx([0, 0.5])
    assert np.isnan(found.said[1])
    assert found.error == pytest.approx(0.5 * 0.015 + 0.5 * 0.46)


def test_what_comes_true_as_often_as_said_has_no_error() -> None:
    said = np.full(1000, 0.3)
    assert reliability(said, np.arange(1000) < 300).error == pytest.approx(0)
    assert reliability(np.ones(3), np.ones(3, dtype=bool)).error == 0


@pytest.mark.parametrize("said", [np.array([]), np.array([0.5, 1.1]), np.array([0.5])])
def test_no_probabilities(said: np.ndarray) -> None:
    with pytest.raises(UsageError, match="probabilities"):
        reliability(said, np.zeros(2 if len(said) else 0, dtype=bool))


def test_auroc_and_f1_as_another_library_has_them() -> None:
    rng = np.random.default_rng(0)
    scores, truth = rng.integers(0, 20, 300) / 20, rng.random(300) < 0.3  # with ties
    assert auroc(scores, truth) == pytest.approx(roc_auc_score(truth, scores))
    assert f1(scores, truth, 0.5) == pytest.approx(f1_score(truth, scores >= 0.5))
    assert auroc(scores, np.ones(300, dtype=bool)) is None
    assert f1(np.zeros(3), np.zeros(3, dtype=bool), 0.5) == 0


def test_the_best_cutoff_is_the_best_of_all() -> None:
    rng = np.random.default_rng(1)
    truth = rng.random(400) < 0.2
    said = np.clip(0.3 * truth + rng.random(400) * 0.6, 0, 1)
    for at_least in (0.0, 0.55):
        candidates = [c for c in np.arange(1, 1000) / 1000 if c > at_least]
        best = max(f1(said, truth, c) for c in candidates)
        found = best_cutoff(said, truth, at_least)
        assert found > at_least
        assert f1(said, truth, found) == pytest.approx(best)
    assert best_cutoff(said, truth, 0.9999) == 0.999
