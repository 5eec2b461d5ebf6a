"""All that a search does on top of an index, on one that a server holds: it answers as on the flat one."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("qdrant_client", reason="qdrant-client is not installed: make install-cluster")

from for_app.views.presentation import about_html
from for_search import api
from for_search.index.index_files import build_index
from for_search.index.qdrant import graph_recall
from for_search.library.library import Library
from for_search.query.searcher import Searcher
from tests.helpers.qdrant_core import CoreClient
from tests.helpers.qdrant_servers import URL, use_client
from tests.helpers.small_world import make_world

pytestmark = pytest.mark.cluster
MARKS = [{"image": 10, "right": True}, {"image": 46, "right": True}, {"image": 13, "right": False}]


@pytest.fixture
def searchers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Searcher]:
    """The same images by three indexes."""
    monkeypatch.setenv("FOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(graph_recall, "_N_QUERIES", 4)
    use_client(CoreClient(tmp_path / "server"), monkeypatch)
    flat = make_world(tmp_path)
    exact = build_index(tmp_path / "store", tmp_path / "exact", "qdrant", url=URL)
    quantised = build_index(tmp_path / "store", tmp_path / "quantised", "qdrant", url=URL, quantised=True)
    return {"flat": flat, "exact": replace(flat, index=exact), "quantised": replace(flat, index=quantised)}


def without_time(answer: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in answer.items() if key != "latency_ms"}


def close(one: Any, other: Any) -> bool:
    """Whether two JSON values are the same, numbers up to the rounding of a query to float16."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(close, one, other))
    return abs(one - other) < 2e-3 if isinstance(one, float) else one == other


def test_answers_are_those_of_the_flat_index(searchers: dict[str, Searcher]) -> None:
    libraries = {}
    for name, searcher in searchers.items():
        libraries[name] = Library()
        libraries[name].add_opened(searcher)
    for ask in (
        lambda library: api.search(library, "dog", 7),
        lambda library: api.search(library, "umbrella", 5, where="id > 100 and folder like 'sub/%'"),
        lambda library: api.refine(library, "dog", MARKS, 5),
        lambda library: api.search_image(library, "10", 5, embedding=0),
    ):
        flat, exact, quantised = (without_time(ask(libraries[name])) for name in ("flat", "exact", "quantised"))
        assert exact == flat
        assert quantised == flat  # at this size it finds all
    for ask in (
        lambda library: api.search(library, "", 5, all_of=["dog", "umbrella"], none_of=["person"]),
        lambda library: api.search_image(library, "10", 5),
        lambda library: api.answer_all(library, "dog", MARKS),
    ):
        flat, exact = (without_time(ask(libraries[name])) for name in ("flat", "exact"))
        assert close(exact, flat), (exact, flat)


def test_the_engine_and_how_complete_it_is_are_told(searchers: dict[str, Searcher]) -> None:
    for name, told in (
        ("flat", "flat, exact, "),
        ("exact", "qdrant, exact, "),
        ("quantised", "qdrant, finds 100% of "),
    ):
        library = Library()
        library.add_opened(searchers[name])
        stats = api.stats(library)
        assert (stats["kind"], stats["on_server"]) == (told.split(",")[0], name != "flat")
        assert (stats["recall"] is None) == (name != "quantised")
        text = re.sub(r"<[^>]+>", " ", about_html(searchers[name].index))
        assert told in text
        assert ("on a server" in text) == (name != "flat")
        assert URL not in text


def test_embeddings_come_by_the_index_s_order(searchers: dict[str, Searcher]) -> None:
    chosen = np.array([3, 0, 77, 3])
    expected = searchers["flat"].index.take(chosen)
    np.testing.assert_array_equal(searchers["exact"].index.take(chosen), expected)
