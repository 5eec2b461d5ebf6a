"""The commands' own part, with a method that computes next to nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from for_model.data.folder import load_folder
from for_search import embed_command
from for_search.__main__ import main
from for_search.index.index_files import open_index
from for_search.library import folder_watch
from for_search.store.store import open_store
from tests.helpers.fake_method import FakeMethod, make_images


def test_embed_watch_keeps_store_and_index_up_to_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "images"
    make_images(root, 5, [2])

    def follow(followed: Path, update: Callable[[], object]) -> None:
        assert followed == root
        capsys.readouterr()
        update()
        assert capsys.readouterr().out == ""  # of nothing nothing is told
        (root / "00.png").unlink()
        (root / "01.png").rename(root / "x.png")
        update()
        raise KeyboardInterrupt

    monkeypatch.setattr(embed_command, "method_of", lambda *_: FakeMethod())
    monkeypatch.setattr(folder_watch, "follow", follow)
    what = ["--dataset", "folder", "--root", str(root), "--out", str(tmp_path / "store")]
    assert main(["embed", *what, "--watch", "--index", str(tmp_path / "index")]) == 130
    assert "3 images, 1 skipped" in (told := capsys.readouterr().out)
    assert "0 embedded now, 4 kept, 2 removed" in told
    expected = ["03.png", "04.png", "x.png"]
    assert [image.id for image in open_store(tmp_path / "store").images] == expected
    assert [image.id for image in open_index(tmp_path / "index").images] == expected


def test_only_a_folder_is_followed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["embed", "--dataset", "miniscenes", "--out", str(tmp_path / "store"), "--watch"]) == 2
    assert "--watch follows a folder of images, got --dataset miniscenes" in capsys.readouterr().err


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_images(tmp_path / "images", 3)
    monkeypatch.setattr(embed_command, "method_of", lambda *_: FakeMethod())
    return tmp_path / "images"


def embed_folder(root: Path, *options: str) -> int:
    places = ["--out", str(root.parent / "store"), "--index", str(root.parent / "index")]
    return main(["embed", "--dataset", "folder", "--root", str(root), "--workers", "1", *places, *options])


def test_metadata_is_joined_and_told(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = root.parent / "table.csv"
    table.write_text("path,rating,mood\n00.png,5,fine\n00.png,4,bad\nmissing.png,1,\n")
    assert embed_folder(root, "--metadata", str(table)) == 0
    told = capsys.readouterr().out
    assert f"{table}: 2 columns for 1 of 3 images; rows of no image: 1, second rows of one: 1\n" in told
    images = open_index(root.parent / "index").images
    assert images.columns[-2:] == ("rating", "mood")
    assert images.where("rating = 5 and mood = 'fine' and width = 10").tolist() == [0]


def test_a_table_that_cannot_be_joined_is_one_line(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = root.parent / "table.csv"
    table.write_text("name\n00.png\n")
    assert embed_folder(root, "--metadata", str(table)) == 2
    error = capsys.readouterr().err
    assert "expected one named path or id" in error
    assert error.count("\n") == 1
    assert not (root.parent / "store").exists()  # before anything was embedded


def test_odd_images_are_skipped_with_their_reasons(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("L", (1, 200)).save(root / "thread.png")
    (root / "camera.NEF").write_bytes(b"II*\0")
    assert len(load_folder(root).images) == 5
    assert embed_folder(root) == 0
    assert "3 images, 2 skipped" in capsys.readouterr().out
    assert {image.id: image.reason.split(":")[0] for image in open_index(root.parent / "index").skipped} == {
        "camera.NEF": "not an image",
        "thread.png": "too narrow",
    }
