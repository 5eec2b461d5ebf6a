"""The metrics against hand-computed values, plain-Python oracles, scikit-learn, and what must not change them."""

import time
import tracemalloc

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.metrics import average_precision_score

from for_eval import metrics
from for_eval.metrics import (
    UNRANKED,
    Interval,
    average_precision_at_k,
    bootstrap_interval,
    recall_at_k,
    relevant_at_rank,
    retrieval_scores,
    top_k,
)
from for_model.errors import UsageError

NAN = float("nan")


def slow_ranking(scores, known=None):
    """Columns of one category, best first, ties by column: written from the definition."""
    columns = [m for m in range(len(scores)) if known is None or known[m]]
    return sorted(columns, key=lambda m: (-float(scores[m]), m))


def slow_scores(scores, relevance, k, known=None):
    """(ap, ap_over_p, ap_over_hits, precision, recall, P) of one category, in plain Python."""
    ranking = slow_ranking(scores, known)
    n_relevant = sum(1 for m in ranking if relevance[m])
    if n_relevant == 0:
        return NAN, NAN, NAN, NAN, NAN, 0
    total, hits = 0.0, 0
    for rank, column in enumerate(ranking[:k], start=1):
        if relevance[column]:
            hits += 1
            total += hits / rank
    over_hits = total / hits if hits else 0.0
    return total / min(n_relevant, k), total / n_relevant, over_hits, hits / k, hits / n_relevant, n_relevant


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


def random_case(seed, n_categories=7, n_images=40, density=0.2, levels=None):
    """scores and relevance that go together somewhat; `levels` distinct scores make ties."""
    rng = np.random.default_rng(seed)
    relevance = rng.random((n_categories, n_images)) < density
    scores = rng.standard_normal((n_categories, n_images)) + relevance
    if levels is not None:
        scores = np.round(scores * levels / 6)
    return scores, relevance


def scores_as_rows(result):
    return np.stack(
        [result.ap, result.ap_over_p, result.ap_over_hits, result.precision, result.recall, result.n_relevant], axis=1
    )


class TestTopK:
    def test_golden(self):
        scores = np.array([[0.1, 0.9, 0.5], [3.0, 2.0, 1.0]])
        assert_array_equal(top_k(scores, 2), [[1, 2], [0, 1]])

    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    @pytest.mark.parametrize("levels", [None, 2, 8])
    @pytest.mark.parametrize("k", [1, 5, 39, 40, 60])
    def test_is_the_slow_ranking(self, k, levels, dtype):
        scores = random_case(k, levels=levels)[0].astype(dtype)
        assert_array_equal(top_k(scores, k), [slow_ranking(row)[:k] for row in scores])

    def test_ties_at_the_boundary_keep_column_order(self):
        scores = np.array([[1.0, 2.0, 1.0, 2.0, 1.0, 3.0]])
        for k in range(1, 7):
            assert_array_equal(top_k(scores, k), [[5, 1, 3, 0, 2, 4][:k]])

    def test_all_equal_is_column_order_whatever_k(self):
        scores = np.zeros((2, 300))
        scores[1, ::2] = -0.0  # equal to 0.0
        for k in (1, 50, 299, 300):
            assert_array_equal(top_k(scores, k), np.tile(np.arange(k), (2, 1)))

    def test_infinities_are_ranked(self):
        scores = np.array([[-np.inf, 1.0, np.inf, -np.inf]])
        assert_array_equal(top_k(scores, 3), [[2, 1, 0]])

    def test_unknown_images_are_never_ranked(self):
        scores, _ = random_case(0, levels=4)
        known = np.random.default_rng(1).random(scores.shape) < 0.3
        known[3] = False
        for k in (1, 10, 50):
            expected = np.full((len(scores), min(k, 40)), UNRANKED)
            for category, row in enumerate(scores):
                ranking = slow_ranking(row, known[category])[:k]
                expected[category, : len(ranking)] = ranking
            assert_array_equal(top_k(scores, k, known), expected)

    @pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
    def test_empty(self, shape):
        assert top_k(np.zeros(shape), 4).shape == (shape[0], min(4, shape[1]))

    def test_input_is_left_alone_and_may_be_strided(self):
        scores, _ = random_case(2)
        before = scores.copy()
        assert_array_equal(top_k(scores[::2, ::3], 5), top_k(scores[::2, ::3].copy(), 5))
        assert_array_equal(scores, before)

    def test_nan_is_refused_and_located(self):
        scores = np.zeros((3, 4))
        scores[1, 2] = np.nan
        with pytest.raises(UsageError, match="category 1 for image column 2 is NaN"):
            top_k(scores, 2)

    @pytest.mark.parametrize("k", [0, -1])
    def test_k_is_positive(self, k):
        with pytest.raises(UsageError, match=f"k is {k}"):
            top_k(np.zeros((1, 2)), k)

    @pytest.mark.parametrize("scores", [np.zeros(3), np.zeros((1, 2, 3)), np.zeros((2, 3), dtype=int)])
    def test_scores_are_a_floating_point_matrix(self, scores):
        with pytest.raises(UsageError, match="give floating point"):
            top_k(scores, 1)

    @pytest.mark.parametrize("known", [np.ones((2, 4), dtype=bool), np.ones((2, 3), dtype=int)])
    def test_known_fits_scores(self, known):
        with pytest.raises(UsageError, match="known has shape"):
            top_k(np.zeros((2, 3)), 1, known)


