"""An index whose engine is the compact one, with limits so small that it has codes."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from for_model.backbones.registry import load_backbone
from for_model.errors import StoreError, UsageError
from for_model.files import sealed, write_json
from for_search import embed_command
from for_search.__main__ import main
from for_search.index.compact import compact_engine
from for_search.index.compact.codes import Codes
from for_search.index.compact.compact_engine import CompactEngine
from for_search.index.engine_protocol import Recall
from for_search.index.index import SearchIndex
from for_search.index.index_files import build_index, open_index
from for_search.library import built_in_index, vocabulary_sample
from for_search.library.folder_index import folder_index
from tests.helpers.fake_method import FakeMethod, make_images
from tests.helpers.store_making import make_store, random_units

N_IMAGES, N_EMBEDDINGS, DIM = 120, 6, 16
RN_MINI_WIDTH = 256
QUERIES = random_units((5, DIM), seed=1)


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compact_engine, "MIN_ROWS", 50)
    monkeypatch.setattr(compact_engine, "_SCAN_ABOVE", 2)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return make_store(tmp_path / "store", random_units((N_IMAGES, N_EMBEDDINGS, DIM))).path


@pytest.fixture
def index(store: Path) -> SearchIndex:
    return build_index(store, store.parent / "index", "compact", recall=0.9)


def test_scores_are_exact_and_an_exact_search_is_that_of_a_flat_index(index: SearchIndex, store: Path) -> None:
    flat = build_index(store, store.parent / "flat")
    assert (index.kind, flat.recall) == ("compact", None)
    assert index.recall is not None
    assert index.recall.asked == 0.9
    for k in (1, 10, 70, N_IMAGES):
        exact = flat.search(QUERIES, k)
        assert index.search(QUERIES, k, exact=True) == exact
        of_image = [{hit.image.id: hit for hit in hits} for hits in flat.search(QUERIES, N_IMAGES)]
        for hits, all_hits in zip(index.search(QUERIES, k), of_image, strict=True):
            assert len({hit.image.id for hit in hits}) == k
            assert all(hit.score <= all_hits[hit.image.id].score for hit in hits)
            assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert index.search(QUERIES, N_IMAGES) == flat.search(QUERIES, N_IMAGES)


def test_what_is_allowed_is_found_when_it_is_little(index: SearchIndex) -> None:
    for count in (0, 1, 5):
        allowed = np.zeros(N_IMAGES, dtype=bool)
        allowed[np.random.default_rng(count).permutation(N_IMAGES)[:count]] = True
        found = index.search(QUERIES, 10, allowed)
        assert found == index.search(QUERIES, 10, allowed, exact=True)
        assert {len(hits) for hits in found} == {count}


def test_an_index_with_groups_of_alike_embeddings_is_searched_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compact_engine, "alike_to_take", lambda *_: 0.5)
    things = random_units((800, 3, DIM), seed=4)[:, np.arange(12) % 3]
    embeddings = things + 0.1 * random_units((800, 12, DIM), seed=5)
    embeddings /= np.linalg.norm(embeddings, axis=2, keepdims=True)
    index = build_index(make_store(tmp_path / "store", embeddings).path, tmp_path / "index", "compact")
    engine = index.segments[0].engine
    assert isinstance(engine, CompactEngine)
    assert engine._codes is not None
    assert 800 < engine._codes.n_groups < 800 * 5
    assert index.recall is not None
    assert index.recall.mean >= 0.98
    for share in (1, 0.9, 0.3):
        allowed = np.random.default_rng(0).random(800) < share
        found, exact = (index.search(QUERIES, 20, allowed, exact=exactly) for exactly in (False, True))
        for hits, best in zip(found, exact, strict=True):
            assert len({hit.image.id for hit in hits}) == 20
            assert all(allowed[index.position(hit.image.id)] for hit in hits)
            right = [hit for hit in hits if hit in best]  # with the scan's score and embedding
            assert len(right) >= 18


def test_a_killed_build_leaves_its_work_to_the_next(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = store.parent / "index"

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(compact_engine, "choose", killed)
        with pytest.raises(KeyboardInterrupt):
            build_index(store, out, "compact")
    assert len(list(out.glob(".segment-*.tmp"))) == 1
    monkeypatch.setattr(Codes, "train", None)  # not needed again
    assert len(build_index(store, out, "compact").images) == N_IMAGES
    assert sorted(path.name for path in out.iterdir()) == [
        "images-000001.sqlite",
        "lock",
        "manifest.json",
        "segment-000001",
    ]


def test_an_index_of_an_earlier_version_is_refused_and_made_anew(index: SearchIndex, store: Path) -> None:
    manifest = json.loads((index.path / "manifest.json").read_bytes())
    del manifest["segments"][0]["files"]["groups.npy"], manifest["sha256"]
    write_json(index.path / "manifest.json", sealed(manifest))
    with pytest.raises(StoreError, match="that another version of FOR wrote: build the index again, with --rebuild"):
        open_index(index.path)
    assert build_index(store, index.path).search(QUERIES, 3) == index.search(QUERIES, 3)
    assert [path.name for path in index.path.glob("segment-*")] == ["segment-000002"]


def test_the_command_says_how_complete_answers_are(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = store.parent / "index"
    assert main(["index", str(store), "--out", str(out), "--engine", "compact", "--recall", "0.5"]) == 0
    recall = open_index(out).recall
    assert recall is not None
    assert str(recall) in capsys.readouterr().out
    with pytest.raises(UsageError, match="a recall of 99: ask for a share"):
        build_index(store, out, "compact", recall=99)


def test_images_that_are_alike_count_as_one_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As sky is in thousands of photographs: which of them an answer has doesn't matter, and takes no more rows."""
    monkeypatch.setattr(compact_engine, "_SCAN_ABOVE", 20)  # at most a twentieth of the rows is read
    embeddings = random_units((4000, 2, DIM))
    sky = embeddings[0, 0] + 1e-3 * random_units((2000, DIM), seed=2)  # closer together than codes can tell
    embeddings[:2000, 0] = sky / np.linalg.norm(sky, axis=1, keepdims=True)
    store = make_store(tmp_path / "store", embeddings).path
    texts = random_units((100, DIM), seed=3).astype(np.float32)
    index = build_index(store, tmp_path / "index", "compact", recall=0.95, texts=texts)
    assert index.recall is not None
    assert index.recall.mean > 0.9  # 0.77 where only the very best count
    query = embeddings[0, :1].astype(np.float32)
    found, exact = index.search(query, 50)[0], index.search(query, 50, exact=True)[0]
    assert len({hit.image.id for hit in found} & {hit.image.id for hit in exact}) < 40
    assert found[-1].score > 0.999 * exact[-1].score


