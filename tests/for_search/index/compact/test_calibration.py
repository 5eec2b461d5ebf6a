"""What the build of a compact index finds out about its rows: which groups help, and which rows count as good."""

import numpy as np
import pytest
from numpy.typing import NDArray

from for_search.index.compact import calibration
from for_search.index.compact.calibration import alike_to_take
from for_search.index.compact.codes import Codes
from for_search.index.compact.rows_file import RowsInMemory
from for_search.index.engine_protocol import BuildOptions
from tests.helpers.store_making import random_units

N, DIM = 20, 32


def taken(embeddings: NDArray[np.floating], monkeypatch: pytest.MonkeyPatch) -> float:
    """What is taken for embeddings [M, N, Co], tried with a third of the images."""
    monkeypatch.setattr(calibration, "_TRY_ABOVE", 0)
    monkeypatch.setattr(calibration, "_TRIED_ROWS", embeddings.size // embeddings.shape[2] // 3)
    rows = RowsInMemory(embeddings.reshape(-1, embeddings.shape[2]).astype(np.float16))
    return alike_to_take(rows, None, 40, BuildOptions(embeddings.shape[1]))


def test_rows_are_in_groups_where_those_of_an_image_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = random_units((900, 2, DIM), seed=1)[:, np.arange(N) % 2]  # two things to see in each
    assert taken(shown + 0.01 * random_units((900, N, DIM), seed=2), monkeypatch) > 0


def test_and_each_is_a_group_where_they_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    assert taken(random_units((900, N, DIM), seed=3), monkeypatch) == 0


def test_nothing_is_tried_with_one_row_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Codes, "train", None)
    assert taken(random_units((900, 1, DIM), seed=4), monkeypatch) == 0


def test_nor_with_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Codes, "train", None)
    few = RowsInMemory(random_units((3000, DIM), seed=5).astype(np.float16))
    assert alike_to_take(few, None, 40, BuildOptions(N)) == 0


@pytest.mark.parametrize("at_once", [4, 1000])
def test_rows_of_an_image_that_are_as_good_as_its_best_are_true_too(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "_BLOCK_ROWS", at_once)
    query = np.eye(3, dtype=np.float32)[0]
    scores = [[0.5, 0.9, 0.89, 0.1], [0.2, 0.3, 0.8, 0.95], [0.0, 0.0, 0.0, 0.7]]
    rows = RowsInMemory(np.pad(np.reshape(scores, (-1, 1)), ((0, 0), (0, 2))).astype(np.float16))
    found = calibration._as_good(rows, query, np.array([7, 1]), 0.85, 4)
    assert found.tolist() == [[1, 1, 2, 1], [7, 7, 7, 7]]
