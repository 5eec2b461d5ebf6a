"""What a segment answers, for every engine of the registry: to the bit what it answers over the flat engine, which
`test_engines.py` checks against sums that numpy does.

Engines that aren't always complete are asked for `exact`; small limits have those that treat few images otherwise do
what they do for many.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from for_search.index.engine_protocol import BuildOptions, Engine
from for_search.index.engines import ENGINES
from for_search.index.flat_engine import FlatEngine
from for_search.index.segment import Best, Segment
from tests.helpers.row_engines import ROW_ENGINES, row_engine
from tests.helpers.store_making import dyadic_units, random_units

N, DIM = 3, 16
SERVERS = ("memory", "folder", "core", "core, quantised")
Make = Callable[[NDArray[np.floating], NDArray[np.int64]], Segment]

pytestmark = pytest.mark.filterwarnings("ignore:Local mode performs exact")


def segment_of(engine: type[Engine], images: NDArray[np.floating], ranks: NDArray[np.int64], folder: Path) -> Segment:
    """A segment of images [S, N, Co], whose rows come in blocks that cut through images."""
    rows = images.astype(np.float16).reshape(-1, images.shape[2])
    folder.mkdir()
    quantised = True if "quantised" in folder.name else None
    options = BuildOptions(N, url="http://qdrant.example" if engine.on_server else None, quantised=quantised)
    engine.build(iter(np.split(rows, [1, 1, len(rows) // 2 + 1])), len(rows), rows.shape[1], folder, options)
    return Segment(engine.open(folder, len(rows), rows.shape[1]), N, ranks)


@pytest.fixture(
    params=[
        *ROW_ENGINES,
        *(pytest.param(f"qdrant, {server}", marks=pytest.mark.cluster) for server in SERVERS),
    ]
)
def make(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes a segment by one of the engines."""
    kind, _, server = request.param.partition(", ")
    if kind == "qdrant":
        pytest.importorskip("qdrant_client", reason="qdrant-client is not installed: make install-cluster")
        from for_search.index.qdrant import graph_recall, qdrant_engine
        from tests.helpers.qdrant_servers import client_of, use_client

        use_client(client_of(server.split(",")[0], tmp_path), monkeypatch)
        monkeypatch.setattr(qdrant_engine, "_MOST_IDS", 20)
        monkeypatch.setattr(qdrant_engine, "_MOST_FETCHED", 60)
        monkeypatch.setattr(qdrant_engine, "_MARGIN", 0)
        monkeypatch.setattr(graph_recall, "_N_QUERIES", 4)
    engine = ENGINES["qdrant"] if kind == "qdrant" else row_engine(request.param, monkeypatch)
    return lambda images, ranks: segment_of(engine, images, ranks, tmp_path / request.param)


def check(found: Segment, images: NDArray[np.floating], tmp_path: Path, queries: NDArray[np.float32]) -> None:
    """That a segment answers as one over the flat engine does, for several k, filters and queries."""
    expected = segment_of(FlatEngine, images, found.ranks, tmp_path / "expected")
    there = np.flatnonzero(found.ranks >= 0)
    filters = [None, np.zeros(len(images), bool)]
    filters += [np.random.default_rng(5).random(len(images)) < share for share in (0.05, 0.4, 0.9)]
    everything = len(images) + 2
    for k, allowed in ((1, None), (everything, None), (everything, filters[-1]), *((4, each) for each in filters)):
        for one, other in zip(
            found.best(queries, k, allowed, exact=True), expected.best(queries, k, allowed), strict=True
        ):
            same_best(one, other)
    scores, ranks = found.score(queries, 5, 30)
    its_scores, its_ranks = expected.score(queries, 5, 30)
    assert (ranks == its_ranks).all()
    np.testing.assert_allclose(scores, its_scores, atol=1e-3 * np.linalg.norm(queries, axis=1).max())
    np.testing.assert_array_equal(found.block(0, len(images))[0], images[there].astype(np.float16))
    np.testing.assert_array_equal(found.take(there[[4, 1, 4]]), images[there[[4, 1, 4]]].astype(np.float16))


def same_best(one: Best, other: Best) -> None:
    assert one.ranks.tolist() == other.ranks.tolist()
    assert one.scores.tolist() == other.scores.tolist()
    assert one.embeddings.tolist() == other.embeddings.tolist()


def test_answers_as_the_scan_does(make: Make, tmp_path: Path) -> None:
    images = random_units((150, N, DIM), seed=1)
    ranks = np.random.default_rng(2).permutation(150)
    check(make(images, ranks), images, tmp_path, 3 * random_units((3, DIM), seed=3))


def test_ties_are_complete_and_in_order_of_rank(make: Make, tmp_path: Path) -> None:
    images = dyadic_units((150, N, 12), seed=1)
    images[[3, 70, 90]] = images[12]  # equal in all
    ranks = np.random.default_rng(2).permutation(150)
    check(make(images, ranks), images, tmp_path, dyadic_units((3, 12), seed=3))


def test_images_that_are_gone_are_not_found(make: Make, tmp_path: Path) -> None:
    images = random_units((150, N, DIM), seed=4)
    ranks = np.random.default_rng(2).permutation(150)
    ranks[ranks >= 110] = -1
    check(make(images, ranks), images, tmp_path, random_units((3, DIM), seed=6))


def test_queries_of_no_length_and_of_any(make: Make, tmp_path: Path) -> None:
    images = random_units((40, N, DIM), seed=7)
    queries = random_units((3, DIM), seed=8) * np.array([[0], [1e-6], [1e6]], np.float32)
    check(make(images, np.arange(40)), images, tmp_path, queries)


def test_near_ties_are_in_exact_order(make: Make, tmp_path: Path) -> None:
    """Images whose scores differ by less than a query changes them that is rounded to float16."""
    query = random_units((1, DIM), seed=1)
    images = random_units((150, N, DIM), seed=9)
    images = 0.5 * query + 0.8 * (images - (images @ query.T) * query)
    check(make(images, np.arange(150)), images, tmp_path, query)
