"""Whole answers of an index that is too large for a scan: what is looked at is little, and what is found the same."""

from pathlib import Path

import numpy as np
import pytest

from for_search.index.index_files import open_index
from for_search.index.sketches.sketch_files import open_sketches
from for_search.refine import catalogue_sample, guided_search
from for_search.refine.answer import Refinement, WholeAnswer, refine_index, whole_answer
from for_search.refine.feedback import feedback_of
from for_search.refine.learners.branches import SketchScorer
from tests.helpers.planted_index import Planted, make_planted


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("large")


@pytest.fixture(scope="module")
def planted(folder: Path) -> Planted:
    return make_planted(folder)


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch, planted: Planted) -> Planted:
    """The same index, as if it were large."""
    monkeypatch.setattr(catalogue_sample, "_SMALL", 10)
    return planted


def _learn(planted: Planted, refiner: str, count: int = 40) -> Refinement:
    index = open_index(planted.index.path)
    return refine_index(index, planted.text, feedback_of(planted.marks(count)), refiner)


@pytest.mark.parametrize("refiner", ["linear", "rocchio", "marks-only", "similarity"])
def test_an_answer_that_a_vector_leads_to_is_the_scans_without_a_scan(
    large: Planted, refiner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guided_search, "_MOST", 1.0)  # of so few images many look alike
    learnt = _learn(large, refiner)
    scanned = {threshold: whole_answer(learnt, threshold, exact=True) for threshold in (0.02, 0.3, 0.7)}
    monkeypatch.setattr(Refinement, "scores", lambda self: pytest.fail("it was scanned"))
    for threshold, wanted in scanned.items():
        found = whole_answer(learnt, threshold)
        assert wanted.scanned
        assert not found.scanned
        _assert_same(found, wanted)
        assert found.expected_total == pytest.approx(wanted.expected_total, rel=0.1)  # wrong images are sampled too
    assert len(scanned[0.02].images) > 2 * 50  # so that it was asked more than once
    assert len(scanned[0.02].images) > len(scanned[0.7].images)


def test_a_vector_leads_to_the_best_by_similarity(large: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guided_search, "_MOST", 1.0)
    learnt = _learn(large, "similarity")
    allowed = np.arange(300) % 2 == 0
    scanned = [learnt.best(7, exact=True), learnt.best(7, allowed, exact=True)]
    monkeypatch.setattr(Refinement, "scores", lambda self: pytest.fail("it was scanned"))
    assert [learnt.best(7), learnt.best(7, allowed)] == scanned
    assert len(learnt.some_scores()) <= 300
    monkeypatch.undo()
    monkeypatch.setattr(catalogue_sample, "_SMALL", 10)
    monkeypatch.setattr(guided_search, "_MOST", 0.0)  # the vector is of no use
    assert learnt.best(7) == scanned[0]
    assert whole_answer(learnt).scanned


def test_branches_over_sketches_answer_as_a_look_at_every_sketch_does(large: Planted) -> None:
    learnt = _learn(large, "branches")
    assert isinstance(learnt.scorer, SketchScorer)
    assert open_sketches(learnt.index) is not None  # made when it was first asked
    for threshold in (0.1, 0.5, 0.8):
        _assert_same(whole_answer(learnt, threshold), whole_answer(learnt, threshold, exact=True))
    scores = learnt.scores()
    rows = learnt.index.take(range(300)).reshape(-1, learnt.index.info.dim)
    np.testing.assert_allclose(scores, learnt.scorer.score(rows).reshape(300, -1).max(axis=1), atol=1e-6)
    truth = large.relevant[whole_answer(learnt).images]
    assert truth.mean() > 2 * large.relevant.mean()


@pytest.mark.parametrize("k", [1, 60, 500])
def test_the_best_by_boxes_then_by_the_text(large: Planted, k: int) -> None:
    learnt = _learn(large, "branches", 12)
    assert isinstance(learnt.scorer, SketchScorer)
    scores = learnt.scores()
    hits = learnt.best(k)
    assert len({hit.image.id for hit in hits}) == len(hits) == min(k, 300)
    order = np.lexsort((np.arange(300), -scores))[: len(hits)]
    held = int((scores >= 1 / 25 - 0.02).sum())  # at least one member holds them: their order is certain
    places = [learnt.index.position(hit.image.id) for hit in hits]
    assert places[:held] == order[:held].tolist()
    np.testing.assert_allclose([hit.score for hit in hits], scores[places], atol=1e-6)
    allowed = np.arange(300) % 3 == 0
    chosen = learnt.best(k, allowed)
    assert all(learnt.index.position(hit.image.id) % 3 == 0 for hit in chosen)
    assert len(chosen) == min(k, 100)


def test_a_small_index_is_scanned_and_gets_no_sketches(tmp_path: Path) -> None:
    small = make_planted(tmp_path)
    learnt = _learn(small, "branches")
    assert not isinstance(learnt.scorer, SketchScorer)
    assert whole_answer(learnt).scanned
    assert not list(small.index.path.rglob("sketches"))


def test_an_index_that_cannot_be_written_is_scanned(large: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(index: object) -> None:
        raise catalogue_sample.StoreError("can't write sketches")

    monkeypatch.setattr(catalogue_sample, "make_sketches", refuse)
    learnt = _learn(large, "branches")
    assert not isinstance(learnt.scorer, SketchScorer)
    assert whole_answer(learnt).scanned


def _assert_same(found: WholeAnswer, wanted: WholeAnswer) -> None:
    np.testing.assert_array_equal(found.images, wanted.images)
    np.testing.assert_allclose(found.probabilities, wanted.probabilities, atol=1e-5)
    assert found.precision == pytest.approx(wanted.precision, abs=1e-5)
