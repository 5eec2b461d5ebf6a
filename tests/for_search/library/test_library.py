"""The indexes of the page: named, opened once, compared with those of the same images."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from for_model.data.registry import load_dataset
from for_model.errors import StoreError, UsageError, WeightsError
from for_model.methods.build import build_method
from for_model.methods.registry import method_title
from for_search.index.index_files import build_index
from for_search.library import library as module
from for_search.library.library import Library
from for_search.query.searcher import Searcher
from for_search.store.embed import embed
from tests.helpers.patience import PATIENCE_S
from tests.helpers.store_making import make_store, random_units
from tests.helpers.tiny_index import make_searcher, random_method


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Indexes of six scenes by Cluster-CLIP (`index`) and CLIP (`clip`), with random weights."""
    folder = tmp_path_factory.mktemp("library")
    make_searcher(folder, 6)
    method = build_method("clip", loaded=random_method().backbone)
    embed(load_dataset("miniscenes", folder / "scenes"), method, folder / "clip-store")
    build_index(folder / "clip-store", folder / "clip")
    return folder


@pytest.fixture
def library(folder: Path) -> Library:
    library = Library(weights="random")
    library.add(folder / "index")
    library.add(folder / "clip")
    return library


def test_names_tell_dataset_and_method(library: Library) -> None:
    assert library.names == ("miniscenes val: Cluster-CLIP 8", "miniscenes val: CLIP")
    assert library.default == "miniscenes val: Cluster-CLIP 8"
    assert method_title("for", 4) == "FOR 4"
    assert method_title("dense-clip", 25) == "Dense-CLIP"


def test_opened_once_whoever_asks(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def make(index: object, **options: object) -> Searcher:
        made.append(index)
        return original(index, **options)  # type: ignore[arg-type]

    original = module.searcher_of
    monkeypatch.setattr(module, "searcher_of", make)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(library.searcher, [library.default] * 4))
    assert len(made) == 1
    assert all(searcher is found[0] for searcher in found)
    assert len(found[0].search("dog", 3).hits) == 3


def test_one_backbone_for_the_indexes_that_share_it(library: Library) -> None:
    first, second = (library.searcher(name).method for name in library.names)
    assert first.backbone is second.backbone  # type: ignore[attr-defined]
    assert (first.info.method, second.info.method) == ("cluster-clip", "clip")


def test_an_index_that_cannot_be_opened_keeps_nobody_waiting(folder: Path, library: Library) -> None:
    lost = Library(weights="/nowhere.safetensors")
    name = lost.add(folder / "clip")
    for _ in range(2):  # and the second call tries again instead of waiting for ever
        with pytest.raises(WeightsError, match="nowhere"):
            lost.searcher(name)


def test_others_search_while_one_opens(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, quick = library.names
    library.searcher(quick)
    opening, go_on = threading.Event(), threading.Event()
    original = module.searcher_of

    def make(index: object, **options: object) -> Searcher:
        opening.set()
        assert go_on.wait(PATIENCE_S)
        return original(index, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "searcher_of", make)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(library.searcher, slow)
        assert opening.wait(PATIENCE_S)
        assert library.searcher(quick).search("dog", 1).hits
        assert library.siblings(slow) == (quick,)
        assert not waiting.done()
        go_on.set()
        assert waiting.result(20).index.info.method == "cluster-clip"


def test_siblings_are_of_the_same_images(library: Library, folder: Path, tmp_path: Path) -> None:
    make_store(tmp_path / "store", random_units((4, 3, 32)))
    other = library.add(build_index(tmp_path / "store", tmp_path / "index").path)
    first, second = library.names[:2]
    assert library.siblings(first) == (second,)
    assert library.siblings(second) == (first,)
    assert library.siblings(other) == ()


def test_the_same_index_again_keeps_its_name_and_another_gets_its_own(
    library: Library, folder: Path, tmp_path: Path
) -> None:
    assert library.add(folder / "clip") == "miniscenes val: CLIP"
    assert len(library.names) == 2
    for number, place in enumerate(("a", "b"), start=1):
        make_store(tmp_path / place / "store", random_units((4, 3, 32)))
        name = library.add(build_index(tmp_path / place / "store", tmp_path / place / "index").path)
        assert name == ("tiny val: Cluster-CLIP 3" if number == 1 else "tiny val: Cluster-CLIP 3 (2)")


def test_labels_are_those_beside_the_images(library: Library, folder: Path, tmp_path: Path) -> None:
    dataset = library.labels(library.default)
    assert dataset is not None
    content = json.loads((folder / "scenes" / "annotations" / "instances_val.json").read_bytes())
    names = {category["id"]: category["name"] for category in content["categories"]}
    shown = {(note["image_id"], names[note["category_id"]]) for note in content["annotations"]}
    read = {(i, dataset.categories[c].name) for i, present in dataset.labels.items() for c in present}
    assert read == shown
    assert library.labels(library.default) is dataset  # read once
    moved = Library(weights="random", image_root=tmp_path)
    assert moved.labels(moved.add(folder / "clip")) is None


def test_unknown_names_and_missing_indexes(library: Library, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no index is called 'x': choose one of miniscenes val: Cluster-CLIP 8, "):
        library.searcher("x")
    with pytest.raises(StoreError, match="no search index at"):
        library.add(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="no index is loaded"):
        _ = Library().default
    with pytest.raises(WeightsError, match="no head file"):
        Library(heads=[tmp_path / "head.safetensors"])


def test_the_built_in_ones_are_made_on_first_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from for_model.data.miniscenes import scenes as miniscenes

    monkeypatch.setenv("FOR_CACHE", str(tmp_path))
    monkeypatch.setattr(miniscenes, "DEFAULT_COUNTS", {"val": 6})
    library = Library.built_in()
    names = [f"miniscenes val: {title}" for title in ("FOR+ 8", "CLIP", "Dense-CLIP", "Cluster-CLIP 8", "FOR 8")]
    assert list(library.names) == names
    assert library.siblings(names[0]) == tuple(names[1:])
    assert not (tmp_path / "indexes").exists()
    opened = library.searcher(names[0])
    assert opened.index.info.method == "for+"
    assert opened.embeds_images
    assert len(list((tmp_path / "indexes").iterdir())) == 1
    assert library.labels(names[0]) is not None
