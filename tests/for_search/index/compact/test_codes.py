"""The codes of the compact engine: what they keep of a row, and in which order they choose rows."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from for_search.index.compact import codes as codes_module
from for_search.index.compact.codes import Codes
from for_search.index.compact.finer_codes import FinerCodes
from for_search.index.compact.large_pages import ask_for_large_pages
from for_search.index.compact.projection import train_projection
from for_search.index.compact.rows_file import RowsFile
from for_search.index.engine_protocol import BuildOptions
from for_search.index.flat_engine import FlatEngine
from tests.helpers.store_making import random_units

N, DIM = 25, 24


@pytest.fixture
def made(tmp_path: Path) -> Codes:
    """Of 40 images, whose rows are alike: many of them score high together."""
    images, own = random_units((40, 1, DIM), seed=1), random_units((40, N, DIM), seed=2)
    values = (images + 0.1 * own).reshape(-1, DIM).astype(np.float16)
    FlatEngine.build([values], len(values), DIM, tmp_path, BuildOptions(N))
    made = Codes.train(RowsFile(tmp_path / FlatEngine.file_names[0], len(values), DIM), None, N)
    made.encode(RowsFile(tmp_path / FlatEngine.file_names[0], len(values), DIM), lambda _: None)
    return made


@pytest.mark.parametrize("dim", [40, 80, 128])
def test_finer_codes_score_what_their_values_score(dim: int) -> None:
    values = (random_units((300, dim), seed=3) * np.linspace(3, 1, dim)).astype(np.float32)
    finer = FinerCodes.train(values, 300)
    finer.encode(0, values[:100])
    finer.encode(100, values[100:])
    lowest, steps = finer.ranges
    levels = np.rint((values - lowest) / steps)
    assert levels[:, :32].max() == 255
    assert levels[:, 32:].max() == 15
    kept = lowest + levels * steps
    assert (np.abs(kept - values) <= steps / 2 + 1e-6).all()
    query, rows = random_units((dim,), seed=4), np.array([0, 7, 150, 299])
    expected = kept[rows] @ query
    found = finer.scores(query, rows)
    np.testing.assert_allclose(found - found[0], expected - expected[0], atol=1e-4)
    assert finer.codes.shape == (300, 32 + (dim - 32) // 2)


def test_rows_beyond_the_sample_get_the_nearest_code() -> None:
    finer = FinerCodes.train(np.stack([np.zeros(40), np.ones(40)]).astype(np.float32), 2)
    finer.encode(0, np.stack([np.full(40, -9.0), np.full(40, 9.0)]).astype(np.float32))
    np.testing.assert_array_equal(finer.codes[0], 0)
    np.testing.assert_array_equal(finer.codes[1], 255)


def test_an_image_gives_its_six_best_rows_before_all_others_follow(made: Codes) -> None:
    query, rows = random_units((DIM,), seed=5), np.arange(40 * N)[::2]
    order = made.by_finer_codes(query, rows)
    assert sorted(order.tolist()) == rows.tolist()
    first, last = order[: 6 * 40], order[6 * 40 :]
    assert set(np.bincount(first // N)) == {6}
    scores = dict(zip(rows.tolist(), made._finer.scores(query @ made._projection.of_queries, rows), strict=True))
    for image in range(40):
        assert min(scores[r] for r in first[first // N == image]) >= max(scores[r] for r in last[last // N == image])
    for part in (first, last):
        assert [scores[row] for row in part] == sorted((scores[row] for row in part), reverse=True)


@pytest.mark.parametrize("n_rows", [1, 20, 150, 240, 300, 490])
def test_what_is_best_is_the_beginning_of_that_order(made: Codes, n_rows: int) -> None:
    """However many rows are looked at first."""
    for query in random_units((5, DIM), seed=6):
        found = made.best(query[None], 40 * N, n_rows)
        assert found is not None
        chosen = np.arange(40 * N)
        assert found[0].tolist() == sorted(made.by_finer_codes(query, chosen)[:n_rows].tolist())


def test_what_is_written_is_read_again(made: Codes, tmp_path: Path) -> None:
    made.write(tmp_path)
    again = Codes.read(tmp_path, made.n_rows, DIM, N)
    assert isinstance(again, Codes)
    queries = random_units((3, DIM), seed=7)
    np.testing.assert_array_equal(made.best(queries, 200, 50), again.best(queries, 200, 50))
    for name in Codes.file_names:
        content = (tmp_path / name).read_bytes()
        for damage in (b"", content[: len(content) // 2]):
            (tmp_path / name).write_bytes(damage)
            assert Codes.read(tmp_path, made.n_rows, DIM, N) == tmp_path / name
        (tmp_path / name).write_bytes(content)
    assert Codes.read(tmp_path, made.n_rows + 1, DIM, N) == tmp_path / "codes.faiss"


@pytest.mark.parametrize(("dim", "width"), [(16, 40), (41, 80), (120, 120), (125, 128), (300, 128)])
def test_a_projection_is_filled_up_to_a_width_of_the_codes(dim: int, width: int) -> None:
    values: NDArray[np.float32] = random_units((400, dim), seed=8)
    made = train_projection(values, None, codes_module._WIDTHS)
    assert made.of_rows.shape == made.of_queries.shape == (dim, width)
    if dim <= 128:  # nothing is left out
        np.testing.assert_allclose(
            (values @ made.of_rows) @ (values[0] @ made.of_queries), values @ values[0], atol=1e-5
        )


def test_large_pages_leave_memory_as_it_is() -> None:
    values = np.arange(1 << 22, dtype=np.int64)
    ask_for_large_pages(values.ctypes.data, values.nbytes)
    ask_for_large_pages(values.ctypes.data + 8, 100)
    np.testing.assert_array_equal(values, np.arange(1 << 22))
