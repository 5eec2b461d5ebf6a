"""What is learnt from marks, by every refiner, and the answer of a whole catalogue."""

from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from for_eval.refinement.simulated_user import full_average_precision
from for_model.errors import UsageError
from for_search.refine.answer import refine_index, whole_answer
from for_search.refine.catalogue_sample import catalogue_sample, sample_catalogue
from for_search.refine.feedback import Feedback, feedback_of, marked_embeddings
from for_search.refine.learners.branches import BranchesScorer
from for_search.refine.learners.refiner_protocol import LinearScorer
from for_search.refine.learners.refiners import REFINERS, refiner_of
from for_search.refine.learners.similarity import SimilarityScorer
from for_search.refine.one_thread import products_by_one_thread
from tests.helpers.planted_index import Planted, make_planted


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return make_planted(tmp_path_factory.mktemp("answer"))


@pytest.mark.parametrize("refiner", REFINERS)
def test_without_marks_the_order_is_the_texts_to_the_bit(planted: Planted, refiner: str) -> None:
    learnt = refine_index(planted.index, planted.text, Feedback(), refiner)
    assert learnt.best(50) == learnt.unmarked(50) == planted.index.search(planted.text[None], 50)[0]
    np.testing.assert_array_equal(learnt.scores(), planted.index.score_images(planted.text[None])[0])
    assert learnt.probability(0.5) is None
    with pytest.raises(UsageError, match="nothing is marked"):
        whole_answer(learnt)


@pytest.mark.parametrize("refiner", REFINERS)
def test_marks_tell_what_is_meant(planted: Planted, refiner: str) -> None:
    feedback = feedback_of(planted.marks(40))
    assert min(feedback.n_right, feedback.n_wrong) > 5
    learnt = refine_index(planted.index, planted.text, feedback, refiner)
    text_ap = full_average_precision(planted.index.score_images(planted.text[None])[0], planted.relevant)
    ap = full_average_precision(learnt.scores(), planted.relevant)
    assert text_ap is not None
    assert ap is not None
    assert ap > text_ap + 0.1
    again = refine_index(planted.index, planted.text, feedback, refiner)
    np.testing.assert_array_equal(again.scores(), learnt.scores())
    ids = {mark.image for mark in feedback.marks}
    assert ids == learnt.marked
    hits = learnt.unmarked(10)
    assert len(hits) == 10
    assert not ids & {hit.image.id for hit in hits}
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    scores = {image.id: score for image, score in zip(planted.index.images, learnt.scores(), strict=True)}
    assert hits[0].score == pytest.approx(scores[hits[0].image.id], rel=1e-5)


@pytest.mark.parametrize("refiner", REFINERS)
@pytest.mark.parametrize("right", [True, False])
def test_marks_of_one_class_only(planted: Planted, refiner: str, right: bool) -> None:
    marks = [mark for mark in planted.marks(40) if mark["right"] is right][:1]
    learnt = refine_index(planted.index, planted.text, feedback_of(marks), refiner)
    assert np.isfinite(learnt.scores()).all()
    answer = whole_answer(learnt)
    assert (marks[0]["image"] in {planted.index.images[i].id for i in answer.images}) is right


@pytest.mark.parametrize("refiner", REFINERS)
def test_marks_without_a_text(planted: Planted, refiner: str) -> None:
    learnt = refine_index(planted.index, None, feedback_of(planted.marks(40)), refiner)
    ap = full_average_precision(learnt.scores(), planted.relevant)
    assert ap is not None
    assert ap > 2 * planted.relevant.mean()
    wrong = [mark for mark in planted.marks(40) if not mark["right"]]
    with pytest.raises(UsageError, match="neither a text nor a right image"):
        refine_index(planted.index, None, feedback_of(wrong), refiner)


def test_the_whole_answer_holds_what_is_right_and_says_how_sure_it_is(planted: Planted) -> None:
    feedback = feedback_of(planted.marks(60))
    learnt = refine_index(planted.index, planted.text, feedback)
    answer = whole_answer(learnt)
    ids = [planted.index.images[i].id for i in answer.images]
    assert ids[: feedback.n_right] == [mark.image for mark in feedback.marks if mark.right]
    nearly_all = whole_answer(learnt, 1e-6)  # so that what is left out is so by its mark, not by its probability
    left_out = set(range(len(planted.index.images))) - set(nearly_all.images.tolist())
    assert {planted.index.images[i].id for i in left_out} == {mark.image for mark in feedback.marks if not mark.right}
    assert len(set(ids)) == len(ids)
    assert (answer.probabilities[: feedback.n_right] == 1).all()
    assert (np.diff(answer.probabilities) <= 0).all()
    truth = planted.relevant[answer.images].mean()
    assert answer.precision == pytest.approx(truth, abs=0.15)
    assert answer.expected_total == pytest.approx(planted.relevant.sum(), rel=0.4)
    assert answer.in_words() == f"about {len(ids)} images, {100 * answer.precision:.0f}% right"
    assert len(whole_answer(learnt, 0.9).images) < len(ids) < len(whole_answer(learnt, 0.1).images)
    with pytest.raises(UsageError, match=r"the threshold is 1"):
        whole_answer(learnt, 1)


