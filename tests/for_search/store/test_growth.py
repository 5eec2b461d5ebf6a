"""A store that is embedded again after its folder has changed: only the difference is done, and no kill loses any."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from for_model.data.folder import load_folder
from for_model.errors import DataError, StoreError
from for_search.store.embed import EmbedReport, embed
from for_search.store.merging import to_merge
from for_search.store.store import open_store
from tests.helpers.fake_method import FakeMethod, contents, make_images, noise


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Ten images in a folder, of which 04.png can't be decoded, embedded into `store`."""
    make_images(tmp_path / "images", 10, [4])
    update(tmp_path / "images")
    return tmp_path / "images"


def update(root: Path, method: FakeMethod | None = None, shard_size: int = 4, store: str = "store") -> EmbedReport:
    out = root.parent / store
    return embed(load_folder(root), method or FakeMethod(), out, batch_size=1, shard_size=shard_size, workers=1)


def photo(path: Path, seed: int) -> None:
    path.parent.mkdir(exist_ok=True)
    noise(np.random.default_rng(100 + seed)).save(path)


def touch(path: Path) -> None:
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))


def check(root: Path, store_name: str = "store") -> None:
    """The store holds exactly the folder's images, each with the embeddings of what its file shows."""
    store, method = open_store(root.parent / store_name), FakeMethod()
    store.verify()
    rows = store.embeddings()
    by_block = np.concatenate(list(store.iter_shards()))
    listed = [image.id for image in load_folder(root).images]
    assert sorted((*store.ids, *(image.id for image in store.skipped))) == listed
    for image, row, same in zip(store.images, rows, by_block, strict=True):
        pixels = method.preprocess(Image.open(root / image.path))
        expected = method.encode_images(pixels[None])[0].numpy().astype(np.float16)
        np.testing.assert_array_equal(row, expected)
        np.testing.assert_array_equal(same, expected)


@pytest.mark.parametrize(
    ("change", "embedded", "removed"),
    [
        (lambda root: photo(root / "new" / "0.png", 1), 1, 0),
        (lambda root: (root / "03.png").unlink(), 0, 1),
        (lambda root: photo(root / "03.png", 2), 1, 0),
        (lambda root: (root / "03.png").rename(root / "zoo.png"), 0, 1),
        (lambda root: shutil.copy(root / "03.png", root / "zoo.png"), 1, 0),
        (lambda root: touch(root / "03.png"), 0, 0),
        (lambda root: ((root / "03.png").rename(root / "x.png"), (root / "05.png").rename(root / "03.png")), 0, 1),
        (lambda root: photo(root / "04.png", 3), 1, 0),
        (lambda root: (root / "03.png").write_bytes(b"no image"), 0, 0),
        (lambda root: [(root / f"0{i}.png").unlink() for i in range(5)], 0, 5),
        (lambda root: [photo(root / f"n{i}.png", i) for i in range(9)], 9, 0),
    ],
    ids=(
        *("added", "removed", "overwritten", "renamed", "copied", "touched"),
        *("swapped", "mended", "damaged", "many-removed", "many-added"),
    ),
)
def test_only_the_difference_is_embedded(root: Path, change: object, embedded: int, removed: int) -> None:
    change(root)  # type: ignore[operator]
    method = FakeMethod()
    report = update(root, method)
    assert (len(method.batches), report.n_removed) == (embedded, removed)
    check(root)
    assert not (root.parent / "store" / ".partial").exists()
    before = contents(root.parent / "store")
    again = FakeMethod()
    assert update(root, again) == replace(report, n_removed=0, resumed_images=len(load_folder(root).images))
    assert (again.batches, contents(root.parent / "store")) == ([], before)


def test_a_touched_file_is_read_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(root / "03.png")
    update(root)
    monkeypatch.setattr("for_search.store.changes.sha256_of", lambda _: pytest.fail("read again"))
    assert update(root).n_images == 9


def test_a_file_that_changes_while_it_is_embedded_is_embedded_again(root: Path) -> None:
    class Racing(FakeMethod):
        def preprocess(self, image: Image.Image):  # type: ignore[no-untyped-def]
            pixels = super().preprocess(image)
            photo(root / "new.png", 8)
            touch(root / "new.png")
            return pixels

    photo(root / "new.png", 7)
    update(root, Racing())
    method = FakeMethod()
    update(root, method)
    assert method.batches == [1]
    check(root)