def test_a_recall_is_never_rounded_up() -> None:
    assert str(Recall(0.99, 0.99996, 0.9, 50, 128, "texts")) == "finds 99.9% of the best 50"
    assert str(Recall(0.99, 1.0, 1.0, 50, 128, "texts")) == "finds 100% of the best 50"


def test_few_images_have_no_codes(store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(compact_engine, "MIN_ROWS", 100_000)
    assert main(["index", str(store), "--out", str(store.parent / "index"), "--engine", "compact"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "so few images are scanned as fast"
    assert open_index(store.parent / "index").recall is None


def test_texts_are_asked_for_whenever_codes_are_made_and_only_then(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever engine the command names, and however the index was made before."""
    asked: list[Path] = []

    def texts_for(path: Path) -> NDArray[np.float32]:
        asked.append(path)
        return random_units((20, DIM), seed=2)

    monkeypatch.setattr(vocabulary_sample, "texts_for", texts_for)
    index = ["index", str(store), "--out", str(store.parent / "index")]
    assert main(index) == 0
    assert asked == []  # an exact scan has no use for them
    assert main([*index, "--engine", "compact"]) == 0
    assert main(index) == 0  # is up to date
    assert asked == [store]
    assert main([*index, "--rebuild"]) == 0
    assert asked == [store, store]
    recall = open_index(store.parent / "index").recall
    assert recall is not None
    assert recall.queries == "texts and its own embeddings"
    monkeypatch.setattr(compact_engine, "MIN_ROWS", 100_000)
    assert main([*index, "--rebuild"]) == 0
    assert asked == [store, store]


def test_a_compact_index_that_grows_with_its_store_gets_texts(store: Path) -> None:
    """What the page's builds and `embed --index` do: they name no engine, and give texts as a function."""
    out, given = store.parent / "index", random_units((20, DIM), seed=2)
    calls = itertools.count()

    def texts() -> NDArray[np.float32]:
        next(calls)
        return given

    build_index(store, out, "compact")
    grown = make_store(store.parent / "grown", random_units((3 * N_IMAGES, N_EMBEDDINGS, DIM), seed=3)).path
    recall = build_index(grown, out, texts=texts).recall
    assert recall is not None
    assert recall.queries == "texts and its own embeddings"
    assert next(calls) == 1


@pytest.mark.slow
def test_the_command_builds_with_texts_of_the_stores_own_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store of RN-mini's width, with its text encoder; then one whose encoder nobody has."""
    monkeypatch.setattr(vocabulary_sample, "random_names", lambda: ("dog", "umbrella", "train", "vase"))
    known = load_backbone("RN-mini").weights_sha256
    for sha256, expected in (
        (known, "texts and its own embeddings"),
        ("0" * 64, "embeddings moved away as texts are and its own embeddings"),
    ):
        embeddings = random_units((N_IMAGES, N_EMBEDDINGS, RN_MINI_WIDTH))
        made = make_store(tmp_path / sha256, embeddings, weights_sha256=sha256)
        out = tmp_path / f"{sha256}-index"
        assert main(["index", str(made.path), "--out", str(out), "--engine", "compact"]) == 0
        found = open_index(out).recall
        assert found is not None
        assert found.queries == expected


@pytest.mark.parametrize("way", ["embed --index", "the page's build"])
def test_a_folder_that_has_grown_is_coded_anew_with_texts(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []
    method, root = FakeMethod(), tmp_path / "images"

    def texts_for(path: Path) -> NDArray[np.float32]:
        asked.append(path)
        return random_units((20, method.info.dim), seed=2)

    monkeypatch.setattr(vocabulary_sample, "texts_for", texts_for)
    monkeypatch.setattr(built_in_index, "texts_for", texts_for)
    monkeypatch.setattr(embed_command, "method_of", lambda *_: method)
    monkeypatch.setenv("FOR_CACHE", str(tmp_path / "cache"))

    def update() -> Path:
        if way == "the page's build":
            return folder_index(root, method)
        out = tmp_path / "index"
        of_folder = ["--dataset", "folder", "--root", str(root), "--out", str(tmp_path / "store")]
        assert main(["embed", *of_folder, "--workers", "1", "--index", str(out)]) == 0
        return out

    make_images(root, 30)
    index = update()
    build_index(index.parent / "store", index, "compact")
    assert asked == []
    make_images(root / "more", 60)
    assert update() == index
    recall = open_index(index).recall
    assert recall is not None
    assert recall.queries == "texts and its own embeddings"
    assert asked == [index.parent / "store"]
