import errno
import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from for_model import files
from for_model.data.coco import load_coco
from for_model.data.dataset import Dataset, ImageRecord
from for_model.data.folder import load_folder
from for_model.data.miniscenes.scenes import write_scenes
from for_model.errors import DataError, ImageError, StoreError, UsageError
from for_model.methods.build import build_method
from for_model.methods.protocol import Method
from for_model.training.features import open_features
from for_search.store import embed as embed_module
from for_search.store.embed import embed
from for_search.store.store import open_store
from tests.helpers.fake_method import FakeMethod, contents, make_images
from tests.helpers.programs import program


def run(dataset: Dataset, out: Path, method: Method | None = None, **options: int) -> embed_module.EmbedReport:
    return embed(dataset, method or FakeMethod(), out, **{"batch_size": 3, "shard_size": 8, "workers": 2, **options})  # type: ignore[arg-type]


def test_the_fake_is_a_method() -> None:
    assert isinstance(FakeMethod(), Method)


def test_embeds_in_order_and_records_what_it_skips(tmp_path: Path) -> None:
    broken = [0, 5, *range(8, 16), 19]  # all of the second shard among them
    dataset = make_images(tmp_path / "images", 20, broken)
    method = FakeMethod()
    report = run(dataset, tmp_path / "store", method)
    assert (report.n_images, report.n_skipped, report.resumed_images) == (9, 11, 0)
    assert report.seconds > 0
    assert report.images_per_second == pytest.approx(9 / report.seconds)
    assert method.batches == [3, 3, 3]  # shards of 6, 0 and 3 usable images
    store = open_store(tmp_path / "store")
    store.verify()
    assert store.ids == tuple(f"{i:02d}.png" for i in range(20) if i not in broken)
    assert [image.id for image in store.skipped] == [f"{i:02d}.png" for i in broken]
    reasons = {image.reason for image in store.skipped}
    assert reasons == {"empty file", "not an image: unknown format or damaged header"}
    assert [shard.file for shard in store.shards] == ["embeddings-00000.npy", "embeddings-00002.npy"]
    assert {*contents(store.path)} == {*(shard.file for shard in store.shards), store.images.path.name, "manifest.json"}
    assert (store.dataset, store.split, store.image_root) == ("folder", "all", tmp_path / "images")


def test_each_row_is_its_images(tmp_path: Path) -> None:
    dataset = make_images(tmp_path / "images", 20, [0, 5, 6])
    run(dataset, tmp_path / "store", batch_size=1)
    store, method = open_store(tmp_path / "store"), FakeMethod()
    for image, row in zip(store.images, store.embeddings(), strict=True):
        pixels = method.preprocess(Image.open(store.image_path(image)))
        expected = method.encode_images(pixels[None])[0].numpy().astype(np.float16)
        np.testing.assert_array_equal(row, expected)


def test_integer_ids_stay_integers(tmp_path: Path) -> None:
    plain = make_images(tmp_path / "images", 4, [1])
    images = tuple(ImageRecord(10 * i, image.path) for i, image in enumerate(plain.images))
    dataset = replace(plain, name="coco", split="val2017", images=(*images, ImageRecord(99, "gone.jpg")))
    run(dataset, tmp_path / "store", shard_size=2)
    store = open_store(tmp_path / "store")
    assert store.ids == (0, 20, 30)
    assert [(image.id, image.reason) for image in store.skipped] == [(10, "empty file"), (99, "file not found")]


def test_workers_do_not_change_bytes(tmp_path: Path) -> None:
    dataset = make_images(tmp_path / "images", 20, [3, 4])
    for workers in (1, 4):
        run(dataset, tmp_path / f"store{workers}", workers=workers)
    assert contents(tmp_path / "store1") == contents(tmp_path / "store4")