class TestAveragePrecision:
    # Relevant at ranks 1, 3 and 5: precisions 1, 2/3 and 3/5.
    RELEVANT = np.array([True, False, True, False, True])

    @pytest.mark.parametrize(
        ("normaliser", "expected"),
        [("min(P, K)", (1 + 2 / 3) / 4), ("P", (1 + 2 / 3) / 6), ("hits", (1 + 2 / 3) / 2)],
    )
    def test_golden_with_more_relevant_than_ranks(self, normaliser, expected):
        assert average_precision_at_k(self.RELEVANT, np.array(6), 4, normaliser) == pytest.approx(expected, rel=1e-14)

    @pytest.mark.parametrize(
        ("normaliser", "expected"),
        [("min(P, K)", (1 + 2 / 3 + 3 / 5) / 4), ("P", (1 + 2 / 3 + 3 / 5) / 4), ("hits", (1 + 2 / 3 + 3 / 5) / 3)],
    )
    def test_golden_with_fewer_relevant_than_ranks(self, normaliser, expected):
        assert average_precision_at_k(self.RELEVANT, np.array(4), 50, normaliser) == pytest.approx(expected, rel=1e-14)

    def test_best_ranking_reaches_one_under_the_primary_normaliser_only(self):
        relevant = np.ones((1, 3), dtype=bool)
        assert_array_equal(average_precision_at_k(relevant, np.array([6]), 3), [1.0])
        assert_array_equal(average_precision_at_k(relevant, np.array([6]), 3, "P"), [0.5])

    @pytest.mark.parametrize("normaliser", ["min(P, K)", "P", "hits"])
    def test_nothing_relevant_is_nan_and_nothing_found_is_zero(self, normaliser):
        relevant = np.zeros((2, 3), dtype=bool)
        assert_array_equal(average_precision_at_k(relevant, np.array([0, 5]), 3, normaliser), [NAN, 0.0])

    def test_leading_axes_and_no_ranks(self):
        relevant = np.zeros((2, 3, 0), dtype=bool)
        assert_array_equal(average_precision_at_k(relevant, np.ones((2, 3), dtype=int), 3), np.zeros((2, 3)))

    def test_unknown_normaliser(self):
        with pytest.raises(UsageError, match="give one of 'min"):
            average_precision_at_k(self.RELEVANT, np.array(4), 5, "R")

    def test_more_hits_than_relevant(self):
        with pytest.raises(UsageError, match="more relevant images among the first ranks"):
            average_precision_at_k(self.RELEVANT, np.array(2), 5)

    def test_shapes_must_fit(self):
        with pytest.raises(UsageError, match="relevant has shape"):
            average_precision_at_k(np.ones((2, 5), dtype=bool), np.array([5, 5, 5]), 5)


