import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from for_model import files
from for_model.errors import StoreError, UsageError
from for_search.index import flat_engine
from for_search.index import segment as segment_module
from for_search.index.checked_file import FileHashes
from for_search.index.flat_engine import FlatEngine
from for_search.index.index import Hit, SearchIndex
from for_search.index.index_files import build_index, open_index
from for_search.index.index_manifest import MANIFEST
from tests.helpers.paths import REPOSITORY
from tests.helpers.patience import PATIENCE_S
from tests.helpers.store_making import change_manifest, dyadic_units, make_store, method_info, random_units

Answer = list[tuple[int, float, int]]


def make_index(folder: Path, embeddings: NDArray[np.floating]) -> SearchIndex:
    make_store(folder / "store", embeddings)
    return build_index(folder / "store", folder / "index")


def oracle(embeddings: NDArray[np.floating], query: NDArray[np.floating], k: int) -> Answer:
    """Every image's best embedding by plain loops, sorted as the docstring of `search` says."""
    answer = []
    for i, image in enumerate(embeddings.astype(np.float16).astype(np.float64)):
        scores = [float(row @ query.astype(np.float64)) for row in image]
        answer.append((10 + 3 * i, max(scores), scores.index(max(scores))))
    return sorted(answer, key=lambda found: (-found[1], found[0]))[:k]


def plain(hits: list[Hit]) -> Answer:
    return [(hit.image.id, hit.score, hit.embedding) for hit in hits]


def data_of(index: SearchIndex) -> Path:
    return index.path / "segment-000001" / "index.faiss"


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def open_on_full_disk(path: Path, mode: str = "r", **options: Any) -> IO[Any]:
    """/dev/full refuses every byte, as a full disk does."""
    return open("/dev/full" if path.name == "index.faiss" else path, mode, **options)  # noqa: PTH123


