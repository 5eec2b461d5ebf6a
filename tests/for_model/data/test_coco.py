import json
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from for_model.data.coco import COCO_OVD_BASE, COCO_OVD_NOVEL, load_coco
from for_model.data.dataset import Category, ImageRecord
from for_model.data.registry import DATASETS, load_dataset
from for_model.errors import DataError, UsageError
from tests.helpers.paths import SHARED

REAL = SHARED / "coco-tiny"


def content() -> dict[str, Any]:
    return {
        "images": [
            {"id": 7, "file_name": "7.jpg"},
            {"id": 3, "file_name": "sub/3.jpg"},
            {"id": 5, "file_name": "5.jpg"},
        ],
        "categories": [
            {"id": 18, "name": "dog"},
            {"id": 1, "name": "person"},
            {"id": 90, "name": "hair drier"},
            {"id": 95, "name": "anchor", "group": "novel"},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 18, "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 18, "iscrowd": 0},
            {"id": 3, "image_id": 7, "category_id": 90, "iscrowd": 0},
            {"id": 4, "image_id": 3, "category_id": 1, "iscrowd": 1},
        ],
    }


def write(root: Path, value: Any, split: str = "val") -> Path:
    (root / "annotations").mkdir(exist_ok=True)
    (root / split).mkdir(exist_ok=True)
    path = root / "annotations" / f"instances_{split}.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_the_split_lists() -> None:
    assert (len(set(COCO_OVD_BASE)), len(set(COCO_OVD_NOVEL))) == (48, 17)
    assert not set(COCO_OVD_BASE) & set(COCO_OVD_NOVEL)


def test_reads_images_categories_and_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, content())
    dataset = load_coco(tmp_path, "val", name="mine")
    assert (dataset.name, dataset.split, dataset.image_root) == ("mine", "val", tmp_path / "val")
    assert dataset.images == (ImageRecord(3, "sub/3.jpg"), ImageRecord(5, "5.jpg"), ImageRecord(7, "7.jpg"))
    assert dataset.categories == (
        Category("person", "base"),
        Category("dog", "novel"),
        Category("hair drier", "other"),
        Category("anchor", "novel"),
    )
    assert dataset.labels == {3: frozenset({0}), 7: frozenset({1, 2})}  # the crowd counts
    assert dataset.relevance([7, 5]).tolist() == [[False, False], [True, False], [True, False], [False, False]]
    assert capsys.readouterr().out == ""


def test_order_in_the_file_does_not_matter(tmp_path: Path) -> None:
    write(tmp_path, content())
    write(tmp_path, {key: items[::-1] for key, items in content().items()}, "rev")
    a, b = load_coco(tmp_path, "val"), load_coco(tmp_path, "rev")
    assert (a.images, a.categories, a.labels) == (b.images, b.categories, b.labels)


def test_the_jsons_own_group_wins(tmp_path: Path) -> None:
    value = content()
    value["categories"][0]["group"] = "base"
    write(tmp_path, value)
    assert load_coco(tmp_path, "val").categories[1] == Category("dog", "base")


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"annotations/instances_val\.json doesn't exist: expected COCO's layout"):
        load_coco(tmp_path, "val")
    write(tmp_path, content())
    (tmp_path / "val").rmdir()
    with pytest.raises(DataError, match=r"/val doesn't exist: expected the images of coco val in that folder"):
        load_coco(tmp_path, "val")


def broken(key: str, position: int, **changes: Any) -> dict[str, Any]:
    value = content()
    value[key][position].update(changes)
    return value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{", "is damaged, it is not valid JSON"),
        ("[" * 100_000, "is damaged, it is not valid JSON"),
        ([], "no list 'images'"),
        ({"images": []}, "no list 'annotations'"),
        ({"images": [], "annotations": [], "categories": []}, "lists no images"),
        ({"images": [3], "annotations": [], "categories": []}, "no list 'images'"),
        ({"images": {}, "annotations": [], "categories": []}, "no list 'images'"),
        (broken("images", 0, id=3), "image id 3 occurs twice"),
        (broken("images", 0, id="7"), "mix integers and strings"),
        (broken("images", 0, id=None), "image id None"),
        (broken("images", 0, id=[7]), "image id"),
        (broken("images", 0, file_name="../../etc/passwd.jpg"), "not a path within the image folder"),
        (broken("images", 0, file_name="/etc/passwd.jpg"), "not a path within the image folder"),
        (broken("images", 0, file_name=""), "not a path within the image folder"),
        (broken("images", 0, file_name="\udce9.jpg"), "not a path within the image folder"),
        (broken("images", 0, file_name=None), "not a path within the image folder"),
        (broken("categories", 0, id=1), "category id 1 is not an integer, or occurs twice"),
        (broken("categories", 0, name=" "), "category 18 has no name"),
        (broken("categories", 0, group="rare"), "of group 'rare', not one of base, novel, other"),
        (broken("categories", 0, group=[]), "not one of base, novel, other"),
        (broken("annotations", 0, image_id=99), "annotation 1 has image_id 99, which isn't listed"),
        (broken("annotations", 0, category_id=2), "annotation 1 has category_id 2, which isn't listed"),
        (broken("annotations", 0, category_id=[]), "annotation 1 has category_id"),
    ],
)
def test_damaged_annotations_give_one_line(tmp_path: Path, value: Any, message: str) -> None:
    path = write(tmp_path, value)
    with pytest.raises(DataError) as caught:
        load_coco(tmp_path, "val")
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.data
@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/data/coco-tiny")
@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_real_coco(split: str) -> None:
    dataset = load_coco(REAL, split)
    assert Counter(category.group for category in dataset.categories) == {"base": 48, "novel": 17, "other": 15}
    raw = json.loads((REAL / "annotations" / f"instances_{split}.json").read_text())
    names = {category["id"]: category["name"] for category in raw["categories"]}
    expected: dict[int, set[str]] = {}
    for annotation in raw["annotations"]:
        expected.setdefault(annotation["image_id"], set()).add(names[annotation["category_id"]])
    got = {key: {dataset.categories[i].name for i in present} for key, present in dataset.labels.items()}
    assert got == expected
    assert all((dataset.image_root / image.path).is_file() for image in dataset.images)


def test_registry_loads_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, content(), "val2017")
    write(tmp_path, content(), "val")
    write(tmp_path, content(), "dev")
    (tmp_path / "val" / "a.jpg").write_bytes(b"x")
    module = ModuleType("for_model.data.miniscenes.scenes")
    module.default_root = lambda split: tmp_path  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "for_model.data.miniscenes.scenes", module)
    got = [load_dataset("coco", tmp_path), load_dataset("miniscenes"), load_dataset("miniscenes", split="dev")]
    assert [(d.name, d.split) for d in got] == [("coco", "val2017"), ("miniscenes", "val"), ("miniscenes", "dev")]
    assert [image.id for image in load_dataset("folder", tmp_path).images] == ["val/a.jpg"]


def test_registry_explains_wrong_use(tmp_path: Path) -> None:
    assert {"coco", "folder", "lvis", "miniscenes"} <= set(DATASETS)
    with pytest.raises(
        UsageError, match=r"unknown dataset 'cocoa': choose one of coco, coco2014, flickr8k, folder, lvis"
    ):
        load_dataset("cocoa", tmp_path)
    for name in ("coco", "folder"):
        with pytest.raises(UsageError, match=f"dataset '{name}' needs a folder: give it with --root"):
            load_dataset(name)
    with pytest.raises(UsageError, match="has no splits, got split 'val'"):
        load_dataset("folder", tmp_path, "val")