def test_shards_that_are_worn_or_small_are_written_again(root: Path) -> None:
    for number in range(30):
        photo(root / f"n{number:02d}.png", number)
        update(root, shard_size=8)
    store = open_store(root.parent / "store")
    assert (len(store.images), store.n_rows) == (39, 39)
    assert len(store.shards) < 12
    for number in range(20):
        (root / f"n{number:02d}.png").unlink()
    update(root, shard_size=8)
    store = open_store(root.parent / "store")
    assert len(store.images) >= 0.8 * store.n_rows
    assert {path.name for path in store.path.glob("*.npy")} == {shard.file for shard in store.shards}
    check(root)


def test_who_has_opened_a_store_keeps_what_was_there(root: Path) -> None:
    before = open_store(root.parent / "store")
    expected = before.embeddings().copy()
    reader = open_store(root.parent / "store")
    for image in before.images[1:]:
        (root / image.path).unlink()
    update(root)
    assert not (before.path / before.shards[0].file).exists()
    np.testing.assert_array_equal(reader.embeddings(), expected)


def test_a_folder_that_changes_while_a_killed_run_waits_is_gone_on_with(root: Path) -> None:
    class Stopped(FakeMethod):
        def encode_images(self, pixels):  # type: ignore[no-untyped-def]
            if len(self.batches) == 6:
                raise KeyboardInterrupt
            return super().encode_images(pixels)

    with pytest.raises(KeyboardInterrupt):
        update(root, Stopped(), store="other")
    (root / "00.png").unlink()
    photo(root / "a.png", 1)
    method = FakeMethod()
    report = update(root, method, store="other")
    assert (report.resumed_images, len(method.batches)) == (3, 6)  # 01 to 03; 04 can't be decoded
    check(root, "other")


def test_nothing_usable_any_more_keeps_the_store(root: Path) -> None:
    before = contents(root.parent / "store")
    for path in root.iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match="none of the 10 images"):
        update(root)
    assert contents(root.parent / "store") == before
    shutil.rmtree(root)
    root.mkdir()
    with pytest.raises(DataError, match="holds no image"):
        update(root)
    assert contents(root.parent / "store") == before


def test_a_damaged_shard_is_never_written_again_as_sound(root: Path) -> None:
    path = root.parent / "store" / "embeddings-00000.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (root / "00.png").unlink()
    with pytest.raises(StoreError, match="is damaged"):
        update(root)


def test_a_kill_at_every_write_of_a_growing_store_loses_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    replace_file = Path.replace
    left = 1000

    def counted(self: Path, target: Path) -> Path:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        return replace_file(self, target)

    for path in ("00.png", "02.png"):
        (root / path).unlink()
    (root / "01.png").rename(root / "z.png")
    for number in range(5):
        photo(root / f"n{number}.png", number)
    shutil.copytree(root.parent / "store", root.parent / "whole")
    old = contents(root.parent / "store")
    update(root, store="whole", shard_size=3)
    whole = contents(root.parent / "whole")
    monkeypatch.setattr(Path, "replace", counted)
    for step in range(100):
        name, left = f"store{step}", step
        shutil.copytree(root.parent / "store", root.parent / name)
        try:
            update(root, store=name, shard_size=3)
        except Killed:
            left = 1000
            manifest = (root.parent / name / "manifest.json").read_bytes()
            assert manifest in (old["manifest.json"], whole["manifest.json"])
            open_store(root.parent / name).verify()
            update(root, store=name, shard_size=3)
        else:
            break
        assert contents(root.parent / name) == whole
    # The plan, two shards and their notes, a shard written again, the timing, the table and its name, and the manifest.
    assert step == 10
    check(root, "whole")


def test_parts_that_are_worth_writing_again() -> None:
    assert to_merge([80], [80]) == []
    assert to_merge([80], [80], new=1) == []
    assert to_merge([80], [64]) == []
    assert to_merge([80], [63]) == [0]
    assert to_merge([80, 1], [80, 1], new=1) == [1]
    assert to_merge([80, 1, 1], [80, 1, 1]) == [1, 2]
    assert to_merge([80, 20], [80, 20]) == [0, 1]
    assert to_merge([80, 20], [80, 0]) == []
    assert to_merge([80, 20], [80, 20], full=50) == []
    assert to_merge([512, 512, 100, 90, 5], [512, 512, 100, 90, 5], full=256) == []
    assert to_merge([512, 512, 100, 90, 30], [512, 512, 100, 90, 30], full=256) == [2, 3, 4]
    sizes: list[int] = []
    written = 0
    for _ in range(1000):
        chosen = to_merge(sizes, sizes, new=1)
        merged = 1 + sum(sizes[i] for i in chosen)
        written += merged
        sizes = [size for i, size in enumerate(sizes) if i not in chosen] + [merged]
    assert sum(sizes) == 1000
    assert len(sizes) <= 6
    assert written < 20 * 1000