@pytest.fixture
def fetches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(Q, F) of every call of the engine; the first fetch is made tiny, so that it must grow."""
    calls = []
    search_rows = FlatEngine.search_rows

    def recorded(self: FlatEngine, queries: NDArray[np.float32], n_rows: int, *options):  # type: ignore[no-untyped-def]
        calls.append((len(queries), n_rows))
        return search_rows(self, queries, n_rows, *options)

    monkeypatch.setattr(FlatEngine, "search_rows", recorded)
    monkeypatch.setattr(flat_engine, "_FIRST_FETCH", 2)
    return calls


class TestSearch:
    @pytest.mark.parametrize(
        ("n_images", "n_embeddings", "dim", "k"), [(40, 5, 16, 7), (200, 25, 33, 10), (60, 1, 8, 60), (1, 9, 8, 3)]
    )
    @pytest.mark.parametrize("first_fetch", [1, 1024])
    def test_equals_brute_force(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        n_images: int,
        n_embeddings: int,
        dim: int,
        k: int,
        first_fetch: int,
    ) -> None:
        monkeypatch.setattr(flat_engine, "_FIRST_FETCH", first_fetch)
        embeddings = random_units((n_images, n_embeddings, dim), seed=1)
        queries = random_units((6, dim), seed=2)
        index = make_index(tmp_path, embeddings)
        for query, hits in zip(queries, index.search(queries, k), strict=True):
            expected = oracle(embeddings, query, k)
            assert [(i, e) for i, _, e in plain(hits)] == [(i, e) for i, _, e in expected]
            np.testing.assert_allclose([hit.score for hit in hits], [score for _, score, _ in expected], atol=1e-6)

    @pytest.mark.parametrize("k", [1, 2, 5, 50, 100, 1000])
    def test_ties_break_by_image_id_then_embedding(
        self, tmp_path: Path, fetches: list[tuple[int, int]], k: int
    ) -> None:
        embeddings = dyadic_units((90, 6, 12))
        queries = dyadic_units((5, 12), seed=1)
        index = make_index(tmp_path, embeddings)
        for query, hits in zip(queries, index.search(queries, k), strict=True):
            expected = oracle(embeddings, query, k)
            assert len({score for _, score, _ in expected}) < len(expected) or k == 1, "the case needs ties"
            assert plain(hits) == expected

    def test_one_image_fills_the_first_hits(self, tmp_path: Path, fetches: list[tuple[int, int]]) -> None:
        """200 near-copies of the query in one image: a fixed over-fetch would return that image alone."""
        rng = np.random.default_rng(3)
        embeddings = random_units((30, 200, 32), seed=4)
        query = random_units((1, 32), seed=5)
        near = query + 0.01 * rng.standard_normal((200, 32))
        embeddings[17] = near / np.linalg.norm(near, axis=-1, keepdims=True)
        hits = make_index(tmp_path, embeddings).search(query, 10)[0]
        assert [(i, e) for i, _, e in plain(hits)] == [(i, e) for i, _, e in oracle(embeddings, query[0], 10)]
        assert hits[0].image.id == 10 + 3 * 17
        assert max(n_rows for _, n_rows in fetches) > 200

    def test_images_that_are_copies_of_each_other(self, tmp_path: Path, fetches: list[tuple[int, int]]) -> None:
        embeddings = random_units((50, 8, 24), seed=6)
        embeddings[[3, 9, 40]] = embeddings[21]
        query = embeddings[21, 5][None]
        hits = make_index(tmp_path, embeddings).search(query, 6)[0]
        assert [hit.image.id for hit in hits[:4]] == [10 + 3 * i for i in (3, 9, 21, 40)]
        assert len({hit.score for hit in hits[:4]}) == 1
        assert {hit.embedding for hit in hits[:4]} == {5}

    def test_everything_ties(self, tmp_path: Path, fetches: list[tuple[int, int]]) -> None:
        index = make_index(tmp_path, np.tile(dyadic_units((1, 1, 8)), (40, 5, 1)))
        hits = index.search(dyadic_units((1, 8)), 3)[0]
        assert plain(hits) == [(10, 1.0, 0), (13, 1.0, 0), (16, 1.0, 0)]
        assert fetches[-1] == (1, 200)  # nothing less can tell that no image before these ties with them

    def test_only_unfinished_queries_are_fetched_again(self, tmp_path: Path, fetches: list[tuple[int, int]]) -> None:
        embeddings = random_units((400, 3, 8), seed=7)
        embeddings[:300] = dyadic_units((1, 1, 8))
        queries = np.concatenate([embeddings[350:353, 0], dyadic_units((1, 8))])
        make_index(tmp_path, embeddings).search(queries, 1)
        assert fetches == [(4, 2), (1, 8), (1, 32), (1, 128), (1, 512), (1, 1200)]

    def test_the_fetch_is_bounded_over_all_queries(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fetches: list[tuple[int, int]]
    ) -> None:
        embeddings = dyadic_units((60, 6, 12), seed=8)
        queries = dyadic_units((9, 12), seed=9)
        index = make_index(tmp_path, embeddings)
        expected = index.search(queries, 20)
        fetches.clear()
        monkeypatch.setattr(segment_module, "_FETCH_BUDGET", 100)
        assert index.search(queries, 20) == expected
        assert all(n_queries == 1 or n_queries * n_rows <= 100 for n_queries, n_rows in fetches)

    def test_a_batch_answers_as_its_queries_do_alone(self, tmp_path: Path) -> None:
        index = make_index(tmp_path, random_units((80, 7, 40), seed=10))
        queries = random_units((33, 40), seed=11)
        assert index.search(queries, 9) == [index.search(query[None], 9)[0] for query in queries]

    def test_threads_share_an_index(self, tmp_path: Path) -> None:
        index = make_index(tmp_path, random_units((150, 10, 64), seed=12))
        queries = random_units((64, 64), seed=13)
        expected = [index.search(query[None], 12)[0] for query in queries]
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(lambda query: index.search(query[None], 12)[0], queries)) == expected

    def test_no_queries(self, tmp_path: Path) -> None:
        assert make_index(tmp_path, random_units((3, 2, 8))).search(np.zeros((0, 8), np.float32), 5) == []

    def test_refuses_what_cannot_be_searched(self, tmp_path: Path) -> None:
        index = make_index(tmp_path, random_units((3, 2, 8)))
        query = random_units((1, 8))
        for k in (0, -1, True, 2.0):
            with pytest.raises(UsageError, match="at least 1"):
                index.search(query, k)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=r"shape \[8\], expected \[Q, 8\]"):
            index.search(query[0], 1)
        with pytest.raises(UsageError, match="NaN"):
            index.search(query * np.nan, 1)
        with pytest.raises(StoreError, match=r"width 9 .* width 8\)"):
            index.search(random_units((1, 9)), 1)


class TestCheckMethod:
    def test_accepts_another_head_of_the_same_text_space(self, tmp_path: Path) -> None:
        index = make_index(tmp_path, random_units((3, 2, 8)))
        index.check_method(method_info(25, 8, method="dense-clip", image_size=448, settings={}))

    @pytest.mark.parametrize("changes", [{"backbone": "RN50"}, {"weights_sha256": "cd" * 32}, {"dim": 16}])
    def test_names_both_when_they_differ(self, tmp_path: Path, changes: dict[str, object]) -> None:
        index = make_index(tmp_path, random_units((3, 2, 8)))
        other = method_info(2, 8, **changes) if "dim" not in changes else method_info(2, 16)
        with pytest.raises(StoreError) as caught:
            index.check_method(other)
        for info in (index.info, other):
            assert f"{info.backbone} ({info.weights}, sha256 {info.weights_sha256[:12]}, width {info.dim})" in str(
                caught.value
            )


class TestOpen:
    def test_gives_back_what_the_store_holds(self, tmp_path: Path) -> None:
        store = make_store(tmp_path / "store", random_units((9, 3, 8)))
        build_index(tmp_path / "store", tmp_path / "deep" / "index")
        index = open_index(tmp_path / "deep" / "index", verify="full")
        assert (tuple(index.images), index.skipped, index.info) == (tuple(store.images), store.skipped, store.info)
        assert (index.kind, index.dataset, index.split) == ("flat", "tiny", "val")
        assert index.image_root == str(tmp_path / "images")
        assert index.n_bytes == data_of(index).stat().st_size >= 9 * 3 * 8 * 2
        rows = index.segments[0].engine._index.reconstruct_n(0, 27)  # type: ignore[attr-defined]
        np.testing.assert_array_equal(rows, store.embeddings().reshape(27, 8))

    def test_two_builds_are_the_same_bytes(self, tmp_path: Path) -> None:
        make_store(tmp_path / "store", random_units((9, 3, 8)))
        for name in ("a", "b"):
            build_index(tmp_path / "store", tmp_path / name)
        for file in (MANIFEST, "images-000001.sqlite", "segment-000001/index.faiss"):
            assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()

    def check_refused(self, path: Path, match: str, verify: str = "quick") -> None:
        with pytest.raises(StoreError, match=match) as caught:
            open_index(path, verify=verify)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)

    def test_refuses_what_is_no_index(self, tmp_path: Path) -> None:
        index = make_index(tmp_path, random_units((3, 2, 8)))
        self.check_refused(tmp_path / "nowhere", "doesn't exist")
        self.check_refused(index.path / MANIFEST, "is not a folder")
        self.check_refused(tmp_path / "store", "is an embedding store")
        (index.path / MANIFEST).unlink()
        self.check_refused(index.path, "has no manifest.json")

    @pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"format": "for-index/4"}', "\xff"])
    def test_refuses_a_damaged_manifest(self, tmp_path: Path, text: str) -> None:
        index = make_index(tmp_path, random_units((3, 2, 8)))
        (index.path / MANIFEST).write_bytes(text.encode("latin-1"))
        self.check_refused(index.path, "is damaged, .*: build the index again")

    @pytest.mark.parametrize(
        ("key", "value", "match"),
        [
            ("format", "for-index/2", "'for-index/2', expected 'for-index/4': build the index again"),
            ("kind", "hnsw", "kind 'hnsw', known are compact, flat"),
            ("segments.kind", "hnsw", "kind 'hnsw', known are compact, flat"),
            ("segments.folder", "../elsewhere", "leads out of the index"),
            ("segments.files", {}, "another version"),
            ("segments.files", {"../index.faiss": {"n_bytes": 1, "blocks": ""}}, "another version"),
            ("segments.shards", [], "no rows of their own"),
            (
                "segments.shards",
                [{"file": "x.npy", "n_images": 4, "sha256": ""}],
                "holds 6 rows of width 8; .* says 8 of",
            ),
            ("n_images", 0, "contradict"),
            ("n_images", "three", "not the fields"),
            ("table", {"file": "../x.sqlite", "hashes": {"n_bytes": 1, "blocks": ""}}, "leads out of the index"),
            ("table", {"file": "images-000009.sqlite", "hashes": {"n_bytes": 1, "blocks": ""}}, "is missing"),
            ("places", [0, 1, 1], "no rows of their own"),
            ("places", [0, 1, 3], "no rows of their own"),
            ("places", [0, 1], "contradict"),
            ("method", {"method": "clip"}, "not the fields"),
        ],
    )
    def test_refuses_a_manifest_of_something_else(self, tmp_path: Path, key: str, value: object, match: str) -> None:
        index = make_index(tmp_path, random_units((3, 2, 8)))
        part, _, field = key.rpartition(".")
        change_manifest(index.path, lambda manifest: (manifest[part][0] if part else manifest).update({field: value}))
        self.check_refused(index.path, match)

    def test_a_quick_check_catches_truncation_and_a_header_overwritten(self, tmp_path: Path) -> None:
        index = make_index(tmp_path, random_units((300, 4, 8)))
        data = data_of(index)
        whole = data.read_bytes()
        data.write_bytes(whole[:-1])
        self.check_refused(index.path, r"it has \d+ bytes, its manifest says \d+")
        for damage in (bytes(64), whole[:8] + b"\xff" * 8):
            data.write_bytes(damage + whole[len(damage) :])
            self.check_refused(index.path, "bytes differ")
        data.unlink()
        self.check_refused(index.path, "is missing")

    def test_a_full_check_catches_any_byte(self, tmp_path: Path) -> None:
        index = make_index(tmp_path, random_units((300, 400, 8)))
        data = data_of(index)
        whole = bytearray(data.read_bytes())
        whole[-1] ^= 1
        data.write_bytes(whole)
        self.check_refused(index.path, "bytes differ", verify="full")

    def test_what_faiss_refuses_is_one_line(self, tmp_path: Path) -> None:
        """An engine's file that is not FAISS's, though its hashes are the manifest's."""
        index = make_index(tmp_path, random_units((3, 2, 8)))
        data = data_of(index)
        data.write_bytes(b"no index at all")
        hashes = asdict(FileHashes.of(data))
        change_manifest(index.path, lambda manifest: manifest["segments"][0].update(files={"index.faiss": hashes}))
        self.check_refused(index.path, "FAISS can't read it")