class TestRetrievalScores:
    def test_golden(self):
        # Category 0 ranks columns 3 1 0 2, of which 1 and 2 are relevant: at k = 3 one hit, at rank 2.
        # Category 1 has one relevant image, the best.  Category 2 has none.
        scores = np.array([[0.2, 0.5, 0.1, 0.9], [0.1, 0.2, 0.4, 0.3], [0.4, 0.3, 0.2, 0.1]])
        relevance = np.array([[0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]], dtype=bool)
        result = retrieval_scores(scores, relevance, k=3)
        assert result.k == 3
        assert_allclose(result.ap, [0.25, 1.0, NAN])
        assert_allclose(result.ap_over_p, [0.25, 1.0, NAN])
        assert_allclose(result.ap_over_hits, [0.5, 1.0, NAN])
        assert_allclose(result.precision, [1 / 3, 1 / 3, NAN])
        assert_allclose(result.recall, [0.5, 1.0, NAN])
        assert_array_equal(result.n_relevant, [2, 1, 0])

        everything = result.mean()
        assert everything.n_categories == 2
        assert everything.ap == pytest.approx(0.625)
        assert everything.ap_over_hits == pytest.approx(0.75)
        assert everything.precision == pytest.approx(1 / 3)
        assert everything.recall == pytest.approx(0.75)
        assert result.mean(np.array([True, False, True])).ap == pytest.approx(0.25)

    @pytest.mark.parametrize("levels", [None, 3])
    @pytest.mark.parametrize("with_known", [False, True])
    @pytest.mark.parametrize("k", [1, 6, 50])
    def test_is_the_slow_oracle(self, k, with_known, levels):
        scores, relevance = random_case(10 + k, n_categories=9, density=0.15, levels=levels)
        relevance[4] = False
        known = np.random.default_rng(k).random(scores.shape) < 0.5 if with_known else None
        pools = [None] * len(scores) if known is None else known
        expected = [slow_scores(*rows, k, pool) for *rows, pool in zip(scores, relevance, pools, strict=True)]
        assert_allclose(scores_as_rows(retrieval_scores(scores, relevance, k, known)), expected, rtol=1e-12)

    def test_is_scikit_learns_over_the_whole_collection(self):
        # Its average precision is sum (R_n - R_{n-1}) P_n: recall rises by 1/P at each relevant image, so over all
        # ranks and without ties (it puts equal scores at one threshold) this is our sum divided by P.
        scores, relevance = random_case(3, n_categories=20, n_images=300)
        assert len(np.unique(scores)) == scores.size
        expected = [average_precision_score(y, s) for y, s in zip(relevance, scores, strict=True)]
        assert_allclose(retrieval_scores(scores, relevance, k=300).ap_over_p, expected, rtol=1e-12)
        assert_allclose(retrieval_scores(scores, relevance, k=1000).ap, expected, rtol=1e-12)

    def test_order_of_categories(self):
        scores, relevance = random_case(4, n_images=200, levels=5)
        permutation = np.random.default_rng(0).permutation(len(scores))
        assert_array_equal(
            scores_as_rows(retrieval_scores(scores[permutation], relevance[permutation])),
            scores_as_rows(retrieval_scores(scores, relevance))[permutation],
        )

    def test_order_in_which_images_were_read(self):
        # A reader that meets the images in another order sorts them by id again: same scores, ties included.
        scores, relevance = random_case(5, n_images=200, levels=3)
        ids = np.random.default_rng(0).permutation(200)
        by_id = np.argsort(ids)
        assert_array_equal(
            scores_as_rows(retrieval_scores(scores[:, ids][:, by_id], relevance[:, ids][:, by_id])),
            scores_as_rows(retrieval_scores(scores, relevance)),
        )

    def test_order_of_images_without_ties(self):
        scores, relevance = random_case(5, n_images=200)
        ids = np.random.default_rng(0).permutation(200)
        assert_array_equal(
            scores_as_rows(retrieval_scores(scores[:, ids], relevance[:, ids])),
            scores_as_rows(retrieval_scores(scores, relevance)),
        )

    def test_precision_of_the_numbers_and_a_constant(self):
        scores, relevance = random_case(6, n_images=200, levels=40)  # whole numbers: exact in both types
        expected = scores_as_rows(retrieval_scores(scores, relevance))
        for same in (scores.astype(np.float32), scores + 1000, scores * 2, scores.astype(np.float32) - 512):
            assert_array_equal(scores_as_rows(retrieval_scores(same, relevance)), expected)

    def test_unknown_images_count_as_if_they_were_not_there(self):
        scores, relevance = random_case(7, n_categories=1, n_images=60, density=0.4)
        known = np.zeros_like(relevance)
        known[:, ::2] = True
        assert_array_equal(
            scores_as_rows(retrieval_scores(scores, relevance, 10, known)),
            scores_as_rows(retrieval_scores(scores[:, ::2], relevance[:, ::2], 10)),
        )

    def test_all_ties(self):
        relevance = np.array([[False, True, True, False]])
        assert_allclose(retrieval_scores(np.ones((1, 4)), relevance, k=2).ap, [0.25])

    def test_no_images(self):
        result = retrieval_scores(np.zeros((3, 0)), np.zeros((3, 0), dtype=bool))
        assert_array_equal(result.ap, [NAN] * 3)
        assert result.mean().ap is None

    def test_no_categories(self):
        assert retrieval_scores(np.zeros((0, 4)), np.zeros((0, 4), dtype=bool)).mean().n_categories == 0

    def test_missing_mean_is_none_not_zero(self):
        scores, relevance = random_case(8)
        relevance[0] = False
        result = retrieval_scores(scores, relevance)
        for mask in (np.zeros(7, dtype=bool), np.arange(7) == 0):
            mean = result.mean(mask)
            assert mean.n_categories == 0
            assert (mean.ap, mean.ap_over_p, mean.ap_over_hits, mean.precision, mean.recall) == (None,) * 5

    def test_group_mask_fits(self):
        scores, relevance = random_case(8)
        with pytest.raises(UsageError, match="group_mask has shape"):
            retrieval_scores(scores, relevance).mean(np.ones(3, dtype=bool))

    def test_relevance_fits(self):
        with pytest.raises(UsageError, match="relevance has shape"):
            retrieval_scores(np.zeros((2, 3)), np.zeros((3, 2), dtype=bool))


