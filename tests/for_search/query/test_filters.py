"""Searching among the images that meet a condition, against brute force over these images alone."""

from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from for_model.errors import UsageError
from for_search.index import flat_engine
from for_search.index.index_files import build_index, open_index
from for_search.query.searcher import Query, Searcher, load_searcher
from tests.for_search.query.test_searcher import WIDTH, ByName
from tests.helpers.row_engines import ROW_ENGINES, row_engine
from tests.helpers.store_making import dyadic_units, make_store, method_info

Condition = tuple[str, Callable[[int], bool]]  # in SQL, and in Python of an image's id

_LEAVES = st.one_of(
    st.integers(8, 60).map(lambda n: (f"id >= {n}", lambda i: i >= n)),
    st.integers(8, 60).map(lambda n: (f"{n} > id", lambda i: n > i)),
    st.integers(2, 7).map(lambda n: (f"id % {n} = 1", lambda i: i % n == 1)),
    st.integers(8, 60).map(lambda n: (f"path like 'sub/{n}%'", lambda i: f"{i}".startswith(f"{n}"))),
    st.lists(st.integers(8, 60)).map(lambda some: (f"id in ({', '.join(map(str, some))})", lambda i: i in some)),
    st.sampled_from([("size is null", lambda i: True), ("size > 3", lambda i: False)]),
)


def _combined(parts: st.SearchStrategy[Condition]) -> st.SearchStrategy[Condition]:
    return st.one_of(
        st.tuples(parts, parts).map(lambda p: (f"({p[0][0]}) and {p[1][0]}", lambda i: p[0][1](i) and p[1][1](i))),
        st.tuples(parts, parts).map(lambda p: (f"({p[0][0]} or {p[1][0]})", lambda i: p[0][1](i) or p[1][1](i))),
        # What isn't known is neither so nor not so in SQL, hence the coalesce.
        parts.map(lambda p: (f"not coalesce({p[0]}, 0)", lambda i: not p[1](i))),
    )


CONDITIONS = st.recursive(_LEAVES, _combined, max_leaves=4)


SHAPES = ((1, 1), (3, 4), (16, 1), (40, 3))  # images, embeddings each


@pytest.fixture(scope="module")
def searchers(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], tuple[Searcher, np.ndarray]]:
    """By shape, an index of several shards and the embeddings in it; cosines are multiples of 1/4, with many ties."""
    made = {}
    for seed, shape in enumerate(SHAPES):
        folder, embeddings = tmp_path_factory.mktemp("index"), dyadic_units((*shape, WIDTH), seed)
        make_store(folder / "store", embeddings, shard_size=5)
        build_index(folder / "store", folder / "index")
        method = ByName(embeddings, method_info(shape[1], WIDTH))
        made[shape] = (load_searcher(folder / "index", method=method), embeddings)
    return made


@settings(max_examples=100, deadline=None)
@given(
    CONDITIONS,
    st.sampled_from(SHAPES),
    st.integers(1, 45),
    st.integers(1, 3),
    st.integers(0, 2**32 - 1),
)
def test_is_brute_force_among_those_that_meet_it(
    searchers: dict[tuple[int, int], tuple[Searcher, np.ndarray]],
    condition: Condition,
    shape: tuple[int, int],
    k: int,
    n_queries: int,
    seed: int,
) -> None:
    """However few images meet it, k are found when there are k; of one text, and of an image's several embeddings."""
    searcher, embeddings = searchers[shape]
    query = dyadic_units((n_queries, WIDTH), seed)
    sql, meets = condition
    with patch.object(flat_engine, "_FIRST_FETCH", 2):  # so that it grows
        hits = searcher.find(Query("", query, 0.0), k, searcher.index.where(sql)).hits
    cosines = np.einsum("mnd,qd->mnq", embeddings.astype(np.float64), query.astype(np.float64))
    scores = cosines.max(axis=1).mean(axis=1).astype(np.float32)  # [M]
    expected = sorted((-scores[i], 10 + 3 * i) for i in range(shape[0]) if meets(10 + 3 * i))[:k]
    assert [(-hit.score, hit.image.id) for hit in hits] == expected


@pytest.mark.parametrize("engine", ROW_ENGINES)
def test_one_image_of_many_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    """The two worst images of all, among 499 that aren't asked for; `index/qdrant` asks a server for as much."""
    kind = row_engine(engine, monkeypatch).kind
    monkeypatch.setattr(flat_engine, "_FIRST_FETCH", 2)
    embeddings = dyadic_units((501, 3, 16), 0)
    embeddings[[100, 333]] = -embeddings[0, :1]
    make_store(tmp_path / "store", embeddings, shard_size=100)
    build_index(tmp_path / "store", tmp_path / "index", kind)
    index = open_index(tmp_path / "index")
    (hits,) = index.search(embeddings[0, :1], 10, index.where(f"id in ({10 + 3 * 333}, {10 + 3 * 100})"))
    assert [(hit.image.id, hit.score) for hit in hits] == [(10 + 3 * 100, -1), (10 + 3 * 333, -1)]


def test_no_condition_and_wrong_ones(tmp_path: Path) -> None:
    make_store(tmp_path / "store", dyadic_units((3, 1, 4), 0))
    index = build_index(tmp_path / "store", tmp_path / "index")
    assert index.where("") is index.where("  ") is None
    with pytest.raises(UsageError, match=r"no such column: colour.*expected a condition over id, path"):
        index.where("colour = 1")
