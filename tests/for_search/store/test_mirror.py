"""Images and stores behind URLs: `file://` and `memory://` stand for object stores, to fsspec all are alike."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from for_model.data.images import IMAGE_SUFFIXES
from for_model.errors import DataError, StoreError
from for_model.remote import RemoteFolder, fetch_images, location
from for_search.__main__ import main
from for_search.store.embed import embed
from for_search.store.mirror import StoreMirror, local_store
from for_search.store.store import open_store
from tests.helpers.fake_method import FakeMethod, contents, make_images

URLS = ("memory://bucket/store", "file://{}/bucket/store")


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("FOR_CACHE", str(tmp_path / "cache"))
    yield
    fsspec.filesystem("memory").store.clear()


def run(dataset: Any, url: str, method: FakeMethod | None = None) -> StoreMirror:
    mirror = StoreMirror(url)
    embed(dataset, method or FakeMethod(), mirror.pull(), batch_size=2, shard_size=3, workers=1, wrote=mirror.push)
    mirror.finish()
    return mirror


class Stopping(FakeMethod):
    def encode_images(self, pixels: Any) -> Any:
        if len(self.batches) == 5:
            raise KeyboardInterrupt
        return super().encode_images(pixels)


@pytest.mark.parametrize("url", URLS)
def test_a_store_is_mirrored_and_gone_on_with_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    url = url.format(tmp_path)
    dataset = make_images(tmp_path / "images", 12, [4])
    embed(dataset, FakeMethod(), tmp_path / "whole", batch_size=2, shard_size=3, workers=1)
    with pytest.raises(KeyboardInterrupt):
        run(dataset, url, Stopping())
    with pytest.raises(DataError, match="holds no finished store"):
        local_store(url)
    monkeypatch.setenv("FOR_CACHE", str(tmp_path / "another machine"))
    method = FakeMethod()
    mirror = run(dataset, url, method)
    assert sum(method.batches) < 11  # what was finished isn't done again
    assert contents(mirror.folder) == contents(tmp_path / "whole")
    monkeypatch.setenv("FOR_CACHE", str(tmp_path / "a third"))
    there = {name for name in RemoteFolder(url).files() if name != "timing.json"}
    assert there == set(contents(tmp_path / "whole"))  # nothing is left over
    assert contents(local_store(url)) == contents(tmp_path / "whole")
    open_store(local_store(url)).verify()


def test_a_grown_store_is_mirrored_and_an_unchanged_one_left_alone(tmp_path: Path) -> None:
    url = URLS[0]
    run(make_images(tmp_path / "images", 12), url)
    before = dict(fsspec.filesystem("memory").store)
    run(_again(tmp_path), url)
    assert all(before[name] is file for name, file in fsspec.filesystem("memory").store.items())
    for name in ("00.png", "11.png"):
        (tmp_path / "images" / name).unlink()
    mirror = run(_again(tmp_path), url)
    assert set(RemoteFolder(url).files()) == {*contents(mirror.folder), "timing.json"}
    assert open_store(local_store(url)).ids[0] == "01.png"


def _again(tmp_path: Path) -> Any:
    from for_model.data.folder import load_folder

    return load_folder(tmp_path / "images")


def test_what_another_machine_wrote_meanwhile_is_never_replaced(tmp_path: Path) -> None:
    dataset = make_images(tmp_path / "images", 4)
    mirror = StoreMirror(URLS[0])
    embed(dataset, FakeMethod(), mirror.pull(), workers=1)
    RemoteFolder(URLS[0]).put(tmp_path / "images" / "00.png", "manifest.json")
    with pytest.raises(StoreError, match="has been written by another machine meanwhile"):
        mirror.finish()


def test_a_folder_of_other_files_is_never_written_to(tmp_path: Path) -> None:
    make_images(tmp_path / "images", 2)
    with pytest.raises(StoreError, match="holds files that are not an embedding store's"):
        StoreMirror(f"file://{tmp_path}/images").pull()


def test_images_of_a_url_are_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    fetch = RemoteFolder.fetch

    def recorded(self: RemoteFolder, names: Any, *rest: Any) -> None:
        fetched.extend(names)
        fetch(self, names, *rest)

    monkeypatch.setattr(RemoteFolder, "fetch", recorded)
    make_images(tmp_path / "images", 5, [1])
    (tmp_path / "images" / "notes.txt").write_text("no image")
    url, folder = f"file://{tmp_path}/images", tmp_path / "copy"
    assert fetch_images(url, folder, IMAGE_SUFFIXES) == len(fetched) == 5
    (tmp_path / "images" / "00.png").unlink()
    (tmp_path / "images" / "02.png").write_bytes(b"changed")
    fetched.clear()
    assert fetch_images(url, folder, IMAGE_SUFFIXES) == 4
    assert fetched == ["02.png"]
    assert sorted(path.name for path in folder.iterdir()) == ["01.png", "02.png", "03.png", "04.png"]
    assert (folder / "02.png").read_bytes() == b"changed"
    with pytest.raises(DataError, match="holds no image"):
        fetch_images("memory://nothing", folder, IMAGE_SUFFIXES)


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("s3://key:secret@bucket/photos", "leave them out, and give credentials by the environment"),
        ("https://host/photos?sig=secret", "leave them out, and give credentials by the environment"),
        ("nonsense://bucket", "no URL that can be read"),
        ("oss://bucket/photos", "needs a package that isn't installed"),
    ],
)
def test_wrong_urls_get_one_line_without_a_key(url: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["embed", "--dataset", "folder", "--root", url, "--out", "memory://x"]) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1
    assert "secret" not in error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError("Access Denied"), "no permission"),
        (type("NoCredentialsError", (Exception,), {})("Unable to locate credentials"), "no credentials that work"),
        (TimeoutError("with hunter2hunter2"), r"can't be used \(TimeoutError: with \*\*\*\)"),
    ],
)
def test_errors_of_the_other_side_get_one_line_without_a_key(
    error: Exception, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "find", fails)
    with pytest.raises(DataError, match=line) as caught:
        RemoteFolder("memory://bucket").files()
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_commands_take_urls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_images(tmp_path / "images", 5, [2])
    images, store = f"file://{tmp_path}/images", f"file://{tmp_path}/bucket/store"
    options = ["--dataset", "folder", "--root", images, "--weights", "random", "--method", "clip"]
    assert main(["embed", *options, "--out", store]) == 0
    assert f"{store}: 4 images, 1 skipped" in capsys.readouterr().out
    assert main(["verify", store]) == 0
    assert main(["index", store, "--out", str(tmp_path / "index")]) == 0
    assert main(["index", store, "--out", str(tmp_path / "compact"), "--engine", "compact"]) == 0
    manifest = json.loads((tmp_path / "bucket" / "store" / "manifest.json").read_text())
    assert Path(manifest["image_root"]).is_dir()
    assert main(["embed", *options, "--out", "memory://x", "--watch"]) == 2
    assert "a URL is for --dataset folder alone" in capsys.readouterr().err


def test_a_path_is_no_url() -> None:
    assert location("store/a") == Path("store/a")
    assert location("s3://bucket/a") == "s3://bucket/a"
