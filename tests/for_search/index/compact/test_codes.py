"""The codes of the compact engine: what they keep of a row, and in which order they choose rows."""

import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from for_search.index.compact import codes as codes_module
from for_search.index.compact.codes import Codes
from for_search.index.compact.finer_codes import FinerCodes
from for_search.index.compact.large_pages import ask_for_large_pages
from for_search.index.compact.projection import train_projection
from for_search.index.compact.rows_file import RowsInMemory
from tests.helpers.store_making import random_units

N, DIM = 25, 24
ALIKE = (0.0, 0.5)


@pytest.fixture
def rows() -> RowsInMemory:
    """Of 40 images, whose rows are alike: many of them score high together."""
    images, own = random_units((40, 1, DIM), seed=1), random_units((40, N, DIM), seed=2)
    return RowsInMemory((images + 0.1 * own).reshape(-1, DIM).astype(np.float16))


def best(codes: Codes, queries: NDArray[np.float32], n_first: int, n_rows: int) -> NDArray[np.int64]:
    found = codes.best(queries, n_first, n_rows)
    assert found is not None
    return found


def coded(rows: RowsInMemory, alike: float) -> Codes:
    made = Codes.train(rows, None, N, alike)
    made.encode(rows, alike, lambda _: None)
    return made


@pytest.mark.parametrize("dim", [40, 80, 128])
def test_finer_codes_score_what_their_values_score(dim: int) -> None:
    values = (random_units((300, dim), seed=3) * np.linspace(3, 1, dim)).astype(np.float32)
    finer = FinerCodes.train(values, 32).resized(300)
    stood_for = np.concatenate([finer.encode(0, values[:100]), finer.encode(100, values[100:])])
    lowest, steps = finer.ranges
    levels = np.rint((values - lowest) / steps)
    assert levels[:, :32].max() == 255
    assert levels[:, 32:].max() == 15
    kept = lowest + levels * steps
    np.testing.assert_allclose(stood_for, kept, atol=1e-5)
    assert (np.abs(kept - values) <= steps / 2 + 1e-6).all()
    query, rows = random_units((dim,), seed=4), np.array([0, 7, 150, 299])
    expected = kept[rows] @ query
    found = finer.scores(query, rows)
    np.testing.assert_allclose(found - found[0], expected - expected[0], atol=1e-4)
    assert finer.codes.shape == (300, 32 + (dim - 32) // 2)


def test_rows_beyond_the_sample_get_the_nearest_code() -> None:
    finer = FinerCodes.train(np.stack([np.zeros(40), np.ones(40)]).astype(np.float32), 32).resized(2)
    finer.encode(0, np.stack([np.full(40, -9.0), np.full(40, 9.0)]).astype(np.float32))
    np.testing.assert_array_equal(finer.codes[0], 0)
    np.testing.assert_array_equal(finer.codes[1], 255)


@pytest.mark.parametrize("alike", ALIKE)
def test_an_image_gives_its_six_best_rows_before_all_others_follow(rows: RowsInMemory, alike: float) -> None:
    made, query = coded(rows, alike), random_units((DIM,), seed=5)
    groups = np.arange(made.n_groups)[::2]
    order = made.by_row_codes(query, groups)
    assert sorted(order.tolist()) == np.flatnonzero(np.isin(made.group_of(np.arange(40 * N)), groups)).tolist()
    places, found = made._scored_rows(made._projection.queries(query[None])[0], groups)
    scores = dict(zip(made._groups.rows_at(places).tolist(), found.tolist(), strict=True))
    of_image = np.bincount(order // N, minlength=40)
    first, last = np.split(order, [int(of_image.clip(max=6).sum())])
    assert np.bincount(first // N, minlength=40).tolist() == of_image.clip(max=6).tolist()
    for image in np.unique(last // N):
        assert min(scores[r] for r in first[first // N == image]) >= max(scores[r] for r in last[last // N == image])
    for part in (first, last):
        assert [scores[row] for row in part] == sorted((scores[row] for row in part), reverse=True)


@pytest.mark.parametrize("alike", ALIKE)
@pytest.mark.parametrize("n_rows", [1, 20, 150, 240, 300, 490])
def test_what_is_best_is_the_beginning_of_that_order(
    rows: RowsInMemory, alike: float, n_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many rows are looked at first."""
    monkeypatch.setattr(codes_module, "_SECOND", 1)  # the rows of all groups are
    made = coded(rows, alike)
    for query in random_units((5, DIM), seed=6):
        found = best(made, query[None], made.n_groups, n_rows)
        expected = made.by_row_codes(query, np.arange(made.n_groups))[:n_rows]
        assert found[0].tolist() == sorted(expected.tolist())


def test_only_rows_of_the_best_groups_are_looked_at(rows: RowsInMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codes_module, "_SECOND", 2)
    made, query = coded(rows, 0.5), random_units((DIM,), seed=6)
    assert 40 <= made.n_groups < 40 * N / 4  # a group or two of an image
    second = made.by_group_codes(query, np.arange(made.n_groups))[: made.n_second(made.n_groups, 1)]
    found = best(made, query[None], made.n_groups, 1)
    assert found[0].tolist() == made.by_row_codes(query, np.sort(second))[:1].tolist()


@pytest.mark.parametrize("alike", ALIKE)
def test_what_is_written_is_read_again(rows: RowsInMemory, alike: float, tmp_path: Path) -> None:
    made = coded(rows, alike)
    made.write(tmp_path)
    again = Codes.read(tmp_path, made.n_rows, DIM, N)
    assert isinstance(again, Codes)
    queries = random_units((3, DIM), seed=7)
    np.testing.assert_array_equal(
        best(made, queries, made.n_groups // 2, 50), best(again, queries, made.n_groups // 2, 50)
    )
    others = []
    for array in (np.float32(0), np.zeros((2, 0), np.float32), np.zeros((2, 3, 4), np.uint8)):
        stream = io.BytesIO()
        for _ in range(2):
            np.save(stream, array)
        others.append(stream.getvalue())
    for name in Codes.file_names:
        content = (tmp_path / name).read_bytes()
        for damage in (b"", content[: len(content) // 2], *others):
            (tmp_path / name).write_bytes(damage)
            assert Codes.read(tmp_path, made.n_rows, DIM, N) == tmp_path / name
        (tmp_path / name).write_bytes(content)
    assert Codes.read(tmp_path, made.n_rows + N, DIM, N) == tmp_path / "groups.npy"
    assert Codes.read(tmp_path, made.n_rows, DIM, N + 1) == tmp_path / "groups.npy"


def test_codes_go_on_where_an_earlier_build_stopped(
    rows: RowsInMemory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it stopped between writing the other files and that of the short codes, which is the last."""
    monkeypatch.setattr(codes_module, "_BLOCK_ROWS", 4 * N)
    whole, older = coded(rows, 0.5), tmp_path / "codes.faiss"
    kept: list[bytes] = []

    class Stopped(Exception):
        pass

    def checkpoint(codes: Codes) -> None:
        codes.write(tmp_path)
        kept.append(older.read_bytes())
        if len(kept) == 3:
            older.write_bytes(kept[1])
            raise Stopped

    made = Codes.train(rows, None, N, 0.5)
    with pytest.raises(Stopped):
        made.encode(rows, 0.5, checkpoint)
    again = Codes.read(tmp_path, None, DIM, N)
    assert isinstance(again, Codes)
    assert 0 < again.n_rows < made.n_rows < rows.n_rows
    again.encode(rows, 0.5, lambda _: None)
    queries = random_units((3, DIM), seed=7)
    np.testing.assert_array_equal(best(again, queries, again.n_groups, 50), best(whole, queries, whole.n_groups, 50))


@pytest.mark.parametrize(("dim", "width"), [(16, 40), (40, 80), (119, 120), (125, 128), (300, 128)])
def test_a_projection_is_filled_up_to_a_width_of_the_codes(dim: int, width: int) -> None:
    values: NDArray[np.float32] = random_units((400, dim), seed=8)
    made = train_projection(values, None, codes_module._WIDTHS)
    assert made.of_rows.shape == made.of_queries.shape == (dim, width)
    coded = made.rows(values)
    assert coded.var(axis=0).sum() == pytest.approx(1, rel=0.01)
    scores = made.queries(values)[:, 1:] @ coded[:, 1:].T
    np.testing.assert_allclose(made.queries(values)[:, 0], scores.std(axis=1), rtol=0.01)  # what reach is multiplied by
    if dim < 128:  # nothing is left out
        np.testing.assert_allclose(scores, values @ values.T, atol=1e-5)


def test_large_pages_leave_memory_as_it_is() -> None:
    values = np.arange(1 << 22, dtype=np.int64)
    ask_for_large_pages(values.ctypes.data, values.nbytes)
    ask_for_large_pages(values.ctypes.data + 8, 100)
    np.testing.assert_array_equal(values, np.arange(1 << 22))