def test_a_named_part_is_what_counts(planted: Planted) -> None:
    image = planted.index.images[int(np.flatnonzero(planted.relevant)[0])].id
    learnt = {
        part: refine_index(planted.index, None, feedback_of([{"image": image, "right": True, "embedding": part}]))
        for part in (0, 1)
    }
    ap = {part: full_average_precision(each.scores(), planted.relevant) or 0 for part, each in learnt.items()}
    assert ap[1] > ap[0] + 0.1  # what is meant was planted as part 1


def test_marks_of_images_that_are_gone_change_nothing(planted: Planted) -> None:
    marks = planted.marks(10)
    there = refine_index(planted.index, planted.text, feedback_of(marks))
    gone = refine_index(planted.index, planted.text, feedback_of([*marks, {"image": 99999, "right": True}]))
    np.testing.assert_array_equal(there.scores(), gone.scores())
    assert len(gone.examples.gone) == 1


def test_an_unknown_refiner_gets_the_list() -> None:
    with pytest.raises(UsageError, match="no refiner is called 'svm': choose one of similarity, linear, rocchio"):
        refiner_of("svm")


def test_boxes_hold_what_they_were_grown_from(planted: Planted) -> None:
    learnt = refine_index(planted.index, planted.text, feedback_of(planted.marks(40)), "branches")
    scorer = learnt.scorer
    assert isinstance(scorer, BranchesScorer)
    assert max(len(box.axes) for boxes in scorer.members for box in boxes) <= 8
    first = BranchesScorer(scorer.members[:1], scorer.mean, scorer.axes, None)  # the member that saw every right image
    for parts in learnt.examples.right:
        assert first.score(parts).max() == 1


def test_the_sample_describes_the_catalogue(planted: Planted) -> None:
    sample = sample_catalogue(planted.index)
    rows = sample.images.reshape(-1, planted.index.info.dim)
    np.testing.assert_allclose(sample.mean, rows.mean(axis=0), atol=1e-6)
    projected = (rows - sample.mean) @ sample.axes
    np.testing.assert_allclose(projected.var(axis=0), sample.variances, atol=1e-5)
    assert (np.diff(sample.variances) <= 1e-7).all()
    flat = catalogue_sample(np.zeros((3, 2, 5), np.float32))
    assert np.isfinite(flat.axes).all()


def test_a_tiny_catalogue_of_which_all_is_marked(tmp_path: Path) -> None:
    small = make_planted(tmp_path, 3)
    learnt = refine_index(small.index, small.text, feedback_of(small.marks(3)))
    assert learnt.unmarked(5) == []


def test_similarity_is_the_mean_of_the_two_nearest_parts(planted: Planted) -> None:
    learnt = refine_index(planted.index, planted.text, feedback_of(planted.marks(40)), "similarity")
    scorer = learnt.scorer
    assert isinstance(scorer, SimilarityScorer)
    rows = planted.index.take(range(30)).reshape(-1, planted.index.info.dim)
    for row, score in zip(rows, scorer.score(rows), strict=True):  # slowly, by the definition
        right, wrong = (sorted(parts @ row)[-2:] for parts in (scorer.right, scorer.wrong))
        assert score == pytest.approx(scorer.query @ row + sum(right) / 2 - sum(wrong) / 2, abs=1e-4)
    one = SimilarityScorer(scorer.query, scorer.right[:1], scorer.wrong[:0])
    np.testing.assert_allclose(one.score(rows), rows @ (scorer.query + scorer.right[0]), atol=1e-4)


def test_nothing_is_learnt_from_similarity_of_whole_images(tmp_path: Path) -> None:
    whole = make_planted(tmp_path, 60, n_embeddings=3)
    whole_images = catalogue_sample(whole.index.take(range(60))[:, :1])
    examples = marked_embeddings(whole.index, feedback_of(whole.marks(10)))
    assert isinstance(refiner_of("similarity").fit(whole.text, examples, whole_images), LinearScorer)
    images = whole.index.take(range(60))
    alike = catalogue_sample(0.95 * images.mean(axis=1, keepdims=True) + 0.05 * images)  # an image's parts are
    learnt = [refiner_of("similarity").fit(whole.text, examples, each) for each in (catalogue_sample(images), alike)]
    apart, together = (each.right for each in learnt if isinstance(each, SimilarityScorer))
    assert np.linalg.norm(together, axis=1).max() < 0.1 * np.linalg.norm(apart, axis=1).min()


def test_a_wrong_part_says_nothing_of_the_others(planted: Planted) -> None:
    marks = planted.marks(40)
    wrong = next(mark for mark in marks if not mark["right"])
    scores = {}
    for part in (None, 0, 2):
        named = [{**mark, "embedding": part} if mark is wrong else mark for mark in marks]
        learnt = refine_index(planted.index, planted.text, feedback_of(named))
        assert isinstance(learnt.scorer, SimilarityScorer)
        scores[part] = learnt.scorer.score(planted.index.embeddings(wrong["image"]))  # type: ignore[arg-type]
        assert planted.index.position(wrong["image"]) not in whole_answer(learnt).images  # type: ignore[arg-type]
    assert scores[0][0] < scores[2][0]
    assert scores[2][2] < scores[0][2]


def test_what_learns_multiplies_by_one_thread() -> None:
    def threads() -> list[int]:
        return [each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"]

    with products_by_one_thread():
        pass  # brings SciPy's library, which starts with as many threads as the environment says
    with threadpool_limits(2, user_api="blas"):
        before = threads()
        assert 2 in before  # a library may insist on what the environment says
        with products_by_one_thread():
            assert set(threads()) == {1}
            assert len(threads()) > 1  # SciPy's own library too
        assert threads() == before
