import logging
import os
from pathlib import Path

import pytest

from for_model.data.dataset import ImageRecord
from for_model.data.folder import load_folder
from for_model.data.images import load_image
from for_model.errors import DataError, ImageError


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def ids(root: Path) -> list[object]:
    return [image.id for image in load_folder(root).images]


def test_lists_images_at_any_depth_sorted(tmp_path: Path) -> None:
    touch(tmp_path, "b.JPG", "a/z.png", "a/b/c.WebP", "a.tiff", "ä ö.jpeg", "phone.HEIC", "line\nbreak.gif")
    touch(tmp_path, "notes.txt", "jpg", ".hidden.jpg", ".git/x.jpg", "a/.thumbs/x.png", "archive.jpg.zip")
    dataset = load_folder(tmp_path)
    assert dataset.images == tuple(
        ImageRecord(name, name)
        for name in ["a.tiff", "a/b/c.WebP", "a/z.png", "b.JPG", "line\nbreak.gif", "phone.HEIC", "ä ö.jpeg"]
    )
    assert (dataset.name, dataset.split, dataset.image_root) == ("folder", "all", tmp_path)
    assert (dataset.categories, dataset.labels) == ((), {})


def test_a_hidden_root_and_a_relative_one_are_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, ".cache/photos/a.jpg")
    monkeypatch.chdir(tmp_path)
    dataset = load_folder(Path(".cache/photos"))
    assert [image.id for image in dataset.images] == ["a.jpg"]
    assert dataset.image_root == tmp_path / ".cache" / "photos"  # so that a store is good from any folder


def test_links_stay_within_the_root(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "root"
    touch(tmp_path, "outside/secret.jpg", "root/a/one.jpg", "root/.annex/two.jpg", "root/.annex/deep/three.jpg")
    (root / "out").symlink_to(tmp_path / "outside")
    (root / "out.jpg").symlink_to("../outside/secret.jpg")
    (root / "two.jpg").symlink_to(".annex/two.jpg")
    (root / "annexed").symlink_to(".annex/deep")
    (root / "again").symlink_to("a")
    (root / "a" / "up").symlink_to("..")
    (root / "loop.jpg").symlink_to("loop.jpg")
    (root / "gone.jpg").symlink_to("nothing.jpg")
    with caplog.at_level(logging.WARNING):
        assert ids(root) == ["a/one.jpg", "annexed/three.jpg", "gone.jpg", "two.jpg"]
    assert "3 symbolic links" in caplog.text
    with pytest.raises(ImageError, match="file not found"):
        load_image(root / "gone.jpg")


def test_links_to_each_other_do_not_multiply(tmp_path: Path) -> None:
    for folder in "abcdefgh":
        touch(tmp_path, f"{folder}/x.jpg")
        for other in "abcdefgh":
            (tmp_path / folder / f"to_{other}").symlink_to(tmp_path / other)
    assert ids(tmp_path) == [f"{folder}/x.jpg" for folder in "abcdefgh"]


def test_a_name_that_is_not_utf8_is_listed_and_explained(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "ok.jpg")
    with open(os.fsencode(tmp_path) + b"/caf\xe9.jpg", "wb") as stream:  # noqa: PTH123 - a Path can't hold bytes
        stream.write(b"x")
    with caplog.at_level(logging.WARNING):
        dataset = load_folder(tmp_path)
    assert [image.id for image in dataset.images] == ["caf\\xe9.jpg", "ok.jpg"]
    assert "1 file names are not valid UTF-8" in caplog.text
    with pytest.raises(ImageError, match=r"^file name is not valid UTF-8$"):
        load_image(tmp_path / dataset.images[0].path)
    with pytest.raises(ImageError, match=r"^file not found$"):
        load_image(tmp_path / "other\\xe9.jpg")


def test_what_is_no_folder_of_images(tmp_path: Path) -> None:
    touch(tmp_path, "file.jpg", "empty/readme.txt")
    with pytest.raises(DataError, match=r"missing doesn't exist: expected a folder of images"):
        load_folder(tmp_path / "missing")  # by --root, --images or from Python: the message fits all
    with pytest.raises(DataError, match=r"file.jpg is a file"):
        load_folder(tmp_path / "file.jpg")
    with pytest.raises(DataError, match=r"empty holds no image"):
        load_folder(tmp_path / "empty")


def test_an_unreadable_subfolder_is_an_error_not_a_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.jpg", "locked/b.jpg")
    scandir = os.scandir

    def guarded(path: Path) -> object:  # chmod stops nobody who is root
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(DataError, match=r"locked can't be read \(Permission denied\)"):
        load_folder(tmp_path)
