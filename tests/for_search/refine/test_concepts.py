"""Concepts on disk: kept, learnt again, refused where they don't fit; and a whole answer as files."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from for_model.data.coco import load_coco
from for_model.errors import DataError, StoreError, UsageError
from for_model.methods.protocol import LazyMethod
from for_search.query.searcher import Searcher
from for_search.refine.answer import refine_index, whole_answer
from for_search.refine.concepts import (
    KeptConcept,
    concept_names,
    delete_concept,
    describe_concept,
    find_by_concept,
    make_concept,
    read_concept,
    refine_by_concept,
    write_concept,
)
from for_search.refine.export import COCO_SPLIT, export_answer
from for_search.refine.feedback import feedback_of
from tests.helpers.planted_index import Planted, make_planted


def _searcher(planted: Planted) -> Searcher:
    def load() -> None:
        raise AssertionError("the text is known")

    encoder = LazyMethod(planted.index.info, load)  # type: ignore[arg-type]
    return Searcher(planted.index, encoder, planted.index.path.parent / "images", {"dog": planted.text})


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return make_planted(tmp_path_factory.mktemp("concepts"))


@pytest.fixture(scope="module")
def concept(planted: Planted) -> KeptConcept:
    return make_concept("jumping dog", planted.index, feedback_of(planted.marks(40)), "dog", threshold=0.6)


def test_a_concept_comes_back_as_it_was(tmp_path: Path, planted: Planted, concept: KeptConcept) -> None:
    folder = tmp_path / "concepts"
    assert concept_names(folder) == []
    path = write_concept(folder, concept)
    assert path == folder / "jumping dog.json"
    assert read_concept(folder, "jumping dog") == concept
    assert concept_names(folder) == ["jumping dog"]
    n_right = concept.feedback.n_right
    assert describe_concept(folder, "jumping dog") == f"jumping dog: dog, {n_right} right, {40 - n_right} wrong"
    with pytest.raises(UsageError, match="is there already"):
        write_concept(folder, concept)
    write_concept(folder, concept, replace=True)
    learnt = refine_by_concept(_searcher(planted), read_concept(folder, "jumping dog"))
    direct = refine_index(planted.index, planted.text, concept.feedback)
    np.testing.assert_array_equal(learnt.scores(), direct.scores())
    found = find_by_concept(_searcher(planted), concept, 5)
    assert (found.query, list(found.hits)) == ("concept:jumping dog", direct.best(5))
    delete_concept(folder, "jumping dog")
    for gone in (delete_concept, read_concept):
        with pytest.raises(UsageError, match=r"no concept is called 'jumping dog' in .*, there are: none yet"):
            gone(folder, "jumping dog")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("{", "isn't valid JSON"),
        ({"format": "for-concept/9"}, "format 'for-concept/9', expected 'for-concept/2'"),
        ({"colour": "red"}, r"missing or unknown fields \(colour\)"),
        ({"threshold": 7}, "the threshold is 7"),
        ({"threshold": "high"}, "the threshold is 'high'"),
        ({"refiner": "svm"}, "no refiner is called 'svm'"),
        ({"marks": [{"image": 1, "right": 1}]}, "mark 1 is"),
        ({"marks": [], "text": " "}, "neither a text nor a right image"),
        ({"space": {"backbone": "RN50"}}, "isn't a sound concept"),
        ({"name": "other"}, "its name is 'other'"),
        ({"text": 3}, "must be texts"),
    ],
)
def test_a_concept_edited_by_hand_gets_one_line_and_stays(
    tmp_path: Path, concept: KeptConcept, change: object, line: str
) -> None:
    path = write_concept(tmp_path, concept)
    path.write_text(change if isinstance(change, str) else json.dumps({**concept.to_json(), **change}))
    before = path.read_bytes()
    with pytest.raises(DataError, match=line) as caught:
        read_concept(tmp_path, "jumping dog")
    assert str(path) in str(caught.value)
    assert "\n" not in describe_concept(tmp_path, "jumping dog")
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 65, "a\nb"])
def test_names_that_are_no_files(name: str, planted: Planted) -> None:
    with pytest.raises(UsageError, match="can't be called"):
        make_concept(name, planted.index, feedback_of([]), "dog")


def test_a_concept_of_another_space_is_refused_and_one_of_another_method_is_learnt_again(
    tmp_path: Path, concept: KeptConcept
) -> None:
    other = make_planted(tmp_path / "space", 20, weights_sha256="cd" * 32)
    with pytest.raises(StoreError, match=r"concept 'jumping dog' was made with RN-mini \(abab.*make the concept again"):
        refine_by_concept(_searcher(other), concept)
    method = make_planted(tmp_path / "method", method="for")
    named = [{**mark, **({"embedding": 0} if mark["right"] else {})} for mark in method.marks(40)]
    moved = make_concept("moved", method.index, feedback_of(named), "dog")
    kept = KeptConcept(**{**vars(moved), "method_sha256": "of another"})
    parts = [len(refine_by_concept(_searcher(method), each).examples.right[0]) for each in (moved, kept)]
    assert parts == [1, method.index.info.n_embeddings]


def test_a_whole_answer_as_files(tmp_path: Path, planted: Planted, concept: KeptConcept) -> None:
    searcher = _searcher(planted)
    learnt = refine_by_concept(searcher, concept)
    answer = whole_answer(learnt, concept.threshold)
    ids = [planted.index.images[i].id for i in answer.images]
    right = frozenset(mark.image for mark in concept.feedback.marks if mark.right)
    for form in ("csv", "json", "links", "coco"):
        export_answer(searcher, answer, learnt, "dog", tmp_path / form, form)
    rows = list(csv.DictReader((tmp_path / "csv").read_text().splitlines()))
    assert [int(row["image"]) for row in rows] == ids
    assert {int(row["image"]) for row in rows if row["marked"] == "True"} == right
    found = json.loads((tmp_path / "json").read_text())
    assert [row["image"] for row in found["images"]] == ids
    assert found["precision"] == pytest.approx(answer.precision)
    links = sorted((tmp_path / "links").iterdir())
    assert [link.readlink() for link in links] == [searcher.image_path(planted.index.images[i]) for i in answer.images]
    for form in ("links", "coco"):
        with pytest.raises(UsageError, match="not an empty folder"):
            export_answer(searcher, answer, learnt, "dog", tmp_path / form, form)
    with pytest.raises(UsageError, match="no form of an answer is called 'xml'"):
        export_answer(searcher, answer, learnt, "dog", tmp_path / "xml", "xml")


def test_labels_for_training_are_read_by_the_reader_of_coco(
    tmp_path: Path, planted: Planted, concept: KeptConcept
) -> None:
    searcher = _searcher(planted)
    searcher.image_root.mkdir(exist_ok=True)
    learnt = refine_by_concept(searcher, concept)
    answer = whole_answer(learnt)
    export_answer(searcher, answer, learnt, "dog", tmp_path / "coco", "coco")
    dataset = load_coco(tmp_path / "coco", COCO_SPLIT)
    assert [image.id for image in dataset.images] == [image.id for image in planted.index.images]
    assert [(category.name, category.group) for category in dataset.categories] == [("dog", "base")]
    assert set(dataset.labels) == {planted.index.images[i].id for i in answer.images}
    assert dataset.negatives is not None
    for mark in concept.feedback.marks:
        assert (0 in dataset.labels.get(mark.image, ())) == mark.right
        assert (0 in dataset.negatives[mark.image]) != mark.right
    judged = sum(0 in found for found in dataset.negatives.values()) + len(dataset.labels)
    assert judged < len(dataset.images)  # nothing is said of what may be either