def test_a_finished_store_is_left_alone(tmp_path: Path) -> None:
    dataset = make_images(tmp_path / "images", 10, [1])
    first = run(dataset, tmp_path / "store")
    (tmp_path / "store" / ".partial").mkdir()  # as a run killed just after its manifest leaves it
    method = FakeMethod()
    again = run(dataset, tmp_path / "store", method, batch_size=5, shard_size=3)
    assert method.batches == []
    assert again == replace(first, resumed_images=10)
    assert not (tmp_path / "store" / ".partial").exists()
    (tmp_path / "store" / "timing.json").unlink()
    assert np.isnan(run(dataset, tmp_path / "store").seconds)


def test_a_finished_store_of_something_else_is_refused(tmp_path: Path) -> None:
    dataset = make_images(tmp_path / "images", 10)
    run(dataset, tmp_path / "store")
    before = contents(tmp_path / "store")
    for other, method, what in [
        (dataset, FakeMethod(weights_sha256="cd" * 32), "another method:"),
        (dataset, FakeMethod(settings={}), "another method:"),
        (replace(dataset, split="x"), FakeMethod(), "another dataset:"),
        (replace(dataset, image_root=tmp_path), FakeMethod(), "another image folder:"),
        (replace(dataset, name="x", image_root=tmp_path), FakeMethod(), "another dataset and image folder:"),
    ]:
        with pytest.raises(StoreError, match=what):
            run(other, tmp_path / "store", method)
    assert contents(tmp_path / "store") == before


def test_an_unfinished_store_of_something_else_is_refused(tmp_path: Path) -> None:
    dataset = make_images(tmp_path / "images", 10)
    with pytest.raises(RuntimeError):
        run(dataset, tmp_path / "store", Failing(after=2), shard_size=3)
    for other, method in [(replace(dataset, split="x"), FakeMethod()), (dataset, FakeMethod(image_size=9))]:
        with pytest.raises(StoreError, match="unfinished store of another method or dataset"):
            run(other, tmp_path / "store", method, shard_size=3)
    assert run(dataset, tmp_path / "store", shard_size=3).resumed_images == 6


def test_a_folder_of_other_files_is_never_written_to(tmp_path: Path) -> None:
    dataset = make_images(tmp_path / "images", 3)
    with pytest.raises(StoreError, match="holds files that are not an embedding store's"):
        run(dataset, tmp_path / "images")
    with pytest.raises(StoreError, match="is a file"):
        run(dataset, tmp_path / "images" / "00.png")
    assert len(list((tmp_path / "images").iterdir())) == 3
    (tmp_path / "empty").mkdir()
    assert run(dataset, tmp_path / "empty").n_images == 3


class Failing(FakeMethod):
    """Raises at the batch after the first `after`, with `error`."""

    def __init__(self, after: int, error: BaseException | None = None) -> None:
        super().__init__()
        self._left, self._error = after, error or RuntimeError("out of memory")

    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        if self._left == 0:
            raise self._error
        self._left -= 1
        return super().encode_images(pixels)


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt(), OSError(errno.EIO, "of the method")])
def test_any_error_of_the_method_comes_through_and_can_be_resumed(tmp_path: Path, error: BaseException) -> None:
    dataset = make_images(tmp_path / "images", 20, [2])
    run(dataset, tmp_path / "whole")
    with pytest.raises(type(error)) as caught:
        run(dataset, tmp_path / "store", Failing(4, error))
    assert caught.value is error
    with pytest.raises(StoreError, match="is incomplete: run the same embed command again"):
        open_store(tmp_path / "store")
    assert not any(thread.name.startswith("decode") for thread in threading.enumerate())
    method = FakeMethod()
    report = run(dataset, tmp_path / "store", method)
    assert (report.resumed_images, report.n_images, report.n_skipped) == (8, 19, 1)
    assert method.batches == [3, 3, 2, 3, 1]  # the same batches as in one go
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


def test_a_workers_unexpected_error_comes_through(tmp_path: Path) -> None:
    class Broken(FakeMethod):
        def preprocess(self, image: Image.Image) -> torch.Tensor:
            raise ZeroDivisionError

    dataset = make_images(tmp_path / "images", 20)
    with pytest.raises(ZeroDivisionError):
        run(dataset, tmp_path / "store", Broken())
    assert not any(thread.name.startswith("decode") for thread in threading.enumerate())


