"""The bootstrap over images: how a score would vary with other images of the same kind.

C are categories, M images, R resamples; as in `retrieval`, columns are images in ascending order of their id.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from for_eval.metrics.retrieval import best_images, count_relevant
from for_model.errors import UsageError
from for_search.query.ranking import (
    UNRANKED,
    BoolArray,
    FloatArray,
    IntArray,
    Scores,
    check_bool,
    check_k,
    check_matrices,
    divide,
    normalise,
    top_k,
)

_COUNTS_PER_BLOCK = 1 << 24  # 64 MiB of int32


@dataclass(frozen=True)
class Interval:
    """A percentile interval of a group's mean AP@k.

    low, high: its ends, in [0, 1].
    bias: the mean over the resamples minus the collection's own mean AP@k. Copies of an image are relevant together,
        which lifts low scores and can leave the score itself below `low`: see `shifted`.
    n_resamples: the resamples behind it. Fewer than were asked for when some held no relevant image of any category
        of the group, so that the mean didn't exist there.
    """

    low: float
    high: float
    bias: float
    n_resamples: int

    def shifted(self) -> tuple[float, float]:
        """The interval's ends moved by -bias, kept in [0, 1], so that it lies around the collection's score."""
        return max(self.low - self.bias, 0.0), min(self.high - self.bias, 1.0)


def bootstrap_interval(
    scores: Scores,
    relevance: BoolArray,
    groups: Mapping[str, BoolArray],
    k: int = 50,
    n_resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    known: BoolArray | None = None,
    order: NDArray[np.integer[Any]] | None = None,
) -> dict[str, Interval | None]:
    """Percentile bootstrap over images of each group's mean AP@k, divided by min(P, k).

    A resample draws M of the M images with replacement: `rng.integers(M, size=M)`, one call each, of one
    `np.random.default_rng(seed)`. The images drawn, copies included, are ranked afresh, ties by column, so that the
    copies of an image hold consecutive ranks. The mean is over the group's categories with P > 0 in the resample.
    All groups see the same resamples. The result is that of doing so literally, up to rounding.

    scores: [C, M] floating point.
    relevance: [C, M] bool.
    groups: name -> [C] bool.
    k: the depth, at least 1.
    n_resamples: how many, at least 1.
    seed: of the draws.
    known: [C, M] bool, the images judged for each category; None for all.
    order: [C, d], the images ranked already, `enough_depth(k)` deep or deeper, as `retrieval.best_images` takes it;
        None to rank them here.
    level: the interval's coverage, between 0 and 1; its ends are the quantiles (1 - level) / 2 and (1 + level) / 2.
    Returns name -> interval, None for a group without a relevant image (M = 0 included).
    Raises UsageError as `best_images` does, for group masks of another shape, n_resamples < 1 and a level outside
    (0, 1).
    Time grows with C * n_resamples * k and M * n_resamples; memory is that of blocks of resamples.
    """
    check_k(k)
    check_matrices(scores, relevance, known)
    n_images = scores.shape[1]
    for name, mask in groups.items():
        check_bool(f"the mask of group {name!r}", mask, (len(scores),))
    if n_resamples < 1 or not 0 < level < 1:
        raise UsageError(f"got n_resamples={n_resamples}, level={level}; give n_resamples >= 1 and 0 < level < 1")
    masks = np.array(list(groups.values()), dtype=bool).reshape(len(groups), len(scores))  # [groups, C]
    used = np.flatnonzero(masks.any(axis=0) & (count_relevant(relevance, known) > 0))
    if len(used) == 0:
        return dict.fromkeys(groups)

    order = best_images(scores, enough_depth(k), known, order)

    def ranking(position: int, depth: int) -> IntArray:
        row = slice(used[position], used[position] + 1)
        return top_k(scores[row], depth, None if known is None else known[row])[0]

    relevant = relevance[used] if known is None else relevance[used] & known[used]  # [used, M]
    n_known = np.full(len(used), n_images) if known is None else known[used].sum(axis=1)
    resampler = Resampler(order[used], relevant, n_known, k, ranking)
    weights = masks[:, used].astype(np.float64)  # [groups, used]
    own_means = group_means(weights, resampler.average_precision(np.ones((n_images, 1), dtype=np.int32)))[:, 0]
    blocks = resample_counts(np.random.default_rng(seed), n_images, n_resamples)
    means = np.hstack([group_means(weights, resampler.average_precision(counts)) for counts in blocks])
    return {
        name: _percentile_interval(row, own_mean, level)
        for name, row, own_mean in zip(groups, means, own_means, strict=True)
    }


def enough_depth(k: int) -> int:
    """A depth at which a ranking hardly ever fails to fill k ranks: the draws of its d best are about Poisson(d)."""
    return math.ceil(k + 5 * math.sqrt(k) + 10)


def group_means(weights: FloatArray, ap: FloatArray) -> FloatArray:
    """The mean AP@k of each group in each resample.

    weights: [groups, C], 1 for the categories of a group, else 0.
    ap: [C, R], NaN where P = 0.

    Returns [groups, R]; NaN where no category of the group has a relevant image.
    """
    exists = ~np.isnan(ap)
    return divide(weights @ np.where(exists, ap, 0.0), weights @ exists)


def resample_counts(rng: np.random.Generator, n_images: int, n_resamples: int) -> Iterator[NDArray[np.int32]]:
    """How often each image occurs in each resample: blocks [M, r] int32, their r adding up to n_resamples.

    A resample is one `rng.integers(M, size=M)`.
    """
    block = max(1, _COUNTS_PER_BLOCK // n_images)
    for start in range(0, n_resamples, block):
        counts = np.empty((min(block, n_resamples - start), n_images), dtype=np.int32)
        for row in counts:
            row[:] = np.bincount(rng.integers(n_images, size=n_images), minlength=n_images)
        yield np.ascontiguousarray(counts.T)  # an image's counts side by side: they are gathered image by image


class Resampler:
    """AP@k of resampled collections, from each category's ranking of the collection itself.

    Resampling doesn't change the order of the images, only how many consecutive ranks each one takes: none, or one a
    copy. So a ranking is sorted once, and only as deep as it takes to fill k ranks in every resample.

    order: [C, d] columns, best first, ending in UNRANKED where fewer are ranked, as `top_k` gives them.
    relevant: [C, M] bool, False where an image isn't judged for a category.
    n_known: [C], how many images are judged for each category, which is how many it can rank.
    k: the depth of AP@k.
    deeper: (position in C, depth) -> [depth] columns, a category's ranking again and deeper; asked when one doesn't
        fill k ranks, which for d = `enough_depth(k)` is rare.
    """

    def __init__(
        self,
        order: NDArray[np.integer[Any]],
        relevant: BoolArray,
        n_known: NDArray[np.integer[Any]],
        k: int,
        deeper: Callable[[int, int], NDArray[np.integer[Any]]],
    ) -> None:
        self.rankings = [row[row != UNRANKED] for row in order]
        self.relevant = relevant
        self.n_known = n_known
        self.k = k
        self.deeper = deeper
        self.harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, k + 1))])  # H(0) to H(k)

    def average_precision(self, counts: NDArray[np.int32]) -> FloatArray:
        """AP@k of every category in every resample.

        counts: [M, R], how often each image was drawn.

        Returns [C, R], AP@k divided by min(P, k); NaN where P = 0.
        """
        # P is at most M, and float32 is exact for whole numbers up to 2^24; a matrix product is what makes this fast.
        dtype = np.float32 if len(counts) <= 1 << 24 else np.float64
        n_relevant = self.relevant.astype(dtype) @ counts.astype(dtype)
        total = np.empty(n_relevant.shape)
        for position in range(len(self.rankings)):
            total[position] = self._precision_sums(position, counts)
        return normalise(total, n_relevant, n_relevant, self.k, "min(P, K)")

    def _precision_sums(self, position: int, counts: NDArray[np.int32]) -> FloatArray:
        """[R]: the sum of precision(r) * relevant(r) over ranks r <= k, for one category.

        The copies of a relevant image that take the ranks s + 1 to e, with h relevant ones before them, add
        sum_i (h + i) / (s + i) = (e - s) + (h - s) * (H(e) - H(s)), H being the harmonic numbers.
        """
        ranking, last_rank = self._last_ranks(position, counts)
        rows = np.flatnonzero(self.relevant[position, ranking])
        copies = counts[ranking[rows]]  # [relevant, R]
        end = last_rank[rows]
        start = np.minimum(end - copies, self.k)
        end = np.minimum(end, self.k)
        taken = end - start
        hits_before = taken.cumsum(axis=0) - taken
        sums = taken + (hits_before - start) * (self.harmonic[end] - self.harmonic[start])
        result: FloatArray = sums.sum(axis=0)
        return result

    def _last_ranks(
        self, position: int, counts: NDArray[np.int32]
    ) -> tuple[NDArray[np.integer[Any]], NDArray[np.int32]]:
        """A category's ranking [d], and [d, R] the last rank that each image takes; deep enough to fill k ranks."""
        while True:
            ranking = self.rankings[position]
            last_rank = counts[ranking].cumsum(axis=0, dtype=np.int32)
            if len(ranking) == self.n_known[position] or last_rank[-1].min() >= self.k:
                return ranking, last_rank
            deeper = self.deeper(position, 2 * len(ranking))
            self.rankings[position] = deeper[deeper != UNRANKED]


def _percentile_interval(means: FloatArray, own_mean: float, level: float) -> Interval | None:
    """[R] means, NaN where there is none -> their interval; None when there is none at all."""
    existing = means[~np.isnan(means)]
    if len(existing) == 0:
        return None
    low, high = np.quantile(existing, [(1 - level) / 2, (1 + level) / 2])
    bias = float(existing.mean() - own_mean)
    return Interval(low=float(low), high=float(high), bias=bias, n_resamples=len(existing))
