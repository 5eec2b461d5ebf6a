"""An index built in the background: watched, stopped, gone on with, while others search."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from for_model.errors import UsageError
from for_search.library import background_builds as module
from for_search.library.background_builds import Builder, BuildState
from for_search.library.folder_index import folder_index
from for_search.library.library import Library
from tests.helpers.fake_method import noise
from tests.helpers.patience import PATIENCE_S
from tests.helpers.tiny_index import make_searcher


@pytest.fixture(scope="module")
def library_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("building")
    make_searcher(folder, 4)
    return folder / "index"


@pytest.fixture
def library(library_folder: Path) -> Library:
    library = Library(weights="random")
    library.searcher(library.add(library_folder))
    return library


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FOR_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "Pictures"
    root.mkdir()
    generator = np.random.default_rng(0)
    for number in range(6):
        noise(generator, 40, 40).save(root / f"{number}.png")
    (root / "broken.png").write_bytes(b"no image")
    return root


def wait(builder: Builder) -> BuildState:
    deadline = time.monotonic() + PATIENCE_S
    while builder.state.running:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return builder.state


def test_a_folder_becomes_an_index_of_the_library(library: Library, photos: Path) -> None:
    builder = Builder(library)
    builder.start(photos, "cluster-clip:4", "RN-mini")
    state = wait(builder)
    assert state.name == "Pictures: Cluster-CLIP 4"
    searcher = library.searcher("Pictures: Cluster-CLIP 4")
    assert len(searcher.search("dog", 10).hits) == 6
    assert [image.path for image in searcher.index.skipped] == ["broken.png"]
    assert searcher.method.backbone is library.searcher(library.default).method.backbone  # type: ignore[attr-defined]
    (photos / "0.png").unlink()
    builder.start(photos, "cluster-clip:4", "RN-mini")  # a folder that has changed takes its own place
    assert wait(builder).name == "Pictures: Cluster-CLIP 4"
    assert len(library.searcher("Pictures: Cluster-CLIP 4").search("dog", 10).hits) == 5
    assert len(library.names) == 2


def test_what_was_built_is_there_after_a_restart(library: Library, photos: Path, tmp_path: Path) -> None:
    builder = Builder(library)
    builder.start(photos, "clip", "RN-mini")
    assert wait(builder).name == "Pictures: CLIP"
    searcher = library.searcher("Pictures: CLIP")
    library.add_remembered()  # what is open stays open
    assert library.searcher("Pictures: CLIP") is searcher

    restarted = Library(weights="lost.safetensors", image_root=tmp_path)  # of other indexes
    restarted.add_remembered()
    assert restarted.names == ("Pictures: CLIP",)
    again = restarted.searcher("Pictures: CLIP")
    assert (len(again.index.images), again.image_root) == (6, photos)

    (photos / "0.png").unlink()
    folder_index(photos, again.method, progress=False)
    restarted.reopen("Pictures: CLIP")
    assert len(restarted.searcher("Pictures: CLIP").index.images) == 5
    assert restarted.searcher("Pictures: CLIP").encoder is again.encoder
    assert len(again.index.search(again.index.embeddings("0.png")[:1], 9)[0]) == 6  # who has the old one keeps it

    (searcher.index.path / "manifest.json").write_text("{")
    damaged = Library()
    damaged.add_remembered()
    assert damaged.names == ()


def test_stopped_and_gone_on_with_while_others_search(
    library: Library, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = Builder(library)
    reached, go_on = threading.Event(), threading.Event()
    original = Builder._watch

    def watch(self: Builder, done: int, total: int) -> None:
        original(self, done, total)
        if done == 3:
            reached.set()
            assert go_on.wait(PATIENCE_S)

    monkeypatch.setattr(Builder, "_watch", watch)
    builder.start(photos, "clip", "RN-mini")
    assert reached.wait(PATIENCE_S)
    assert builder.state == BuildState(running=True, done=3, total=7, message="embedding")
    assert library.searcher(library.default).search("dog", 2).hits  # others search on
    with pytest.raises(UsageError, match="another folder is being indexed"):
        builder.start(photos, "clip", "RN-mini")
    builder.stop()
    go_on.set()
    state = wait(builder)
    assert (state.name, "stopped" in state.message, len(library.names)) == (None, True, 1)
    builder.start(photos, "clip", "RN-mini")
    assert wait(builder).name == "Pictures: CLIP"


def test_what_goes_wrong_is_told(library: Library, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = Builder(library)
    with pytest.raises(UsageError, match="not a folder"):
        builder.start(photos / "nowhere", "clip", "RN-mini")
    builder.start(photos, "clip", "no-such-model")
    assert "no-such-model" in wait(builder).message
    empty = photos / "empty"
    empty.mkdir()
    builder.start(empty, "clip", "RN-mini")
    assert "holds no image" in wait(builder).message
    monkeypatch.setattr(module, "folder_index", lambda *_, **__: 1 / 0)
    builder.start(photos, "clip", "RN-mini")
    assert "server's log" in wait(builder).message
    assert builder.state.name is None
