"""A folder of photographs: indexed once, opened at once afterwards, indexed again when it changes."""

import os
from pathlib import Path

import numpy as np
import pytest

from for_app import __main__ as page_command
from for_model.backbones import photo_packages
from for_model.errors import DataError
from for_model.methods.clip_method import ClipMethod
from for_search.index.index_files import open_index
from for_search.library.folder_index import folder_index
from for_search.query.searcher import load_searcher
from tests.helpers.fake_method import noise


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three images, and a cache of their own."""
    monkeypatch.setenv("FOR_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "Pictures of mine"
    root.mkdir()
    generator = np.random.default_rng(0)
    for number in range(3):
        noise(generator).save(root / f"{number}.png")
    return root


def test_made_once_and_then_opened(folder: Path, method: ClipMethod, monkeypatch: pytest.MonkeyPatch) -> None:
    index = folder_index(folder, method)
    assert [image.path for image in open_index(index).images] == ["0.png", "1.png", "2.png"]
    assert sorted(path.name for path in folder.iterdir()) == ["0.png", "1.png", "2.png"]
    monkeypatch.setattr(method, "encode_images", lambda _: pytest.fail("embedded again"))
    assert folder_index(folder, method) == index
    assert len(load_searcher(index, method=method).search("a dog", 2).hits) == 2


@pytest.mark.parametrize("change", ["added", "removed", "overwritten", "damaged"])
def test_of_a_changed_folder_only_the_difference_is_embedded(
    folder: Path, method: ClipMethod, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    first = folder_index(folder, method)
    embedded = []
    encode = method.encode_images
    monkeypatch.setattr(method, "encode_images", lambda pixels: (embedded.append(len(pixels)), encode(pixels))[1])
    if change == "added":
        noise(np.random.default_rng(1)).save(folder / "new.png")
    elif change == "removed":
        (folder / "0.png").unlink()
    elif change == "overwritten":
        before = (folder / "1.png").stat()
        noise(np.random.default_rng(2)).save(folder / "1.png")
        os.utime(folder / "1.png", ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    else:
        (folder / "1.png").write_bytes(b"no image")
    assert folder_index(folder, method) == first
    expected = {"added": (4, [1]), "removed": (2, []), "overwritten": (3, [1]), "damaged": (2, [])}
    assert (len(open_index(first).images), embedded) == expected[change]


def test_a_damaged_index_is_made_again(folder: Path, method: ClipMethod) -> None:
    index = folder_index(folder, method)
    (index / "manifest.json").write_text("{")
    assert len(open_index(folder_index(folder, method)).images) == 3


def test_no_images_is_an_error(tmp_path: Path, method: ClipMethod) -> None:
    with pytest.raises(DataError, match="holds no image"):
        folder_index(tmp_path, method)


def test_the_app_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(photo_packages, "find_spec", lambda _: None)
    assert page_command.main(["--images", str(folder), "--port", "47123"]) == 2
    assert "make install-photos" in capsys.readouterr().err
    assert page_command.main(["--images", str(folder), "--index", str(folder), "--port", "47123"]) == 2
    assert "leave --index" in capsys.readouterr().err
