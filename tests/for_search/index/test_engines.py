"""What the index relies on (see `RowEngine`), checked for every engine of the registry that finds rows, against sums
that numpy does. `test_segments.py` checks what is made of it, and the engines that find images.

The compact engine scans what is small, so it is there a second time with small limits: with codes, approximate. The GPU
engine is there twice: on a GPU, where there is one, and with the processor in its place.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from for_model.errors import StoreError
from for_search.index.compact import codes, compact_engine
from for_search.index.compact.codes import Codes
from for_search.index.compact.compact_engine import CompactEngine
from for_search.index.engine_protocol import BuildOptions
from for_search.index.engine_protocol import RowEngine as Engine
from for_search.index.engines import ENGINES
from for_search.index.flat_engine import FlatEngine
from for_search.index.index_files import build_index
from tests.helpers.row_engines import ROW_ENGINES, row_engine
from tests.helpers.store_making import dyadic_units, make_store, random_units

DIM = 24


@pytest.fixture(params=ROW_ENGINES)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[Engine]:
    return row_engine(request.param, monkeypatch)


def half(values: NDArray[np.floating]) -> NDArray[np.float16]:
    return values.astype(np.float16)


def built(engine: type[Engine], rows: NDArray[np.float16], folder: Path, options: BuildOptions | None = None) -> Engine:
    """An engine of these rows, which come in blocks of several sizes, one of them empty."""
    folder.mkdir(parents=True)
    blocks = iter(np.split(rows, [1, 1, max(1, len(rows) // 2)]))
    engine.build(blocks, len(rows), rows.shape[1], folder, options or BuildOptions())
    return engine.open(folder, len(rows), rows.shape[1])


def check_best(
    rows: NDArray[np.float16],
    query: NDArray[np.float32],
    scores: NDArray[np.float32],
    found: NDArray[np.int64],
    complete: bool = True,
) -> None:
    """That these are rows for a query with exact scores, descending, and, if complete, nothing better left out."""
    expected = rows.astype(np.float64) @ query.astype(np.float64)
    tolerance = 1e-6 * float(np.linalg.norm(query)) * float(np.linalg.norm(rows.astype(np.float64), axis=1).max())
    assert (scores.dtype, found.dtype) == (np.float32, np.int64)
    assert len(set(found.tolist())) == len(found)
    assert found.min() >= 0
    np.testing.assert_allclose(scores, expected[found], atol=tolerance, rtol=0)
    assert (np.diff(scores) <= 0).all()
    left_out = np.delete(expected, found)
    assert not complete or not len(left_out) or left_out.max() <= scores[-1] + tolerance


def test_a_machine_without_a_gpu_gets_one_line_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    make_store(tmp_path / "store", random_units((10, 3, DIM)))
    with pytest.raises(
        StoreError, match="this machine has none: index the store with --engine flat or compact"
    ) as caught:
        build_index(tmp_path / "store", tmp_path / "index", "gpu")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "index").exists()


def test_is_found_under_its_own_kind() -> None:
    assert all(kind == engine.kind for kind, engine in ENGINES.items())


@pytest.mark.parametrize("n_rows", [1, 2, 50, 299, 300])
def test_gives_the_best_rows_with_exact_scores(engine: type[Engine], n_rows: int, tmp_path: Path) -> None:
    rows = half(3 * random_units((300, DIM), seed=1))
    queries = 2 * random_units((7, DIM), seed=2)
    opened = built(engine, rows, tmp_path / "index")
    scores, found = opened.search_rows(queries, n_rows)
    assert scores.shape == found.shape == (7, n_rows)
    for query, its_scores, its_rows in zip(queries, scores, found, strict=True):
        check_best(rows, query, its_scores, its_rows, complete=opened.recall is None or n_rows == len(rows))


def test_a_single_row(engine: type[Engine], tmp_path: Path) -> None:
    rows = half(random_units((1, DIM)))
    scores, found = built(engine, rows, tmp_path / "index").search_rows(random_units((1, DIM), seed=1), 1)
    assert found.tolist() == [[0]]
    check_best(rows, random_units((1, DIM), seed=1)[0], scores[0], found[0])


def test_equal_rows_have_equal_scores_wherever_they_lie_and_however_many_ask(
    engine: type[Engine], tmp_path: Path
) -> None:
    different = half(random_units((40, DIM), seed=3))
    which = np.random.default_rng(4).integers(0, len(different), 1000)
    opened = built(engine, different[which], tmp_path / "index")
    queries = random_units((70, DIM), seed=5)
    by_batch = []
    for size in (1, 3, 70):
        of_rows = np.empty((70, 1000), dtype=np.float32)
        for start in range(0, 70, size):
            scores, found = opened.search_rows(queries[start : start + size], 1000)
            for number, (its_scores, its_rows) in enumerate(zip(scores, found, strict=True), start=start):
                of_rows[number, its_rows] = its_scores
        by_batch.append(of_rows)
        for row in range(len(different)):
            assert len(np.unique(of_rows[:, which == row], axis=1).T) <= 1, "equal rows, other scores"
    assert (by_batch[0] == by_batch[1]).all()
    assert (by_batch[0] == by_batch[2]).all()


def test_ties_are_complete_once_enough_rows_are_asked_for(engine: type[Engine], tmp_path: Path) -> None:
    rows = half(dyadic_units((500, 12)))
    opened = built(engine, rows, tmp_path / "index")
    for query in dyadic_units((6, 12), seed=1):
        exact = rows.astype(np.float64) @ query.astype(np.float64)
        for level in np.unique(exact)[-3:]:  # multiples of 1/4, which every order of summation gives exactly
            wanted = np.flatnonzero(exact >= level)
            scores, found = opened.search_rows(query[None], len(wanted), exact=True)
            assert sorted(found[0].tolist()) == wanted.tolist()
            assert scores[0].tolist() == exact[found[0]].tolist()


@pytest.mark.parametrize("n_rows", [1, 40, 300])
def test_exact_gives_what_the_scan_gives_to_the_bit(engine: type[Engine], n_rows: int, tmp_path: Path) -> None:
    rows, queries = half(random_units((300, DIM), seed=13)), random_units((5, DIM), seed=14)
    expected = built(FlatEngine, rows, tmp_path / "flat").search_rows(queries, n_rows)
    opened = built(engine, rows, tmp_path / "index")
    for one, other in zip(opened.search_rows(queries, n_rows, exact=True), expected, strict=True):
        assert (one == other).all()
    by_row = [dict(zip(*found, strict=True)) for found in zip(expected[1].tolist(), expected[0].tolist(), strict=True)]
    scores, found = opened.search_rows(queries, n_rows)
    for its_scores, its_rows, scanned in zip(scores.tolist(), found.tolist(), by_row, strict=True):
        for score, row in zip(its_scores, its_rows, strict=True):
            assert scanned.get(row, score) == score


def test_near_ties_are_in_exact_order(engine: type[Engine], tmp_path: Path) -> None:
    """Rows whose scores differ by less than a query changes them that is rounded to float16."""
    query = random_units((1, DIM), seed=1)
    rows = random_units((300, DIM), seed=9)
    rows = half(0.5 * query + 0.8 * (rows - (rows @ query.T) * query))
    expected = built(FlatEngine, rows, tmp_path / "flat").search_rows(query, 5)
    for one, other in zip(
        built(engine, rows, tmp_path / "index").search_rows(query, 5, exact=True), expected, strict=True
    ):
        assert (one == other).all()


@pytest.mark.parametrize("share", [0.0, 0.004, 0.04, 0.5, 1.0])
@pytest.mark.parametrize("exact", [False, True])
def test_only_allowed_rows_are_found(engine: type[Engine], share: float, exact: bool, tmp_path: Path) -> None:
    rows, queries = half(random_units((500, DIM), seed=15)), random_units((4, DIM), seed=16)
    allowed = np.random.default_rng(17).random(500) < share
    allowed[7] |= share > 0
    count = int(allowed.sum())
    opened = built(engine, rows, tmp_path / "index")
    for n_rows in {1, max(1, count // 5), max(1, count), min(500, count + 3)}:
        scores, found = opened.search_rows(queries, n_rows, allowed, exact)
        assert scores.shape == found.shape == (4, n_rows)
        assert (found[:, min(n_rows, count) :] == -1).all()
        for query, its_scores, its_rows in zip(queries, scores, found, strict=True):
            ending = min(n_rows, count)
            if ending:
                places = np.cumsum(allowed)[its_rows[:ending]] - 1
                assert allowed[its_rows[:ending]].all()
                complete = exact or opened.recall is None or count <= 500 // 16 or n_rows >= count
                check_best(rows[allowed], query, its_scores[:ending], places, complete)


def test_an_approximate_engine_finds_what_it_says(
    engine: type[Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4,000 rows in 60 heaps, 5 an image."""
    monkeypatch.setattr(compact_engine, "_SCAN_ABOVE", 4)
    rng = np.random.default_rng(18)
    rows = rng.standard_normal((60, 32))[rng.integers(0, 60, 4000)] + 0.5 * rng.standard_normal((4000, 32))
    rows = half(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    opened = built(engine, rows, tmp_path / "index", BuildOptions(5, 0.95))
    if opened.recall is None:
        assert opened.first_fetch(50) >= 50
        return
    assert (opened.recall.asked, opened.recall.k) == (0.95, 50)
    assert 0.93 < opened.recall.mean <= 1  # measured with other queries than it was reached with
    queries = rows[::200].astype(np.float32) + 0.3 * random_units((20, 32), seed=19)
    fetch = opened.first_fetch(50)
    assert fetch <= 1000
    shares = []
    for query, rows_found in zip(queries, opened.search_rows(queries, fetch)[1], strict=True):
        exact = (rows.astype(np.float64) @ query).reshape(-1, 5).max(axis=1)
        shares.append(len(set(np.argsort(-exact)[:50]) & set((rows_found // 5).tolist())) / 50)
    assert np.mean(shares) > 0.9
    assert opened.first_fetch(1) == opened.first_fetch(50) < opened.first_fetch(100)


def test_a_build_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = CompactEngine
    monkeypatch.setattr(compact_engine, "MIN_ROWS", 50)
    rows = half(random_units((2000, DIM), seed=20))
    monkeypatch.setattr(codes, "_BLOCK_ROWS", 500)
    built(engine, rows, tmp_path / "whole")
    partial = tmp_path / "partial"
    options = BuildOptions(partial=partial)
    written: list[int] = []
    write = Codes.write

    def write_twice(of: Codes, folder: Path) -> None:
        write(of, folder)
        written.append(of.n_rows)
        if len(written) == 3:  # what was trained, and two checkpoints
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Codes, "write", write_twice)
        (tmp_path / "index").mkdir()
        with pytest.raises(KeyboardInterrupt):
            engine.build(iter([rows]), len(rows), DIM, tmp_path / "index", options)
    assert written == [0, 500, 1000]
    monkeypatch.setattr(Codes, "train", None)  # neither this nor the rows are needed again
    engine.build(iter([]), len(rows), DIM, tmp_path / "index", options)
    assert not partial.exists()
    for name in engine.file_names:
        assert (tmp_path / "index" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_rows_come_back_bit_for_bit(engine: type[Engine], tmp_path: Path) -> None:
    rows = half(random_units((70, DIM), seed=6))
    rows[3] = np.finfo(np.float16).smallest_subnormal
    rows[4] = -np.finfo(np.float16).max
    rows[5] = -0.0
    opened = built(engine, rows, tmp_path / "index")
    for start, count in ((0, 70), (0, 1), (69, 1), (3, 3), (10, 0)):
        given = opened.rows(start, count)
        assert (given.shape, given.dtype) == ((count, DIM), np.float32)
        assert half(given).tobytes() == rows[start : start + count].tobytes()
    opened.rows(0, 70)[:] = 7  # the caller's own
    assert half(opened.rows(0, 70)).tobytes() == rows.tobytes()


def test_opened_again_it_is_the_same_and_so_are_its_files(engine: type[Engine], tmp_path: Path) -> None:
    rows, queries = half(random_units((90, DIM), seed=7)), random_units((4, DIM), seed=8)
    first = built(engine, rows, tmp_path / "a")
    built(engine, rows, tmp_path / "b")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(engine.file_names)
    for name in engine.file_names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    again = engine.open(tmp_path / "a", 90, DIM)
    for one, other in zip(first.search_rows(queries, 20), again.search_rows(queries, 20), strict=True):
        assert (one == other).all()


def test_several_threads_get_what_one_gets(engine: type[Engine], tmp_path: Path) -> None:
    rows = half(random_units((2000, DIM), seed=9))
    opened = built(engine, rows, tmp_path / "index")
    queries = random_units((48, 1, DIM), seed=10)
    expected = [opened.search_rows(query, 30) for query in queries]
    with ThreadPoolExecutor(8) as pool:
        searched = pool.map(lambda query: opened.search_rows(query, 30), queries)
        read = pool.map(lambda start: opened.rows(start, 40), range(0, 2000, 40))
        for (scores, found), (its_scores, its_rows) in zip(searched, expected, strict=True):
            assert (scores == its_scores).all()
            assert (found == its_rows).all()
        assert half(np.concatenate(list(read))).tobytes() == rows.tobytes()


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "noise"])
def test_a_damaged_file_is_one_line(engine: type[Engine], damage: str, tmp_path: Path) -> None:
    rows = half(random_units((60, DIM), seed=11))
    for name in engine.file_names:
        folder = tmp_path / name
        built(engine, rows, folder)
        path = folder / name
        content = path.read_bytes()
        path.unlink()
        if damage != "missing":
            path.write_bytes({"empty": b"", "cut": content[:-5], "noise": b"no index at all"}[damage])
        with pytest.raises(StoreError) as caught:
            engine.open(folder, 60, DIM)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(("n_rows", "dim"), [(59, DIM), (61, DIM), (60, DIM + 1), (60 * 2, DIM // 2)])
def test_files_of_another_size_are_refused(engine: type[Engine], n_rows: int, dim: int, tmp_path: Path) -> None:
    built(engine, half(random_units((60, DIM), seed=12)), tmp_path / "index")
    with pytest.raises(StoreError, match="build the index again"):
        engine.open(tmp_path / "index", n_rows, dim)