def test_an_image_that_the_method_refuses_is_skipped(tmp_path: Path) -> None:
    class Picky(FakeMethod):
        def preprocess(self, image: Image.Image) -> torch.Tensor:
            raise ImageError("too thin")

    with pytest.raises(DataError, match=r"none of the 3 images in .* \(the first: 00\.png: too thin\)"):
        run(make_images(tmp_path / "images", 3), tmp_path / "store", Picky())


@pytest.mark.parametrize("bad", ["nan", "long", "shape"])
def test_a_method_that_breaks_its_promise_is_found_out(tmp_path: Path, bad: str) -> None:
    class Bad(FakeMethod):
        def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
            good = super().encode_images(pixels)
            return {"nan": good * torch.nan, "long": good * 1.1, "shape": good[:, :1]}[bad]

    message = {"nan": "not finite", "long": "expected unit length", "shape": r"shape \[3, 1, 6\], expected \[3, 2, 6\]"}
    with pytest.raises(StoreError, match=message[bad]):
        run(make_images(tmp_path / "images", 3), tmp_path / "store", Bad())


def test_nothing_usable_leaves_nothing_behind(tmp_path: Path) -> None:
    dataset = make_images(tmp_path / "images", 10, range(10))
    with pytest.raises(DataError, match="none of the 10 images"):
        run(dataset, tmp_path / "store")
    assert not (tmp_path / "store").exists()
    with pytest.raises(DataError, match="has no images"):
        run(replace(dataset, images=()), tmp_path / "store")
    Image.new("RGB", (4, 4)).save(tmp_path / "images" / "03.png")  # the next run looks again
    assert run(dataset, tmp_path / "store").n_images == 1


def test_wrong_sizes(tmp_path: Path) -> None:
    dataset = make_images(tmp_path / "images", 1)
    for option in ("batch_size", "shard_size", "workers"):
        with pytest.raises(UsageError, match=f"{option.replace('_', ' ')} must be at least 1, got 0"):
            run(dataset, tmp_path / "store", **{option: 0})
    assert not (tmp_path / "store").exists()


def test_a_full_disk_is_explained_and_can_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make_images(tmp_path / "images", 20)
    run(dataset, tmp_path / "whole")

    def full(folder: Path, number: int, embeddings: object) -> object:
        if number == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_shard(folder, number, embeddings)  # type: ignore[arg-type]

    write_shard = embed_module.write_shard
    with monkeypatch.context() as patch:
        patch.setattr(embed_module, "write_shard", full)
        with pytest.raises(StoreError, match=r"can't be written \(No space left on device\)"):
            run(dataset, tmp_path / "store")
    assert run(dataset, tmp_path / "store").resumed_images == 8
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


def test_an_out_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make_images(tmp_path / "images", 1)
    with pytest.raises(StoreError, match=r"can't be written \(Not a directory\)"):
        run(dataset, tmp_path / "images" / "00.png" / "store")

    def denied(*_: object, **__: object) -> None:  # chmod stops nobody who is root
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(StoreError, match=r"can't be written \(Permission denied\): check its disk space and permiss"):
        run(dataset, tmp_path / "store")


def test_two_processes_cannot_write_one_store(tmp_path: Path) -> None:
    dataset = make_images(tmp_path / "images", 4)

    class Nested(FakeMethod):
        def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
            with pytest.raises(StoreError, match="is being written by another process"):
                run(dataset, tmp_path / "store")
            return super().encode_images(pixels)

    assert run(dataset, tmp_path / "store", Nested()).n_images == 4


