"""The engine on a server: what it promises beyond `test_segments.py`, how an index on it grows, and what goes wrong."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("qdrant_client", reason="qdrant-client is not installed: make install-cluster")

from for_model.errors import StoreError, UsageError
from for_search.__main__ import main as search
from for_search.index.checked_file import FileHashes
from for_search.index.engine_protocol import BuildOptions
from for_search.index.index import SearchIndex
from for_search.index.index_files import build_index, open_index
from for_search.index.qdrant import collection, connection, graph_recall
from for_search.index.qdrant.qdrant_engine import NOTE, QdrantEngine
from tests.helpers.ports import free_port
from tests.helpers.qdrant_core import CoreClient
from tests.helpers.qdrant_servers import KEY, URL, serve_core, use_client
from tests.helpers.store_making import change_manifest, make_store, random_units, write_state

pytestmark = pytest.mark.cluster
N, DIM = 3, 16


@pytest.fixture
def core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CoreClient:
    """The core of a server, which answers for every address."""
    monkeypatch.delenv(connection.URL_VARIABLE, raising=False)
    monkeypatch.delenv(connection.KEY_VARIABLE, raising=False)
    monkeypatch.setattr(graph_recall, "_N_QUERIES", 8)
    client = CoreClient(tmp_path / "server")
    use_client(client, monkeypatch)
    return client


def build(folder: Path, rows: np.ndarray, **options: Any) -> QdrantEngine:
    folder.mkdir(exist_ok=True)
    rows = rows.astype(np.float16).reshape(-1, rows.shape[-1])
    QdrantEngine.build(
        iter([rows[:5], rows[5:]]), len(rows), rows.shape[1], folder, BuildOptions(N, url=URL, **options)
    )
    return QdrantEngine.open(folder, len(rows), rows.shape[1])


def names(core: CoreClient) -> list[str]:
    return sorted(core._open)


def test_rows_come_back_bit_for_bit(core: CoreClient, tmp_path: Path) -> None:
    rows = random_units((24, DIM), seed=6).astype(np.float16)
    rows[3] = np.finfo(np.float16).smallest_subnormal
    rows[4] = -np.finfo(np.float16).max
    rows[5] = -0.0
    engine = build(tmp_path / "segment", rows)
    for start, count in ((0, 24), (0, 1), (23, 1), (3, 3), (4, 7), (10, 0)):
        given = engine.rows(start, count)
        assert (given.shape, given.dtype) == ((count, DIM), np.float32)
        assert given.astype(np.float16).tobytes() == rows[start : start + count].tobytes()
    engine.rows(0, 24)[:] = 7
    assert engine.rows(0, 24).astype(np.float16).tobytes() == rows.tobytes()


def test_near_ties_that_the_server_orders_otherwise_are_in_exact_order(core: CoreClient, tmp_path: Path) -> None:
    """The server rounds queries to float16; here 200 images differ by less than that changes their scores."""
    query = random_units((1, DIM), seed=1)
    images = random_units((200, N, DIM))
    images = 0.5 * query + 0.8 * (images - (images @ query.T) * query)
    engine = build(tmp_path / "segment", images)
    exact = (images.astype(np.float16).astype(np.float64) @ query[0].astype(np.float64)).max(axis=1)
    found = engine.search_images(query, 5)[0].images[:5]
    assert found.tolist() == np.argsort(-exact)[:5].tolist()
    theirs = engine._collection.best([(query[0], None)], 5, None)[0][1]
    assert theirs.tolist() != found.tolist(), "the server's own order would do: this test shows nothing"


def test_a_quantised_index_says_what_it_finds_and_exact_finds_all(
    core: CoreClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_recall, "_EFS", (2, 4, 400))
    monkeypatch.setattr(collection, "_INDEXED_ABOVE", 1)
    images = random_units((400, N, DIM), seed=2)
    engine = build(tmp_path / "segment", images, quantised=True, recall=0.9)
    assert core.get_collection(names(core)[0]).indexed_vectors_count == 400
    assert engine.recall is not None
    assert (engine.recall.asked, engine.recall.k) == (0.9, 50)
    assert 0.85 < engine.recall.mean <= 1
    assert json.loads((tmp_path / "segment" / NOTE).read_bytes())["ef"] in (2, 4, 400)
    for query in random_units((5, 1, DIM), seed=3):
        exact = (images.astype(np.float16).astype(np.float64) @ query[0].astype(np.float64)).max(axis=1)
        best = np.argsort(-exact)[:20]
        assert engine.search_images(query, 20, exact=True)[0].images[:20].tolist() == best.tolist()
        found = engine.search_images(query, 20)[0]
        assert len(found.images) >= 20
        np.testing.assert_allclose(found.scores, exact[found.images], atol=1e-6)
        allowed = np.zeros(400, bool)
        allowed[best[::4]] = True  # a narrow filter is exact
        assert engine.search_images(query, 20, allowed)[0].images.tolist() == best[::4].tolist()


def grown(tmp_path: Path, **options: Any) -> SearchIndex:
    return build_index(tmp_path / "store", tmp_path / "index", **options)


def ids(index: SearchIndex, k: int = 1000) -> list[Any]:
    return sorted(hit.image.id for hit in index.search(random_units((1, DIM), seed=9), k)[0])


def test_an_index_on_a_server_grows(core: CoreClient, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    parts = {0: random_units((60, N, DIM)), 1: random_units((5, N, DIM), seed=1)}
    rows = {image_id: (0, image_id) for image_id in range(60)}
    write_state(tmp_path / "store", {0: parts[0]}, rows)
    first = grown(tmp_path, kind="qdrant", url=URL)
    (name,) = names(core)
    assert name.startswith("for-index-")

    rows.update({60 + i: (1, i) for i in range(5)})
    del rows[3], rows[7]
    write_state(tmp_path / "store", parts, rows)
    second = grown(tmp_path)  # engine and server are those of before
    assert second.kind == "qdrant"
    assert [segment.engine.kind for segment in second.segments] == ["qdrant", "qdrant"]
    assert len(names(core)) == 2
    assert core.count(name, exact=True).count == 58  # what is gone is gone there too
    assert ids(second) == sorted(rows)
    assert ids(first) == [i for i in range(60) if i not in (3, 7)]  # opened before: what is still there of it
    np.testing.assert_array_equal(second.embeddings(62), parts[1][2].astype(np.float16))
    with pytest.raises(StoreError, match="2 images of the index are not on its server any more: open it again"):
        first.score_images(random_units((1, DIM)))

    third = grown(tmp_path, rebuild=True)
    assert len(names(core)) == 3  # those of before are left for who has them open
    assert ids(second) == ids(third) == sorted(rows)
    grown(tmp_path)
    assert len(names(core)) == 1
    with pytest.raises(StoreError, match=r"no collection 'for-index-.*open the index again"):
        ids(second)
    grown(tmp_path, kind="flat")
    flat = grown(tmp_path)
    assert names(core) == []
    for one, other in zip(flat.search(random_units((4, DIM)), 9), flat.search(random_units((4, DIM)), 9), strict=True):
        assert one == other


def test_a_build_that_was_stopped_goes_on(core: CoreClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = random_units((40, N, DIM))
    make_store(tmp_path / "store", images)
    monkeypatch.setattr(collection, "_NUMBERS_AT_ONCE", 5 * N * DIM)
    sent: list[int] = []
    upsert = core.upsert

    def stop(name: str, points: Any, wait: bool) -> None:
        if len(sent) >= 15:
            raise KeyboardInterrupt
        sent.extend(points.ids)
        upsert(name, points=points, wait=wait)

    monkeypatch.setattr(core, "upsert", stop)
    with pytest.raises(KeyboardInterrupt):
        grown(tmp_path, kind="qdrant", url=URL)
    assert len(sent) < 30
    (name,) = names(core)
    monkeypatch.setattr(
        core, "upsert", lambda name, points, wait: (sent.extend(points.ids), upsert(name, points, wait))
    )
    index = grown(tmp_path, kind="qdrant", url=URL)
    assert sent == list(range(40))  # each once
    assert names(core) == [name]
    assert not list((tmp_path / "index").glob(".segment*"))
    np.testing.assert_array_equal(index.take(range(40)), images.astype(np.float16))


def test_what_a_stopped_build_left_for_other_rows_is_removed(
    core: CoreClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(tmp_path / "store", random_units((40, N, DIM)))
    with monkeypatch.context() as patch:
        patch.setattr(core, "upsert", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            grown(tmp_path, kind="qdrant", url=URL)
    assert len(names(core)) == 1
    make_store(tmp_path / "other", random_units((30, N, DIM)))
    build_index(tmp_path / "other", tmp_path / "index", "qdrant", url=URL)
    assert len(names(core)) == 1
    assert core.count(names(core)[0], exact=True).count == 30


@pytest.fixture
def index(core: CoreClient, tmp_path: Path) -> SearchIndex:
    make_store(tmp_path / "store", random_units((40, N, DIM)))
    return grown(tmp_path, kind="qdrant", url=URL)


def note_of(index: SearchIndex) -> Path:
    return next(index.path.glob(f"segment-*/{NOTE}"))


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "noise", "another format"])
def test_a_damaged_note_is_one_line(core: CoreClient, damage: str, tmp_path: Path) -> None:
    build(tmp_path / "segment", random_units((20, N, DIM)))
    path = tmp_path / "segment" / NOTE
    content = path.read_bytes()
    path.unlink()
    changed = {"empty": b"", "cut": content[:-5], "noise": b"no note"}
    if damage != "missing":
        path.write_bytes({**changed, "another format": content.replace(b"qdrant/1", b"qdrant/9")}[damage])
    with pytest.raises(StoreError, match="build the index again") as caught:
        QdrantEngine.open(tmp_path / "segment", 60, DIM)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(("n_rows", "dim"), [(57, DIM), (63, DIM), (60, DIM + 1), (60 * 2, DIM // 2)])
def test_a_note_of_another_size_is_refused(core: CoreClient, n_rows: int, dim: int, tmp_path: Path) -> None:
    build(tmp_path / "segment", random_units((20, N, DIM)))
    with pytest.raises(StoreError, match="build the index again"):
        QdrantEngine.open(tmp_path / "segment", n_rows, dim)


def test_a_collection_that_is_another_is_told(core: CoreClient, index: SearchIndex, tmp_path: Path) -> None:
    (name,) = names(core)
    engine = index.segments[0].engine
    assert isinstance(engine, QdrantEngine)
    swap = engine._collection.upload
    swap(39, random_units((1, N, DIM), seed=5).astype(np.float16))
    with pytest.raises(StoreError, match="damaged or of another index, image 39 is another: build the index again"):
        open_index(index.path)
    swap(40, random_units((1, N, DIM), seed=5).astype(np.float16))
    with pytest.raises(StoreError, match="it holds more images"):
        open_index(index.path)
    core._params[name] = core._params[name].model_copy(update={"size": 99})
    with pytest.raises(StoreError, match="it holds vectors of another kind"):
        open_index(index.path)
    core.delete_collection(name)
    with pytest.raises(StoreError, match=f"the Qdrant server at {URL} has no collection {name!r}"):
        open_index(index.path)
    assert ids(grown(tmp_path, rebuild=True)) == [image.id for image in index.images]


def test_images_that_a_server_has_lost_are_told(core: CoreClient, index: SearchIndex) -> None:
    engine = index.segments[0].engine
    assert isinstance(engine, QdrantEngine)
    engine.drop_images(np.array([1, 2]))
    assert len(ids(index)) == 38
    for ask in (
        lambda: index.embeddings(13),
        lambda: index.score_images(random_units((1, DIM))),
        lambda: list(index.iter_embeddings()),
    ):
        with pytest.raises(StoreError, match="not on its server any more"):
            ask()
    with pytest.raises(StoreError, match="holds 38 images of 40"):
        open_index(index.path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "the engine qdrant needs a server: give --url"),
        ({"url": "localhost"}, "'localhost' is no server's address"),
        ({"url": "ftp://host"}, "is no server's address"),
        ({"url": "http://host:port"}, "is no server's address"),
        ({"url": "http://me:secret@host"}, "put its key into QDRANT_API_KEY"),
        ({"url": "http://host?api-key=secret"}, "put its key into QDRANT_API_KEY"),
    ],
)
def test_addresses_that_make_no_sense(core: CoreClient, options: dict, message: str, tmp_path: Path) -> None:
    make_store(tmp_path / "store", random_units((10, N, DIM)))
    with pytest.raises(UsageError, match=message) as caught:
        grown(tmp_path, kind="qdrant", **options)
    assert "secret" not in str(caught.value)
    for kind in ("flat", "compact"):
        with pytest.raises(UsageError, match=f"the engine {kind} asks no server"):
            grown(tmp_path, kind=kind, url=URL)


def test_without_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_store(tmp_path / "store", random_units((10, N, DIM)))
    connection._client.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "qdrant_client", None)
    arguments = ["index", str(tmp_path / "store"), "--out", str(tmp_path / "index"), "--engine", "qdrant", "--url", URL]
    assert search(arguments) == 2
    assert "needs the package qdrant-client: make install-cluster" in capsys.readouterr().err


def test_a_server_that_cannot_be_reached(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_store(tmp_path / "store", random_units((10, N, DIM)))
    url = f"http://127.0.0.1:{free_port()}"
    arguments = ["index", str(tmp_path / "store"), "--out", str(tmp_path / "index"), "--engine", "qdrant", "--url", url]
    assert search(arguments) == 2
    told = capsys.readouterr().err
    assert f"the Qdrant server at {url} can't be reached" in told
    assert told.strip().count("\n") == 0


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The core behind HTTP, which asks for a key; the variables hold nothing."""
    monkeypatch.delenv(connection.URL_VARIABLE, raising=False)
    monkeypatch.delenv(connection.KEY_VARIABLE, raising=False)
    with serve_core(tmp_path, KEY) as (url, asked):
        yield SimpleNamespace(url=url, asked=asked)


