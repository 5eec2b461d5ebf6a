"""The bootstrap against literally copying columns and ranking them afresh."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from for_eval.metrics import bootstrap
from for_eval.metrics.bootstrap import Interval, bootstrap_interval
from for_eval.metrics.retrieval import retrieval_scores
from for_model.errors import UsageError
from for_search.query.ranking import top_k
from tests.helpers.slow_metrics import random_case, slow_scores


def slow_bootstrap_means(scores, relevance, mask, k, n_resamples, seed, known=None):
    """The group's mean AP of each resample, by copying columns and ranking them afresh."""
    rng = np.random.default_rng(seed)
    n_images = scores.shape[1]
    means = []
    for _ in range(n_resamples):
        drawn = np.sort(rng.integers(n_images, size=n_images))  # a resample's images, too, are in order of their id
        values = []
        for category in np.flatnonzero(mask):
            pool = None if known is None else known[category, drawn]
            result = slow_scores(scores[category, drawn], relevance[category, drawn], k, pool)
            if result[-1] > 0:
                values.append(result[0])
        if values:
            means.append(sum(values) / len(values))
    return means


GROUPS = {"base": np.arange(7) < 4, "novel": np.arange(7) >= 5, "all": np.ones(7, dtype=bool)}


class TestBootstrap:
    @pytest.mark.parametrize(("n_images", "k"), [(40, 5), (200, 3), (30, 50), (1, 50), (2, 1)])
    @pytest.mark.parametrize("levels", [None, 3])
    @pytest.mark.parametrize("with_known", [False, True])
    def test_is_literal_resampling(self, n_images, k, levels, with_known):
        scores, relevance = random_case(n_images, n_images=n_images, density=0.3, levels=levels)
        relevance[0, 0] = relevance[5, 0] = True
        known = np.random.default_rng(k).random(scores.shape) < 0.6 if with_known else None
        intervals = bootstrap_interval(scores, relevance, GROUPS, k, n_resamples=40, seed=3, level=0.9, known=known)
        own = retrieval_scores(scores, relevance, k, known)
        for name, mask in GROUPS.items():
            means = slow_bootstrap_means(scores, relevance, mask, k, 40, 3, known)
            if not means:
                assert intervals[name] is None
                continue
            interval = intervals[name]
            assert_allclose((interval.low, interval.high), np.quantile(means, [0.05, 0.95]), rtol=1e-12)
            assert interval.bias == pytest.approx(np.mean(means) - own.mean(mask).ap, abs=1e-12)
            assert interval.n_resamples == len(means)

    def test_goes_deeper_where_the_best_images_are_not_drawn(self, monkeypatch):
        # A ranking one image deep fills k ranks in hardly any resample, so every category has to go on.
        scores, relevance = random_case(11, n_images=200)
        expected = bootstrap_interval(scores, relevance, GROUPS, 5, 50)
        depths = []

        def deeper_top_k(scores, k, known=None):
            depths.append(k)
            return top_k(scores, k, known)

        monkeypatch.setattr(bootstrap, "top_k", deeper_top_k)
        monkeypatch.setattr(bootstrap, "enough_depth", lambda k: 1)
        assert bootstrap_interval(scores, relevance, GROUPS, 5, 50) == expected
        assert {2, 4, 8, 16} <= set(depths)

    @pytest.mark.parametrize("n_images", [30, 400])
    @pytest.mark.parametrize("with_known", [False, True])
    def test_a_ranking_made_before_gives_the_same_to_the_last_digit(self, n_images, with_known):
        scores, relevance = random_case(21, n_images=n_images, density=0.2, levels=40)
        known = np.random.default_rng(1).random(scores.shape) < 0.7 if with_known else None
        for depth in (bootstrap.enough_depth(50), 200):
            order = top_k(scores, depth, known).astype(np.int32)
            got = bootstrap_interval(scores, relevance, GROUPS, 50, 50, known=known, order=order)
            assert got == bootstrap_interval(scores, relevance, GROUPS, 50, 50, known=known)
        if n_images > 50:
            with pytest.raises(UsageError, match=r"order has shape \[7, 50\]; expected \[7, 96 or more\]"):
                bootstrap_interval(scores, relevance, GROUPS, 50, 50, known=known, order=top_k(scores, 50, known))

    @pytest.mark.parametrize("counts_per_block", [1, 400, 1700])
    def test_size_of_blocks(self, monkeypatch, counts_per_block):
        scores, relevance = random_case(12)
        expected = bootstrap_interval(scores, relevance, GROUPS, n_resamples=50)
        monkeypatch.setattr(bootstrap, "_COUNTS_PER_BLOCK", counts_per_block)
        got = bootstrap_interval(scores, relevance, GROUPS, n_resamples=50)
        for name, interval in expected.items():
            assert_allclose((got[name].low, got[name].high), (interval.low, interval.high), rtol=1e-14)

    def test_groups_see_the_same_resamples(self):
        scores, relevance = random_case(13)
        together = bootstrap_interval(scores, relevance, GROUPS, n_resamples=50)
        alone = bootstrap_interval(scores, relevance, {"novel": GROUPS["novel"]}, n_resamples=50)
        assert together["novel"].low == pytest.approx(alone["novel"].low, rel=1e-14)
        assert together["novel"].high == pytest.approx(alone["novel"].high, rel=1e-14)

    def test_seed(self):
        scores, relevance = random_case(14)
        first = bootstrap_interval(scores, relevance, GROUPS, n_resamples=50, seed=1)
        assert bootstrap_interval(scores, relevance, GROUPS, n_resamples=50, seed=1) == first
        assert bootstrap_interval(scores, relevance, GROUPS, n_resamples=50, seed=2) != first

    def test_perfect_ranking_has_no_spread(self):
        relevance = np.arange(400)[None, :] < 200
        interval = bootstrap_interval(relevance.astype(float), relevance, {"all": np.array([True])}, n_resamples=50)
        assert interval["all"] == Interval(low=1.0, high=1.0, bias=0.0, n_resamples=50)

    def test_shifting_puts_the_interval_around_the_score(self):
        # Many categories that score low: copies that are relevant together lift every resample above the score.
        rng = np.random.default_rng(0)
        relevance = rng.random((300, 1000)) < 0.01
        scores = rng.standard_normal(relevance.shape) + relevance
        mask = np.ones(300, dtype=bool)
        own = retrieval_scores(scores, relevance).mean().ap
        interval = bootstrap_interval(scores, relevance, {"all": mask}, n_resamples=200)["all"]
        assert own < interval.low
        low, high = interval.shifted()
        assert low < own < high
        assert high - low == pytest.approx(interval.high - interval.low)

    def test_shifted_ends_stay_scores(self):
        assert Interval(low=0.1, high=0.3, bias=0.2, n_resamples=9).shifted() == (0.0, pytest.approx(0.1))
        assert Interval(low=0.9, high=1.0, bias=-0.1, n_resamples=9).shifted() == (1.0, 1.0)

    def test_resamples_without_a_mean_are_left_out_and_counted(self):
        relevance = np.zeros((1, 50), dtype=bool)
        relevance[0, 7] = True  # drawn in 1 - (1 - 1/50)^50 = 64% of the resamples
        interval = bootstrap_interval(relevance.astype(float), relevance, {"one": np.array([True])}, n_resamples=400)
        assert interval["one"].n_resamples == pytest.approx(0.636 * 400, abs=30)
        assert (interval["one"].low, interval["one"].high) == (1.0, 1.0)

    def test_missing_interval_is_none(self):
        scores, relevance = random_case(15)
        relevance[5:] = False
        empty = np.zeros(7, dtype=bool)
        got = bootstrap_interval(scores, relevance, {**GROUPS, "empty": empty}, n_resamples=10)
        assert got["novel"] is None
        assert got["empty"] is None
        assert got["base"] is not None
        assert bootstrap_interval(scores, relevance, {}) == {}
        assert bootstrap_interval(np.zeros((7, 0)), np.zeros((7, 0), dtype=bool), {"empty": empty}) == {"empty": None}

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"n_resamples": 0}, "give n_resamples >= 1"),
            ({"level": 1.0}, "0 < level < 1"),
            ({"level": 0.0}, "0 < level < 1"),
            ({"k": 0}, "k is 0"),
            ({"groups": {"base": np.ones(3, dtype=bool)}}, "group 'base' has shape"),
        ],
    )
    def test_settings_must_make_sense(self, settings, message):
        scores, relevance = random_case(16)
        with pytest.raises(UsageError, match=message):
            bootstrap_interval(scores, relevance, **{"groups": GROUPS, **settings})
