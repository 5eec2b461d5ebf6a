"""The commands that follow a folder, with a method that computes next to nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest

from for_search import commands
from for_search.__main__ import main
from for_search.index.index_files import open_index
from for_search.library import folder_watch
from for_search.store.store import open_store
from tests.for_search.store.test_embed import FakeMethod, make_images


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

    monkeypatch.setattr(commands, "method_of", lambda *_: FakeMethod())
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
