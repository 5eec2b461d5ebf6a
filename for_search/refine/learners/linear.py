"""Logistic regression pulled towards the text: one vector, learnt from marks, that an index searches for like a text.

An image's logit is w . y + b of its best part y. The loss is the marks' log loss, that of the sampled catalogue as if
nothing in it were meant, with the weight of half the marks so that what is meant and unmarked does little harm, and

    (strength / 2) * ||L (w - s t)||^2

which pulls w towards the text's embedding t (SeeSaw's query alignment, Moll et al. 2022). L is the square root of the
covariance of the catalogue's embeddings, shrunk towards a multiple of the identity: w is held along directions in which
the catalogue's embeddings vary, for a change there moves the scores of images that nobody marked. s is such that the
scores of the catalogue's images by the text alone have a standard deviation of 3 logits.

Parts: a right image counts by the part that its mark names or its best one, a wrong image by its best one, for if that
isn't meant none is; both are chosen anew after each of three fits.
"""

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from for_search.refine.catalogue_sample import CatalogueSample
from for_search.refine.feedback import Examples
from for_search.refine.learners.refiner_protocol import LinearScorer, best_parts

# Chosen on MiniScenes' and Flickr8k's dev splits.
_STRENGTH = 5.0
_SHRINKAGE = 1.0  # of the covariance: this many times its mean variance is added to each
_TEXT_LOGITS = 3.0
_FEW = -3.0  # the logit of an average image before any mark: one of twenty shows what is meant
_SAMPLE_WEIGHT = 0.5  # of the whole sample, in marks of each mark
_SAMPLE = 1000  # embeddings
_FITS = 3
_STOP = {"maxiter": 60, "ftol": 1e-5}  # more changes no rank that anybody sees, and takes twice as long
_BIAS_STRENGTH = 0.01


class LinearRefiner:
    """Logistic regression on marks and a sample of the catalogue, pulled towards the text."""

    name: ClassVar[str] = "linear"
    title: ClassVar[str] = "Logistic regression pulled towards the text"

    def fit(self, text: NDArray[np.float32] | None, examples: Examples, sample: CatalogueSample) -> LinearScorer:
        scales = np.sqrt(sample.variances + _SHRINKAGE * sample.variances.mean() + np.float32(1e-12))
        to_whitened = sample.axes / scales  # [Co, Co]
        rows = sample.images.reshape(-1, len(sample.mean))
        some = rows[:: max(1, len(rows) // _SAMPLE)][:_SAMPLE]
        background = (some - sample.mean) @ to_whitened  # [B, Co]
        pull, bias = np.zeros_like(sample.mean), _FEW
        if text is not None:
            best = (sample.images @ text).max(axis=1)  # [S]
            slope = _TEXT_LOGITS / max(float(best.std()), 1e-6)
            pull = slope * (text @ sample.axes) * scales
            bias += slope * (float(text @ sample.mean) - float(best.mean()))
        right = tuple((parts - sample.mean) @ to_whitened for parts in examples.right)
        wrong = tuple((parts - sample.mean) @ to_whitened for parts in examples.wrong)
        n_right, n_marks = len(right), len(right) + len(wrong)
        weights = np.ones(n_marks + len(background), np.float32)
        weights[n_marks:] = _SAMPLE_WEIGHT * n_marks / len(background)
        targets = np.zeros(len(weights), np.float32)
        targets[:n_right] = 1
        start = np.append(pull, bias)
        solution = start
        if text is None:  # no direction yet to choose the right images' parts by: that of their mean
            start = np.append(_mean(right, len(pull)), bias)
        chosen = start
        for _ in range(_FITS):
            scorer = LinearScorer(chosen[:-1].astype(np.float32))
            parts = [best_parts(each, scorer, len(pull)) for each in (right, wrong)]
            solution = _fit(np.concatenate([*parts, background]), targets, weights, pull, bias, chosen)
            chosen = solution
        return LinearScorer((to_whitened @ solution[:-1]).astype(np.float32))


class MarksOnlyRefiner:
    """The same logistic regression, pulled towards nothing: what marks alone say, for comparison."""

    name: ClassVar[str] = "marks-only"
    title: ClassVar[str] = "Logistic regression from marks alone"

    def fit(self, text: NDArray[np.float32] | None, examples: Examples, sample: CatalogueSample) -> LinearScorer:
        return LinearRefiner().fit(None, examples, sample)


def _mean(parts: tuple[NDArray[np.float32], ...], dim: int) -> NDArray[np.float32]:
    return np.concatenate(parts).mean(axis=0) if parts else np.zeros(dim, np.float32)


def _fit(
    x: NDArray[np.float32],
    targets: NDArray[np.float32],
    weights: NDArray[np.float32],
    pull: NDArray[np.float32],
    bias: float,
    start: NDArray[np.floating],
) -> NDArray[np.float64]:
    """Minimise the weighted log loss of sigmoid(x . w + b) and the pull, over w and b.

    x: [R, Co] in whitened coordinates.
    targets, weights: [R].
    pull, bias: where w [Co] and b are pulled to.
    start: [Co + 1], w and b to start from.

    Returns [Co + 1].
    """

    def loss(solution: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        w, b = solution[:-1].astype(np.float32), float(solution[-1])
        logits = x @ w + np.float32(b)
        off, off_bias = w - pull, b - bias
        total = float((weights * (np.logaddexp(0, logits) - targets * logits)).sum())
        total += _STRENGTH / 2 * float(off @ off) + _BIAS_STRENGTH / 2 * off_bias**2
        residuals = weights * (1 / (1 + np.exp(-np.clip(logits, -60, 60))) - targets)
        gradient = np.append(residuals @ x + _STRENGTH * off, residuals.sum() + _BIAS_STRENGTH * off_bias)
        return total, gradient.astype(np.float64)

    from scipy.optimize import minimize  # here: a search imports this module, and learns nothing

    found = minimize(loss, start.astype(np.float64), jac=True, method="L-BFGS-B", options=_STOP)
    return np.asarray(found.x)
