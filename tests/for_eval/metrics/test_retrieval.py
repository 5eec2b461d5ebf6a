"""The metrics against hand-computed values, plain-Python oracles, scikit-learn, and what must not change them."""

import time
import tracemalloc

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.metrics import average_precision_score

from for_eval.metrics.retrieval import recall_at_k, relevant_at_rank, retrieval_scores
from for_model.errors import UsageError
from for_search.query.ranking import UNRANKED, average_precision_at_k, top_k
from tests.helpers.slow_metrics import NAN, random_case, slow_ranking, slow_scores


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

    @pytest.mark.parametrize("with_known", [False, True])
    @pytest.mark.parametrize("n_images", [0, 3, 60, 300])
    def test_a_deeper_ranking_made_before_gives_the_same_to_the_last_digit(self, n_images, with_known):
        scores, relevance = random_case(31, n_images=n_images, levels=9)
        known = np.random.default_rng(2).random(scores.shape) < 0.5 if with_known else None
        order = top_k(scores, 200, known).astype(np.int32)
        assert_array_equal(
            scores_as_rows(retrieval_scores(scores, relevance, 50, known, order)),
            scores_as_rows(retrieval_scores(scores, relevance, 50, known)),
        )
        once, again = (recall_at_k(scores, relevance, known=known, order=each) for each in (order, None))
        assert list(once) == list(again)
        for k in once:
            assert_array_equal(once[k], again[k])

    def test_a_ranking_of_another_shape_is_refused(self):
        scores, relevance = random_case(32, n_images=60)
        for order in (top_k(scores, 49), top_k(scores, 50)[1:], top_k(scores, 50)[0]):
            with pytest.raises(UsageError, match="order has shape"):
                retrieval_scores(scores, relevance, 50, order=order)

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


@pytest.mark.slow
def test_lvis_scale_fits_in_time_and_memory():
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((1203, 20_000), dtype=np.float32)
    relevance = rng.random(scores.shape, dtype=np.float32) < 0.01
    tracemalloc.start()  # numpy reports its allocations; the inputs were made before
    started = time.process_time()
    result = retrieval_scores(scores, relevance)
    cpu_seconds = time.process_time() - started
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert result.mean().n_categories == 1203
    assert peak_bytes < scores.nbytes / 4  # never a second matrix of scores
    assert peak_bytes + scores.nbytes + relevance.nbytes < 2e9
    assert cpu_seconds < 20  # of this process alone: 1 when measured