class TestRecall:
    def test_golden_and_in_the_order_of_ks(self):
        scores = np.array([[4.0, 3.0, 2.0, 1.0], [4.0, 3.0, 2.0, 1.0]])
        relevance = np.array([[0, 1, 0, 1], [0, 0, 0, 0]], dtype=bool)
        recalls = recall_at_k(scores, relevance, ks=(3, 1, 10))
        assert list(recalls) == [3, 1, 10]
        assert_array_equal(recalls[1], [0.0, NAN])
        assert_array_equal(recalls[3], [0.5, NAN])
        assert_array_equal(recalls[10], [1.0, NAN])

    def test_agrees_with_retrieval_scores(self):
        scores, relevance = random_case(9, n_images=200, levels=5)
        known = np.random.default_rng(0).random(scores.shape) < 0.7
        for k, recall in recall_at_k(scores, relevance, known=known).items():
            assert_array_equal(recall, retrieval_scores(scores, relevance, k, known).recall)

    @pytest.mark.parametrize("ks", [(), (5, 0)])
    def test_ks_must_make_sense(self, ks):
        with pytest.raises(UsageError, match="give a"):
            recall_at_k(np.zeros((1, 2)), np.ones((1, 2), dtype=bool), ks)


def test_relevant_at_rank_is_false_where_nothing_is_ranked():
    relevance = np.array([[False, True], [True, True]])
    assert_array_equal(relevant_at_rank(np.array([[1, 0], [1, UNRANKED]]), relevance), [[True, False], [True, False]])
    assert relevant_at_rank(np.zeros((2, 0), dtype=np.int64), relevance).shape == (2, 0)


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

        def shallow_top_k(scores, k, known=None):
            depths.append(k)
            return top_k(scores, 1 if len(depths) == 1 else k, known)

        monkeypatch.setattr(metrics, "top_k", shallow_top_k)
        assert bootstrap_interval(scores, relevance, GROUPS, 5, 50) == expected
        assert {2, 4, 8, 16} <= set(depths[1:])

    @pytest.mark.parametrize("counts_per_block", [1, 400, 1700])
    def test_size_of_blocks(self, monkeypatch, counts_per_block):
        scores, relevance = random_case(12)
        expected = bootstrap_interval(scores, relevance, GROUPS, n_resamples=50)
        monkeypatch.setattr(metrics, "_COUNTS_PER_BLOCK", counts_per_block)
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


@pytest.mark.slow
def test_lvis_scale_fits_in_time_and_memory():
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((1203, 20_000), dtype=np.float32)
    relevance = rng.random(scores.shape, dtype=np.float32) < 0.01
    tracemalloc.start()  # numpy reports its allocations; the inputs were made before
    started = time.perf_counter()
    result = retrieval_scores(scores, relevance)
    seconds = time.perf_counter() - started
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert result.mean().n_categories == 1203
    assert peak_bytes < scores.nbytes / 4  # never a second matrix of scores
    assert peak_bytes + scores.nbytes + relevance.nbytes < 2e9
    assert seconds < 10