def test_over_http_with_a_key_that_goes_nowhere_else(
    served: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = random_units((40, N, DIM))
    make_store(tmp_path / "store", images)
    arguments = ["index", str(tmp_path / "store"), "--out", str(tmp_path / "index"), "--engine", "qdrant"]
    assert search([*arguments, "--url", served.url]) == 2
    assert "refused the key: put its key into QDRANT_API_KEY" in capsys.readouterr().err
    monkeypatch.setenv(connection.KEY_VARIABLE, KEY)
    assert search([*arguments, "--url", served.url]) == 0
    assert "40 images, 3 embeddings each, in 1 segment, exact" in capsys.readouterr().out
    assert not any(KEY.encode() in path.read_bytes() for path in (tmp_path / "index").rglob("*") if path.is_file())

    served.asked.clear()
    connection._named.clear()  # as in a process of its own
    with pytest.raises(StoreError, match="its address into QDRANT_URL, as the key is sent to no other server"):
        open_index(tmp_path / "index")
    assert {key for _, _, key in served.asked} == {None}
    monkeypatch.setenv(connection.URL_VARIABLE, served.url)
    index = open_index(tmp_path / "index")
    query = random_units((1, DIM), seed=9)
    exact = (images.astype(np.float16).astype(np.float64) @ query[0].astype(np.float64)).max(axis=1)
    hits = index.search(query, 7)[0]
    assert [hit.image.id for hit in hits] == [10 + 3 * int(i) for i in np.argsort(-exact)[:7]]
    np.testing.assert_array_equal(index.embeddings(16), images[2].astype(np.float16))

    # The index's own address leads elsewhere, as that of an index that has moved, or comes from somebody, may.
    note = note_of(index)
    elsewhere = f"http://127.0.0.1:{free_port()}"
    note.write_bytes(note.read_bytes().replace(served.url.encode(), elsewhere.encode()))
    hashes = vars(FileHashes.of(note))
    change_manifest(index.path, lambda value: value["segments"][0]["files"].update({NOTE: hashes}))
    assert ids(open_index(index.path)) == ids(index)
    monkeypatch.delenv(connection.URL_VARIABLE)
    with pytest.raises(StoreError, match=f"the Qdrant server at {elsewhere} can't be reached"):
        open_index(index.path)


def test_quantised_over_http(served: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(connection.KEY_VARIABLE, KEY)
    monkeypatch.setenv(connection.URL_VARIABLE, served.url)
    monkeypatch.setattr(graph_recall, "_N_QUERIES", 4)
    make_store(tmp_path / "store", random_units((60, N, DIM)))
    index = grown(tmp_path, kind="qdrant", url=served.url, quantised=True)
    assert str(index.recall).startswith("finds ")
    assert len(index.search(random_units((2, DIM)), 5)[1]) == 5