class TestBuild:
    def test_refuses_an_unknown_kind_and_an_empty_store(self, tmp_path: Path) -> None:
        make_store(tmp_path / "store", np.zeros((0, 2, 8), np.float32))
        with pytest.raises(UsageError, match="'ivf': choose one of compact, flat"):
            build_index(tmp_path / "store", tmp_path / "index", kind="ivf")
        with pytest.raises(StoreError, match="nothing to index"):
            build_index(tmp_path / "store", tmp_path / "index")
        assert entries(tmp_path) == ["store"]

    def test_never_deletes_what_is_no_index(self, tmp_path: Path) -> None:
        make_store(tmp_path / "store", random_units((3, 2, 8)))
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos" / "cat.jpg").touch()
        (tmp_path / "note").touch()
        for out in ("photos", "note", "store"):
            with pytest.raises(UsageError, match="isn't a search index"):
                build_index(tmp_path / "store", tmp_path / out)
        assert (tmp_path / "photos" / "cat.jpg").exists()

    def test_replaces_an_index_that_somebody_is_searching(self, tmp_path: Path) -> None:
        old = make_index(tmp_path, random_units((30, 2, 8)))
        query = random_units((1, 8), seed=1)
        expected = old.search(query, 5)
        make_store(tmp_path / "other", random_units((4, 3, 8), seed=2))
        new = build_index(tmp_path / "other", tmp_path / "index")
        assert len(new.images) == 4
        assert old.search(query, 5) == expected
        assert entries(tmp_path) == ["index", "other", "store"]

    @pytest.mark.parametrize("damage", ["shard", "engine", "disk"])
    def test_a_failed_build_leaves_the_old_index(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
    ) -> None:
        old = make_index(tmp_path, random_units((30, 2, 8)))
        if damage == "shard":
            shard = tmp_path / "store" / "embeddings-00001.npy"
            whole = bytearray(shard.read_bytes())
            whole[-1] ^= 1
            shard.write_bytes(whole)
        elif damage == "engine":
            monkeypatch.setattr(Path, "open", open_on_full_disk)
        else:
            monkeypatch.setattr(files, "write_json", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(
            StoreError, match={"shard": "damaged", "engine": "can't write", "disk": "No space left"}[damage]
        ):
            build_index(tmp_path / "store", tmp_path / "index", rebuild=True)
        monkeypatch.undo()
        assert open_index(tmp_path / "index", verify="full").images[:] == old.images[:]
        assert entries(tmp_path) == ["index", "store"]

    def test_a_killed_build_leaves_the_old_index_and_the_next_cleans_up(self, tmp_path: Path) -> None:
        old = make_index(tmp_path, random_units((30, 2, 8)))
        child = self.start_build_that_hangs(tmp_path)
        try:
            assert entries(old.path) == [
                *("images-000001.sqlite", "images-000002.sqlite", "lock", MANIFEST),
                *("segment-000001", "segment-000002"),
            ]
            with pytest.raises(StoreError, match="is being written by another process"):
                build_index(tmp_path / "store", tmp_path / "index")
            assert open_index(tmp_path / "index", verify="full").images[:] == old.images[:]
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()
        assert open_index(tmp_path / "index", verify="full").images[:] == old.images[:]
        build_index(tmp_path / "store", tmp_path / "index", rebuild=True)
        assert entries(old.path) == ["images-000002.sqlite", "lock", MANIFEST, "segment-000002"]

    def start_build_that_hangs(self, folder: Path) -> subprocess.Popen[bytes]:
        """A build in a process of its own that stands still after the engine's file, before the manifest."""
        script = (
            "import time\nfrom pathlib import Path\nfrom for_model import files\n"
            "from for_search.index.index_files import build_index\n"
            "def hang(path, value):\n    Path('hangs').touch()\n    time.sleep(3600)\n"
            "files.write_json = hang\nbuild_index(Path('store'), Path('index'), rebuild=True)\n"
        )
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        child = subprocess.Popen([sys.executable, "-c", script], cwd=folder, env=environment)
        deadline = time.monotonic() + PATIENCE_S
        while not (folder / "hangs").exists():
            assert child.poll() is None, "the build ended"
            assert time.monotonic() < deadline, "the build never reached its end"
            time.sleep(0.02)
        (folder / "hangs").unlink()
        return child


def test_hits_are_values(tmp_path: Path) -> None:
    hit = make_index(tmp_path, random_units((3, 2, 8))).search(random_units((1, 8)), 1)[0][0]
    assert type(hit.score) is float
    assert type(hit.embedding) is int
    with pytest.raises(AttributeError):
        hit.score = 1.0  # type: ignore[misc]
    assert replace(hit, embedding=0).image == hit.image
