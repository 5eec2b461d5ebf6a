import logging
import shutil
from pathlib import Path

import pytest

from for_model.data.miniscenes import scenes as miniscenes
from for_model.files import cache_dir
from for_model.methods.clip_method import ClipMethod
from for_model.methods.protocol import LazyMethod
from for_search.index.index_files import open_index
from for_search.library import built_in_index as module
from for_search.library.built_in_index import default_index

N_SCENES = 6


@pytest.fixture(autouse=True)
def _small_world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(miniscenes, "DEFAULT_COUNTS", {"val": N_SCENES})


def _forbid(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for name in names:
        monkeypatch.setattr(name, lambda *_, **__: pytest.fail("made again"))


def test_made_once_and_then_found(
    method: ClipMethod, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "for_search.library.built_in_index")
    path = default_index(LazyMethod.of(method))
    assert path.parent == cache_dir() / "indexes"
    assert "this happens once" in caplog.text
    index = open_index(path)
    assert (index.dataset, index.split, len(index.images)) == ("miniscenes", "val", N_SCENES)
    assert index.info == method.info
    _forbid(monkeypatch, "for_search.store.embed.embed", "for_search.library.built_in_index.build_index")
    assert default_index(LazyMethod.of(method)) == path


def _stopped(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def _start_stopped_in(monkeypatch: pytest.MonkeyPatch, place: object, name: str, method: ClipMethod) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(place, name, _stopped)
        with pytest.raises(KeyboardInterrupt):
            default_index(LazyMethod.of(method))


def test_a_start_that_was_stopped_goes_on(method: ClipMethod, monkeypatch: pytest.MonkeyPatch) -> None:
    _start_stopped_in(monkeypatch, module, "build_index", method)
    with monkeypatch.context() as patched:
        patched.setattr(method, "encode_images", _stopped)  # the embeddings are done
        assert len(open_index(default_index(LazyMethod.of(method))).images) == N_SCENES


def test_a_start_stopped_while_it_embeds_goes_on(method: ClipMethod, monkeypatch: pytest.MonkeyPatch) -> None:
    _start_stopped_in(monkeypatch, method, "encode_images", method)
    assert len(open_index(default_index(LazyMethod.of(method))).images) == N_SCENES


@pytest.mark.parametrize("damage", ["a byte of the vectors", "the manifest", "another file", "a file for a folder"])
def test_a_damaged_index_is_made_again(method: ClipMethod, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    path = default_index(LazyMethod.of(method))
    (file,) = path.glob("segment-*/index.faiss")
    if damage == "a byte of the vectors":
        vectors = bytearray(file.read_bytes())
        vectors[-1] ^= 1
        file.write_bytes(vectors)
    elif damage == "the manifest":
        (path / "manifest.json").write_text("{")
    elif damage == "another file":
        file.rename(path / "moved")
    else:
        shutil.rmtree(path)
        path.write_text("")
    with monkeypatch.context() as patched:
        patched.setattr(method, "encode_images", lambda _: pytest.fail("the embeddings are sound"))
        assert default_index(LazyMethod.of(method)) == path
    assert len(open_index(path, verify="full").images) == N_SCENES


@pytest.mark.parametrize("file", ["manifest.json", "embeddings-00000.npy"])
def test_a_damaged_store_is_made_again(method: ClipMethod, file: str) -> None:
    path = default_index(LazyMethod.of(method))
    (path / "manifest.json").unlink()
    damaged = next((cache_dir() / "stores").iterdir()) / file
    content = bytearray(damaged.read_bytes())
    content[-2] ^= 1
    damaged.write_bytes(content)
    assert default_index(LazyMethod.of(method)) == path
    assert len(open_index(path, verify="full").images) == N_SCENES


def test_a_cache_that_has_moved_gives_the_images_where_they_are(
    method: ClipMethod, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    default_index(LazyMethod.of(method))
    (tmp_path / "cache").rename(tmp_path / "moved")
    monkeypatch.setenv("FOR_CACHE", str(tmp_path / "moved"))
    index = open_index(default_index(LazyMethod.of(method)))
    assert (Path(index.image_root) / index.images[0].path).is_file()
