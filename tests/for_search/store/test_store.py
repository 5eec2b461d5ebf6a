import contextlib
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from for_model.data.dataset import ImageRecord
from for_model.errors import StoreError, UsageError
from for_model.files import sha256_file
from for_model.methods.protocol import MethodInfo
from for_search.store.changes import Stamp
from for_search.store.metadata import Metadata
from for_search.store.shards import write_shard
from for_search.store.store import SkippedImage, Store, check_store, open_store, write_store
from tests.helpers.store_making import change_manifest

INFO = MethodInfo("dense-clip", "tiny", "random", "ab" * 32, 3, 8, 32, {"iterations": 5})


def units(n_images: int, seed: int = 0) -> NDArray[np.float32]:
    values = np.random.default_rng(seed).standard_normal((n_images, 3, 8)).astype(np.float32)
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Five images in shards 0 and 2; shard 1 held skipped images only."""
    folder = tmp_path / "store"
    shards = (write_shard(folder, 0, units(5)[:3]), write_shard(folder, 2, units(5)[3:]))
    images = tuple(ImageRecord(i, f"ä/{i}.jpg") for i in (1, 2, 4, 8, 16))
    skipped = (SkippedImage(5, "5.jpg", "empty file"), SkippedImage(6, "6.jpg", "truncated"))
    write_store(folder, INFO, "coco", "val2017", Path("/data/val2017"), images, skipped, shards)
    return open_store(folder)


def test_round_trip(store: Store) -> None:
    opened = open_store(store.path)
    assert (opened.info, opened.shards, opened.sha256) == (store.info, store.shards, store.sha256)
    assert [image.path for image in opened.images] == [f"ä/{i}.jpg" for i in (1, 2, 4, 8, 16)]
    assert [(skip.id, skip.reason) for skip in opened.skipped] == [(5, "empty file"), (6, "truncated")]
    assert opened.ids == (1, 2, 4, 8, 16)
    assert opened.image_path(opened.images[0]) == Path("/data/val2017/ä/1.jpg")
    embeddings = opened.embeddings()
    assert (embeddings.dtype, embeddings.shape) == (np.float16, (5, 3, 8))
    np.testing.assert_array_equal(embeddings, units(5).astype(np.float16))
    opened.verify()


def test_shards_are_mapped_in_order_and_read_only(store: Store) -> None:
    shards = list(open_store(store.path).iter_shards())
    assert all(isinstance(shard, np.memmap) and not shard.flags.writeable for shard in shards)
    np.testing.assert_array_equal(np.concatenate(shards), store.embeddings())


def test_a_store_can_be_moved(store: Store, tmp_path: Path) -> None:
    moved = shutil.move(store.path, tmp_path / "elsewhere")
    np.testing.assert_array_equal(open_store(Path(moved)).embeddings(), units(5).astype(np.float16))


def test_what_is_not_a_store(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"missing doesn't exist"):
        open_store(tmp_path / "missing")
    with pytest.raises(StoreError, match=r"is not an embedding store, it has no manifest\.json"):
        open_store(tmp_path)
    with pytest.raises(StoreError, match=r"is not an embedding store"):
        open_store(store.path / "manifest.json")
    (store.path / "manifest.json").unlink()
    (store.path / ".partial").mkdir()
    with pytest.raises(StoreError, match="is incomplete: run the same embed command again"):
        open_store(store.path)


def without(key: str) -> Callable[[dict[str, Any]], object]:
    return lambda manifest: manifest.pop(key)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: m.update(format="for-store/2"),
            "has the format 'for-store/2', expected 'for-store/3': delete the store and embed again",
        ),
        (without("format"), "has the format None"),
        (without("skipped"), "is damaged \\(no 'skipped'\\)"),
        (without("table"), "is damaged \\(no table\\)"),
        (lambda m: m["table"].update(file="../images-0123456789abcdef.sqlite"), "is no table's name"),
        (
            lambda m: m["table"].update(file="images-0123456789abcdef.sqlite"),
            "images-0123456789abcdef.sqlite is missing",
        ),
        (lambda m: m["table"].update(sha256="0" * 64), "images-[0-9a-f]+.sqlite is damaged, its hash is not"),
        (lambda m: m["method"].pop("dim"), "is damaged .*dim"),
        (lambda m: m["method"].update(dim=9), r"isn't the 290 bytes of float16 \[3, 3, 9\]"),
        (lambda m: m.update(n_images=4), "is damaged .*n_images is 4, but 5 images and 5 rows"),
        (lambda m: m["skipped"].__setitem__(0, 5), "is damaged"),
        (lambda m: m["shards"][0].update(file="../x.npy"), "is not a plain file name"),
        (lambda m: m["shards"][0].update(file="embeddings-00001.npy"), "embeddings-00001.npy is missing"),
        (lambda m: (m["shards"][0].update(n_images=2), m["shards"][1].update(n_images=3)), "isn't the"),
        (lambda m: m.update(rows=[0, 1, 2, 3]), "n_images is 5"),
        (lambda m: m.update(rows=[0, 1, 2, 3, 5]), "rows beyond the 5"),
    ],
)
def test_a_manifest_that_contradicts_itself(
    store: Store, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    change_manifest(store.path, change)
    with pytest.raises(StoreError, match=message) as caught:
        open_store(store.path)
    assert "\n" not in str(caught.value)


def test_a_manifest_that_is_no_json(store: Store) -> None:
    (store.path / "manifest.json").write_text("{")
    with pytest.raises(StoreError, match="is damaged, it isn't valid JSON"):
        open_store(store.path)
    (store.path / "manifest.json").write_text("[]")
    with pytest.raises(StoreError, match="has the format None"):
        open_store(store.path)


def test_damaged_shards(store: Store) -> None:
    path = store.path / store.shards[1].file
    content = path.read_bytes()
    for damaged in (b"", content[:20], content[:-1], b"PK\x03\x04" + content, b"\x80\x04N."):
        path.write_bytes(damaged)
        with pytest.raises(StoreError, match=r"embeddings-00002\.npy is damaged"):
            open_store(store.path)
    np.save(path, units(2))
    with pytest.raises(StoreError, match=r"isn't the 224 bytes of float16 \[2, 3, 8\] that were written \(it has 320"):
        open_store(store.path)
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(StoreError, match="is damaged"):  # a pickle is never loaded
        open_store(store.path)
    path.unlink()
    with pytest.raises(StoreError, match=r"is missing"):
        open_store(store.path)


def test_verify_sees_a_changed_byte(store: Store) -> None:
    path = store.path / store.shards[1].file
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    opened = open_store(store.path)
    with pytest.raises(StoreError, match="its hash is not the manifest's"):
        opened.embeddings()  # no row is handed out unchecked
    with pytest.raises(StoreError, match=r"embeddings-00002\.npy is damaged, its hash is not the manifest's"):
        opened.verify()


def test_a_flipped_bit_anywhere_in_the_manifest_is_found(store: Store) -> None:
    path = store.path / "manifest.json"
    content = path.read_bytes()
    for position in range(0, len(content), 5):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(StoreError):
            open_store(store.path)


def test_only_finite_unit_vectors_are_written(tmp_path: Path) -> None:
    for value, message in [(np.nan, "not finite"), (np.inf, "not finite"), (0.9, "off 1 by"), (1e6, "not finite")]:
        bad = units(4)
        bad[2, 1] = 0
        bad[2, 1, 0] = value
        with np.errstate(over="ignore"), pytest.raises(StoreError, match=message):
            write_shard(tmp_path, 0, bad)
    assert list(tmp_path.iterdir()) == []


def test_equal_stores_are_equal_bytes(store: Store, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shards = (write_shard(other, 0, units(5)[:3]), write_shard(other, 2, units(5)[3:]))
    write_store(other, INFO, "coco", "val2017", store.image_root, store.images, store.skipped, shards)
    for path in sorted(store.path.iterdir()):
        assert path.read_bytes() == (other / path.name).read_bytes()


def test_a_flipped_bit_anywhere_in_the_table_is_found(store: Store) -> None:
    path = store.images.path
    content = path.read_bytes()
    for position in range(0, len(content), 97):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(StoreError, match=f"{path.name} is damaged, its hash"):
            open_store(store.path)
        assert [name for name, error in check_store(store.path) if error] == [path.name]


def test_ids_out_of_order_are_found_by_who_looks_at_every_byte(store: Store) -> None:
    path = store.images.path
    with contextlib.closing(sqlite3.connect(path)) as table:
        table.execute("UPDATE images SET id = 9 WHERE position = 1")
        table.commit()
    change_manifest(store.path, lambda manifest: manifest["table"].update(sha256=sha256_file(path)))
    problems = {name: str(error) for name, error in check_store(store.path) if error}
    assert list(problems) == [path.name]
    assert "ids are not ascending" in problems[path.name]


def test_what_is_known_of_images_comes_back(tmp_path: Path) -> None:
    images = tuple(ImageRecord(f"{i}.jpg", f"{i}.jpg") for i in range(5))
    dated = {"width": 3, "height": 2, "taken": "2024-05-31 14:05:00", "camera": "A", "latitude": 1.5, "longitude": -2.0}
    stamps = {
        "0.jpg": Stamp(7, 1_700_000_000_123_456_789, "ab" * 32, dated),
        "1.jpg": Stamp(7, 1_700_000_000_123_456_789, "", {"width": 3, "height": 2}),
        "2.jpg": Stamp(0, 0),
        "4.jpg": Stamp(9, 5, "cd" * 32),
    }
    cells = {"0.jpg": {"rating": 3, "labels": "dog;person"}, "4.jpg": {"rating": 1}}
    skipped = (SkippedImage("4.jpg", "4.jpg", "truncated"),)
    metadata = Metadata({"rating": "INTEGER"}, cells)
    shards = (write_shard(tmp_path / "store", 0, units(4)),)
    write_store(tmp_path / "store", INFO, "x", "y", tmp_path, images[:4], skipped, shards, None, stamps, metadata)
    store = open_store(tmp_path / "store")
    known = {image.record.id: image.stamp for image in (*store.known_images(), *store.skipped_images)}
    assert known == {**stamps, "3.jpg": None}
    assert store.metadata == metadata
    assert not [name for name in store.images.columns if name.startswith("_")]
    assert store.images.row(0).cells["taken"] == "2024-05-31 14:05:00"
    assert store.images.row(1).cells["taken"] == "2023-11-14 22:13:20"  # the file's own time
    assert store.images.row(3).cells["taken"] is None
    with pytest.raises(UsageError, match="_mtime_ns"):
        store.images.where("_mtime_ns > 0")
