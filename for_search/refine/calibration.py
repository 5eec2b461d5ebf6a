"""From a scorer's scores to probabilities: Platt's logistic curve on marks that the scorer wasn't fitted to.

The scorer is fitted again without each third of the marks, which it then scores; scores are standardised by the mean
and deviation of the catalogue sample's, so that those of different fits can be compared. Marks are of images near
the top and say little of the rest: the sampled images count as not meant, together as much as half the marks. With few
marks a prior on slope and offset prevails, which one class only doesn't tip over.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from for_search.refine.catalogue_sample import CatalogueSample
from for_search.refine.feedback import Examples
from for_search.refine.learners.refiner_protocol import Refiner, Scorer, image_scores

_FOLDS = 3
_SAMPLE_WEIGHT = 0.5  # of all sampled images, in marks of each mark
_SLOPE, _OFFSET = (1.5, 1.0), (-4.0, 2.0)  # mean and deviation of the prior, in logits a deviation of the scores


@dataclass(frozen=True)
class Calibration:
    """probability = sigmoid(slope * (score - mean) / deviation + offset).

    mean, deviation: of the scores of the catalogue's images.
    """

    mean: float
    deviation: float
    slope: float
    offset: float

    def probabilities(self, scores: NDArray[np.float32]) -> NDArray[np.float64]:
        """Scores of images, of any shape -> in 0..1, in the order of the scores."""
        logits = self.slope * ((scores.astype(np.float64) - self.mean) / self.deviation) + self.offset
        return np.asarray(1 / (1 + np.exp(-np.clip(logits, -60, 60))))

    def score(self, probability: float) -> float:
        """The score of that probability, above 0 and below 1."""
        logit = float(np.log(probability) - np.log1p(-probability))
        return self.mean + self.deviation * (logit - self.offset) / self.slope


def calibrate(
    refiner: Refiner,
    scorer: Scorer,
    text: NDArray[np.float32] | None,
    examples: Examples,
    sample: CatalogueSample,
) -> Calibration:
    """The calibration of a scorer that `refiner` has fitted to all of `examples`, one at least."""
    scores, targets = [], []
    n_right, n_wrong = len(examples.right), len(examples.wrong)
    folds = min(_FOLDS, n_right + n_wrong)
    for fold in range(folds):
        right = {i for i in range(n_right) if i % folds == fold}
        wrong = {i for i in range(n_wrong) if (i + n_right) % folds == fold}
        rest = examples.without(right, wrong)
        fits = len(rest.right) + len(rest.wrong) > 0 and (text is not None or len(rest.right) > 0)
        held_out = refiner.fit(text, rest, sample) if fits else scorer
        mean, deviation, _ = _standard(held_out, sample)
        for positions, parts, target in ((right, examples.right, 1.0), (wrong, examples.wrong, 0.0)):
            scores += [(float(held_out.score(parts[i]).max()) - mean) / deviation for i in sorted(positions)]
            targets += [target] * len(positions)
    mean, deviation, standardised = _standard(scorer, sample)
    x = np.concatenate([scores, standardised])
    weights = np.ones(len(x))
    weights[len(scores) :] = _SAMPLE_WEIGHT * len(scores) / len(standardised)
    slope, offset = _fit_curve(x, np.concatenate([targets, np.zeros(len(standardised))]), weights)
    return Calibration(mean, deviation, slope, offset)


def _standard(scorer: Scorer, sample: CatalogueSample) -> tuple[float, float, NDArray[np.float64]]:
    """Mean and deviation of the sampled images' scores, and those scores standardised by them, [S]."""
    best = image_scores(scorer, sample.images).astype(np.float64)
    mean, deviation = float(best.mean()), max(float(best.std()), 1e-9)
    return mean, deviation, (best - mean) / deviation


def _fit_curve(
    x: NDArray[np.float64], targets: NDArray[np.float64], weights: NDArray[np.float64]
) -> tuple[float, float]:
    """Slope, at least 0.05 so that the order stays, and offset, of the most probable curve."""

    def loss(curve: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        logits = curve[0] * x + curve[1]
        residuals = weights * (1 / (1 + np.exp(-np.clip(logits, -60, 60))) - targets)
        off = [(value - mean) / deviation for value, (mean, deviation) in zip(curve, (_SLOPE, _OFFSET), strict=True)]
        total = float((weights * (np.logaddexp(0, logits) - targets * logits)).sum()) + (off[0] ** 2 + off[1] ** 2) / 2
        return total, np.array([residuals @ x + off[0] / _SLOPE[1], residuals.sum() + off[1] / _OFFSET[1]])

    start = np.array([_SLOPE[0], _OFFSET[0]])
    from scipy.optimize import minimize  # here: a search imports this module, and learns nothing

    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0.05, None), (None, None)]).x
    return float(found[0]), float(found[1])