def test_a_lost_shard_is_done_again(tmp_path: Path) -> None:
    dataset = make_images(tmp_path / "images", 20)
    run(dataset, tmp_path / "whole")
    with pytest.raises(RuntimeError):
        run(dataset, tmp_path / "store", Failing(6))
    (tmp_path / "store" / "embeddings-00000.npy").unlink()
    (tmp_path / "store" / ".partial" / "shard-00001.json").write_text("{")
    assert run(dataset, tmp_path / "store").resumed_images == 0
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


def test_seconds_add_up_over_runs(tmp_path: Path) -> None:
    dataset = make_images(tmp_path / "images", 20)
    with pytest.raises(RuntimeError):
        run(dataset, tmp_path / "store", Failing(3))
    note = json.loads((tmp_path / "store" / ".partial" / "shard-00000.json").read_text())
    report = run(dataset, tmp_path / "store")
    assert report.seconds > note["seconds"] > 0
    timing = json.loads((tmp_path / "store" / "timing.json").read_text())
    assert timing == {"seconds": report.seconds, "n_images": 20, "images_per_second": 20 / report.seconds}


def test_progress_stays_off_what_is_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(make_images(tmp_path / "images", 3), tmp_path / "store")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_a_watcher_sees_every_image_and_can_stop(tmp_path: Path) -> None:
    dataset = make_images(tmp_path / "images", 20, broken=[3])
    seen: list[tuple[int, int]] = []

    def watch(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 13 and len(seen) < 20:
            raise KeyError("stopped")

    with pytest.raises(KeyError):
        embed(dataset, FakeMethod(), tmp_path / "out", batch_size=3, shard_size=8, watch=watch)
    assert seen == [(done, 20) for done in range(14)]
    report = embed(dataset, FakeMethod(), tmp_path / "out", batch_size=3, shard_size=8, watch=watch)
    assert seen[14:] == [(done, 20) for done in range(8, 20)]  # from the last shard that was finished
    assert (report.n_images, report.resumed_images) == (19, 8)


def test_temporary_files_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    dataset = make_images(tmp_path / "images", 20)
    with pytest.raises(RuntimeError):
        run(dataset, tmp_path / "store", Failing(4))
    for name in (
        ".embeddings-00001.npy.x1.tmp",
        "images-new.sqlite",
        ".images-new.sqlite.x4.tmp",
        ".manifest.json.x2.tmp",
        ".partial/.shard-00001.json.x3.tmp",
    ):
        (tmp_path / "store" / name).write_bytes(b"half")
    run(dataset, tmp_path / "store")
    store = open_store(tmp_path / "store")
    assert {*contents(store.path)} == {
        *(f"embeddings-0000{i}.npy" for i in range(3)),
        *store.file_names,
        "manifest.json",
    }


# Stands still after 20 batches, so that it can't end before it is killed.
_EMBED = """
import sys, time
from pathlib import Path
from tests.helpers.fake_method import FakeMethod
from for_search.store.embed import embed
from for_model.data.folder import load_folder

class Stopping(FakeMethod):
    def encode_images(self, pixels):
        time.sleep(600 if len(self.batches) == 20 else 0)
        return super().encode_images(pixels)

images, out = map(Path, sys.argv[1:])
embed(load_folder(images), Stopping(), out, batch_size=3, shard_size=8, workers=2)
"""


@pytest.mark.slow
def test_kill_9_then_resume_gives_the_same_bytes(tmp_path: Path) -> None:
    dataset = make_images(tmp_path / "images", 99, [0, 13, 50, 51])
    run(dataset, tmp_path / "whole")
    with program(_EMBED, str(dataset.image_root), str(tmp_path / "store")) as child:
        while len(list((tmp_path / "store" / ".partial").glob("shard-*.json"))) < 4:
            assert not child.ended(), child.said()
            time.sleep(0.002)
        child.kill()
    assert not (tmp_path / "store" / "manifest.json").exists()
    report = run(dataset, tmp_path / "store")
    assert 32 <= report.resumed_images < 99
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


def test_a_kill_at_every_single_write_can_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    dataset = make_images(tmp_path / "images", 5, [4])
    run(dataset, tmp_path / "whole", shard_size=2)
    replace_file = Path.replace
    countdown = 0

    def counted(self: Path, target: Path) -> Path:
        nonlocal countdown
        countdown -= 1
        if countdown < 0:
            raise Killed
        return replace_file(self, target)

    monkeypatch.setattr(Path, "replace", counted)
    kills = 0
    for step in range(100):
        out, countdown = tmp_path / f"store{step}", step
        try:
            run(dataset, out, shard_size=2)
        except Killed:
            kills += 1
            countdown = 100
            run(dataset, out, shard_size=2)
        assert contents(out) == contents(tmp_path / "whole")
        if kills <= step:
            break
    assert kills == 10  # the plan, two shards, three notes, the timing, the table and its name, and the manifest


def test_a_folder_with_everything_wrong(tmp_path: Path) -> None:
    images = tmp_path / "images"
    make_images(images, 3)
    Image.new("CMYK", (9, 9)).save(images / "cmyk.jpg")
    Image.new("RGBA", (9, 9)).save(images / "clear.PNG")
    Image.new("I;16", (9, 9)).save(images / "deep.tif")
    Image.new("P", (9, 9)).save(images / "moving.gif", save_all=True, append_images=[Image.new("P", (9, 9), 1)])
    (images / "cut.jpg").write_bytes((images / "cmyk.jpg").read_bytes()[:-200])
    (images / "empty.jpg").touch()
    (images / "page.jpg").write_text("<html>")
    (images / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (images / "camera.NEF").write_bytes((images / "deep.tif").read_bytes())
    Image.new("L", (1, 10_000)).save(images / "thread.png")
    (images / "gone.jpg").symlink_to("nothing.jpg")
    os.mkfifo(images / "pipe.jpg")
    (images / "sub.jpg").mkdir()
    Path(os.fsdecode(os.fsencode(images) + b"/caf\xe9.png")).write_bytes((images / "00.png").read_bytes())
    report = run(load_folder(images), tmp_path / "store")
    store = open_store(tmp_path / "store")
    assert store.ids == ("00.png", "01.png", "02.png", "clear.PNG", "cmyk.jpg", "deep.tif", "moving.gif")
    assert {image.id: image.reason for image in store.skipped} == {
        "caf\\xe9.png": "file name is not valid UTF-8",
        "camera.NEF": "not an image: camera RAW can't be read (export it as JPEG)",
        "cut.jpg": "truncated",
        "empty.jpg": "empty file",
        "gone.jpg": "file not found",
        "page.jpg": "not an image: unknown format or damaged header",
        "phone.heic": "not an image: unknown format or damaged header",
        "pipe.jpg": "not an image: not a regular file",
        "thread.png": "too narrow: 1x10000 pixels (limit 1:50)",
    }
    assert (report.n_images, report.n_skipped) == (7, 9)
    assert all(shard.sha256 == files.sha256_file(store.path / shard.file) for shard in store.shards)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["clip", "cluster-clip:3"])
def test_kept_feature_maps_give_the_same_bytes_as_the_images(tmp_path: Path, method: str) -> None:
    write_scenes(tmp_path / "scenes", {"dev": 40}, size=96)
    (tmp_path / "scenes" / "dev" / "000000000037.jpg").write_bytes(b"no image")
    dataset = load_coco(tmp_path / "scenes", "dev")
    built = build_method(method, "RN-mini", image_size=96, device="cpu")
    features = open_features(dataset, built.backbone, 1.0, tmp_path / "features", exact=True)
    made = embed(dataset, built, tmp_path / "images", progress=False)
    kept = embed(dataset, built, tmp_path / "kept", progress=False, features=features)
    assert (made.n_images, made.n_skipped) == (kept.n_images, kept.n_skipped) == (39, 1)
    assert open_store(tmp_path / "kept").skipped == open_store(tmp_path / "images").skipped
    for name in ("embeddings-00000.npy", "manifest.json"):
        assert (tmp_path / "kept" / name).read_bytes() == (tmp_path / "images" / name).read_bytes()
