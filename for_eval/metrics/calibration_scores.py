"""How good probabilities are: whether they part what is there from what isn't, and whether they mean what they say."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from for_model.errors import UsageError

N_BINS = 15


@dataclass(frozen=True)
class Reliability:
    """What came true of what was said, in N_BINS bins of equal width.

    count: [bins] int, how many probabilities fell into each.
    said: [bins], their mean; NaN in an empty bin.
    true: [bins], the share of them that came true; NaN in an empty bin.
    """

    count: NDArray[np.int64]
    said: NDArray[np.float64]
    true: NDArray[np.float64]

    @property
    def error(self) -> float:
        """The expected calibration error: the mean over all probabilities of their bin's |said - true|, in 0..1."""
        filled = self.count > 0
        gaps = np.abs(self.said[filled] - self.true[filled])
        return float(gaps @ self.count[filled] / self.count.sum())


def reliability(probabilities: NDArray[np.float64], truth: NDArray[np.bool_]) -> Reliability:
    """Probabilities and what came true, of one shape -> their reliability (Guo et al., 2017, section 2).

    A probability on the border of two bins counts in the upper one. Raises UsageError for none, for shapes that differ,
    and for values outside 0..1.
    """
    said, true = np.ravel(probabilities).astype(np.float64), np.ravel(truth)
    if said.shape != true.shape or not len(said) or not ((said >= 0) & (said <= 1)).all():
        raise UsageError(f"got {said.shape} probabilities and {true.shape} outcomes: expected as many, in 0..1")
    bins = np.minimum((said * N_BINS).astype(np.int64), N_BINS - 1)
    count = np.bincount(bins, minlength=N_BINS)
    with np.errstate(invalid="ignore"):
        return Reliability(
            count, np.bincount(bins, said, N_BINS) / count, np.bincount(bins, true.astype(np.float64), N_BINS) / count
        )


def auroc(scores: NDArray[np.floating], truth: NDArray[np.bool_]) -> float | None:
    """The area under the ROC curve, ties counting half; None where everything is there, or nothing."""
    from scipy.stats import rankdata

    flat, true = np.ravel(scores), np.ravel(truth)
    n_true, n_false = int(true.sum()), int((~true).sum())
    if not n_true or not n_false:
        return None
    ranks = rankdata(flat)
    return float((ranks[true].sum() - n_true * (n_true + 1) / 2) / (n_true * n_false))


def f1(probabilities: NDArray[np.float64], truth: NDArray[np.bool_], cutoff: float) -> float:
    """The harmonic mean of precision and recall of what reaches a cut-off; 0 where nothing is there or found."""
    found = probabilities >= cutoff
    total = int(found.sum() + truth.sum())
    return 2 * int((found & truth).sum()) / total if total else 0.0


def best_cutoff(probabilities: NDArray[np.float64], truth: NDArray[np.bool_], at_least: float = 0.0) -> float:
    """The cut-off of the best F1 among those above `at_least`, to three decimals; the lowest of equally good ones."""
    thousandths = np.arange(int(np.floor(at_least * 1000)) + 1, 1000)
    if not len(thousandths):
        return 0.999
    order = np.sort(np.ravel(probabilities))
    hits = np.sort(np.ravel(probabilities)[np.ravel(truth)])
    cutoffs = thousandths / 1000
    n_found = len(order) - np.searchsorted(order, cutoffs)
    n_hits = len(hits) - np.searchsorted(hits, cutoffs)
    scores = 2 * n_hits / np.maximum(n_found + len(hits), 1)
    return float(cutoffs[int(scores.argmax())])
