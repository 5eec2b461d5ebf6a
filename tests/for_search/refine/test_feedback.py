"""Marks: what makes sense, what is refused in a line, and which embeddings they stand for."""

import json
from pathlib import Path

import numpy as np
import pytest

from for_model.errors import DataError, UsageError
from for_search.refine.feedback import MAX_MARKS, Mark, feedback_of, marked_embeddings, read_marks
from tests.helpers.planted_index import Planted, make_planted


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return make_planted(tmp_path_factory.mktemp("feedback"), 30)


def test_marks_are_read() -> None:
    feedback = feedback_of(
        [{"image": 3, "right": True}, {"image": 4, "right": False}, {"image": 3, "right": True, "embedding": 2}]
    )
    assert feedback.marks == (Mark(3, True, 2), Mark(4, False))
    assert (feedback.n_right, feedback.n_wrong) == (1, 1)
    assert feedback_of([mark.to_json() for mark in feedback.marks]) == feedback


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"image": 1}, "marks are dict, expected a list"),
        ([{"image": 1, "right": "yes"}], "mark 1 is .*'yes'.*, expected"),
        ([{"image": 1, "right": True, "score": 1}], "mark 1 is"),
        ([{"image": 1, "right": True, "embedding": -1}], "mark 1 is"),
        ([{"image": True, "right": True}], "mark 1 is"),
        ([{"image": 1, "right": True}, {"image": 1, "right": False}], "image 1 is marked right and wrong"),
        ([{"image": 1, "right": True, "embedding": e} for e in (0, 1)], "with embedding 0 and with 1"),
        ([{"image": 1, "right": True}, {"image": "1", "right": True}], "mix image ids"),
        ([{"image": i, "right": True} for i in range(100_000)], f"100,000 marks, expected at most {MAX_MARKS:,}"),
    ],
)
def test_marks_that_make_no_sense_get_one_line(values: object, line: str) -> None:
    with pytest.raises(UsageError, match=line) as caught:
        feedback_of(values)
    assert "\n" not in str(caught.value)


def test_files_of_marks(tmp_path: Path) -> None:
    marks = [{"image": 3, "right": True}]
    for content in (marks, {"name": "x", "marks": marks}):
        (tmp_path / "marks.json").write_text(json.dumps(content))
        assert read_marks(tmp_path / "marks.json").marks == (Mark(3, True),)
    (tmp_path / "marks.json").write_text("[")
    with pytest.raises(DataError, match="isn't valid JSON"):
        read_marks(tmp_path / "marks.json")
    with pytest.raises(DataError, match=r"none\.json can't be read"):
        read_marks(tmp_path / "none.json")


def test_examples_are_parts_and_say_what_is_gone(planted: Planted) -> None:
    ids = [image.id for image in planted.index.images[:3]]
    feedback = feedback_of(
        [
            {"image": ids[0], "right": True, "embedding": 2},
            {"image": ids[1], "right": True},
            {"image": ids[2], "right": False},
            {"image": 99999, "right": True},
        ]
    )
    examples = marked_embeddings(planted.index, feedback)
    np.testing.assert_array_equal(examples.right[0], planted.index.embeddings(ids[0])[2:3])
    np.testing.assert_array_equal(examples.right[1], planted.index.embeddings(ids[1]))
    np.testing.assert_array_equal(examples.wrong[0], planted.index.embeddings(ids[2]))
    assert examples.gone == (Mark(99999, True),)
    unnamed = marked_embeddings(planted.index, feedback.without_parts())
    assert len(unnamed.right[0]) == planted.index.info.n_embeddings
    gone = marked_embeddings(planted.index, feedback_of([{"image": ids[0], "right": True, "embedding": 77}]))
    assert gone.right == ()
    assert len(gone.gone) == 1
