"""Groups of rows that are alike: what they are made of, in which order rows are kept, and their means."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from for_search.index.compact.groups import Groups

N, DIM, ALIKE = 12, 6, 0.5


def scenes(count: int, seed: int = 0) -> NDArray[np.float32]:
    """Rows of images of some things each, [count * N, DIM], the first dimension of zeros."""
    rng = np.random.default_rng(seed)
    things = rng.standard_normal((count, 4, DIM))[np.arange(count)[:, None], rng.integers(0, 4, (count, N))]
    rows = (things + 0.05 * rng.standard_normal((count, N, DIM))).reshape(-1, DIM).astype(np.float32)
    rows[:, 0] = 0
    return rows


@pytest.fixture
def rows() -> NDArray[np.float32]:
    return scenes(30)


def members(groups: Groups) -> list[list[int]]:
    return [groups.rows_at(groups.places_of(np.array([group]))[0]).tolist() for group in range(len(groups))]


def test_every_row_is_in_one_group_with_rows_of_its_image_that_are_alike(rows: NDArray[np.float32]) -> None:
    groups, _, _ = Groups.none_yet(N).with_more(rows, ALIKE)
    its_rows = members(groups)
    assert sorted(itertools.chain(*its_rows)) == list(range(len(rows)))
    assert 30 < len(groups) <= 4 * 30
    for group in its_rows:
        assert len({row // N for row in group}) == 1
        apart = ((rows[group][:, None] - rows[group][None]) ** 2).sum(axis=2)
        assert apart.max(axis=1).min() <= ALIKE + 1e-5  # all are near one of them
    for image in range(30):
        of_image = [group for group in its_rows if group[0] // N == image]
        centres = [min(group, key=lambda r: ((rows[group] - rows[r]) ** 2).sum(axis=1).max()) for group in of_image]
        apart = ((rows[centres][:, None] - rows[centres][None]) ** 2).sum(axis=2)
        assert (apart + 9 * np.eye(len(centres)) > ALIKE / 2).all()  # and not near those of another group


def test_where_nothing_is_alike_every_row_is_a_group(rows: NDArray[np.float32]) -> None:
    for alike in (0.0, 1e-9):
        groups, in_order, means = Groups.none_yet(N).with_more(rows, alike)
        assert len(groups) == len(rows)
        np.testing.assert_allclose(means, in_order, atol=1e-6)
    np.testing.assert_array_equal(Groups.none_yet(N).with_more(rows, 0.0)[1], rows)


def test_equal_rows_are_one_group() -> None:
    far = np.full((3 * N, DIM), 1000.0, np.float32)
    assert len(Groups.none_yet(N).with_more(far, ALIKE)[0]) == 3


def test_means_have_the_reach_of_their_group(rows: NDArray[np.float32]) -> None:
    groups, in_order, means = Groups.none_yet(N).with_more(rows, ALIKE)
    np.testing.assert_array_equal(in_order, rows[groups.rows_at(np.arange(len(rows)))])
    for group, its_rows in enumerate(members(groups)):
        mean = rows[its_rows].mean(axis=0)
        np.testing.assert_allclose(means[group, 1:], mean[1:], atol=1e-6)
        squares = ((rows[its_rows] - mean) ** 2).sum(axis=1).mean()
        assert means[group, 0] == pytest.approx(np.sqrt(2 * np.log(len(its_rows)) * squares), abs=1e-6)


def test_groups_of_more_rows_follow_those_that_are_there(rows: NDArray[np.float32]) -> None:
    at_once, all_in_order, all_means = Groups.none_yet(N).with_more(rows, ALIKE)
    first, *of_first = Groups.none_yet(N).with_more(rows[: 10 * N], ALIKE)
    both, *of_second = first.with_more(rows[10 * N :], ALIKE)
    np.testing.assert_array_equal(both.order, at_once.order)
    np.testing.assert_array_equal(both.starts, at_once.starts)
    for parts, expected in zip(zip(of_first, of_second, strict=True), (all_in_order, all_means), strict=True):
        np.testing.assert_allclose(np.concatenate(parts), expected, atol=1e-6)
    of_later = both.for_rows(all_means[len(first) :], len(first))
    np.testing.assert_array_equal(of_later, both.for_rows(all_means)[10 * N :])


def test_rows_places_and_groups_belong_together(rows: NDArray[np.float32]) -> None:
    groups, _, means = Groups.none_yet(N).with_more(rows, ALIKE)
    its_rows = members(groups)
    chosen = np.array([1, 4, 5, len(groups) - 1])
    places, begins = groups.places_of(chosen)
    assert groups.rows_at(places).tolist() == [*itertools.chain(*(its_rows[group] for group in chosen))]
    assert begins.tolist() == np.cumsum([0, *(len(its_rows[group]) for group in chosen[:-1])]).tolist()
    assert places[np.argsort(places)].tolist() == places.tolist()
    for group, of_group in enumerate(its_rows):
        assert set(groups.group_of(np.array(of_group)).tolist()) == {group}
    assert len(groups.places_of(np.empty(0, np.int64))[0]) == 0
    np.testing.assert_array_equal(groups.for_rows(means), means[groups.group_of(groups.rows_at(np.arange(len(rows))))])


def test_what_is_written_is_read_again_and_nothing_else(rows: NDArray[np.float32], tmp_path: Path) -> None:
    groups, _, _ = Groups.none_yet(N).with_more(rows, ALIKE)
    path = tmp_path / "groups.npy"
    groups.write(path)
    again = Groups.read(path, len(groups), N)
    assert again is not None
    np.testing.assert_array_equal(again.order, groups.order)
    np.testing.assert_array_equal(again.starts, groups.starts)
    of_first = int(np.flatnonzero(groups.starts == 10 * N)[0])
    fewer = Groups.read(path, of_first, N)
    assert fewer is not None
    assert (len(fewer), fewer.n_rows) == (of_first, 10 * N)
    assert Groups.read(path, of_first + 1, N) is None  # its image has other groups
    assert Groups.read(path, len(groups) + 1, N) is None
    assert Groups.read(path, len(groups), N + 1) is None
    both = np.load(path)
    beyond, no_first = both.copy(), both.copy()
    beyond[0, 3], no_first[1, 0] = N, 0
    for damaged in (both.astype(np.int64), both[:1], both[:, :-1], beyond, no_first):
        np.save(path, damaged)
        assert Groups.read(path, len(groups), N) is None
    path.unlink()
    assert Groups.read(path, len(groups), N) is None


@pytest.mark.parametrize(("n_embeddings", "dtype"), [(1, np.uint8), (256, np.uint8), (257, np.uint16)])
def test_orders_are_as_wide_as_an_image_needs(n_embeddings: int, dtype: type) -> None:
    assert Groups.none_yet(n_embeddings).order.dtype == dtype
