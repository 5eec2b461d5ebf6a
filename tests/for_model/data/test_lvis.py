"""LVIS's reader against its JSON read directly, what is unknown, and what a damaged file leads to."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from for_model.data.dataset import Category, ImageRecord
from for_model.data.lvis import load_lvis
from for_model.data.registry import load_dataset
from for_model.errors import DataError
from tests.helpers.paths import SHARED

REAL = SHARED / "lvis" / "lvis_val_100.json"


def content() -> dict[str, Any]:
    def image(key: int, folder: str, absent: list[int], partly: list[int]) -> dict[str, Any]:
        return {
            "id": key,
            "coco_url": f"http://images.cocodataset.org/{folder}/{key:012}.jpg",
            "neg_category_ids": absent,
            "not_exhaustive_category_ids": partly,
        }

    return {
        "images": [image(7, "train2017", [3], []), image(3, "val2017", [1, 2], [3]), image(5, "val2017", [], [1])],
        "categories": [
            {"id": 3, "name": "bow_(weapon)", "frequency": "r"},
            {"id": 1, "name": "street_sign", "frequency": "f"},
            {"id": 2, "name": "dog", "frequency": "c"},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 2, "bbox": [0, 0, 1, 1]},
            {"id": 2, "image_id": 7, "category_id": 2, "bbox": [0, 0, 1, 1]},
            {"id": 3, "image_id": 7, "category_id": 1, "bbox": [0, 0, 1, 1]},
            {"id": 4, "image_id": 5, "category_id": 1, "bbox": [0, 0, 1, 1]},
        ],
    }


def write(root: Path, value: Any, name: str = "lvis_v1_val.json") -> Path:
    for folder in ("train2017", "val2017"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_text(value if isinstance(value, str) else json.dumps(value))
    return root


def test_reads_images_groups_labels_and_negatives(tmp_path: Path) -> None:
    dataset = load_dataset("lvis", write(tmp_path, content()))
    assert (dataset.name, dataset.split) == ("lvis", "val")
    assert dataset.images == (
        ImageRecord(3, "val2017/000000000003.jpg"),
        ImageRecord(5, "val2017/000000000005.jpg"),
        ImageRecord(7, "train2017/000000000007.jpg"),
    )
    names = (Category("street sign", "base"), Category("dog", "base"), Category("bow (weapon)", "novel"))
    assert dataset.categories == names
    assert dataset.relevance([3, 5, 7]).tolist() == [[False, True, True], [False, False, True], [False] * 3]
    known = dataset.known([3, 5, 7])
    assert known is not None
    # not exhaustively annotated (category 3 in image 3) and unannotated is unknown; annotated (1 in 5) is known
    assert known.tolist() == [[True, True, True], [True, False, True], [False, False, True]]


def test_a_label_wins_over_a_negative(tmp_path: Path) -> None:
    value = content()
    value["images"][0]["neg_category_ids"] = [1, 3]  # 1 is annotated there too
    dataset = load_lvis(write(tmp_path, value), "val")
    assert dataset.negatives is not None
    assert dataset.negatives[7] == {2}
    assert 0 in dataset.labels[7]


def test_versions_are_datasets_of_their_own(tmp_path: Path) -> None:
    old = content()
    old["categories"] = old["categories"][1:]
    old["images"][0]["neg_category_ids"] = []
    old["images"][2]["coco_url"], old["images"][2]["file_name"] = None, "val2017/five.jpg"
    old["images"][1]["not_exhaustive_category_ids"] = []
    write(tmp_path, old, "annotations/lvis_v0.5_val.json")
    only = load_dataset("lvis", tmp_path)
    assert (only.name, len(only.categories), only.images[1].path) == ("lvis-v0.5", 2, "val2017/five.jpg")
    write(tmp_path, content())
    assert load_dataset("lvis", tmp_path).name == "lvis"
    assert load_dataset("lvis-v0.5", tmp_path).name == "lvis-v0.5"


@pytest.mark.data
@pytest.mark.skipif(not REAL.exists(), reason="no real annotations")
def test_the_real_annotations_read_directly(tmp_path: Path) -> None:
    value = json.loads(REAL.read_text())
    dataset = load_dataset("lvis", write(tmp_path, REAL.read_text(), "lvis_v0.5_val.json"))
    assert (len(dataset.images), len(dataset.categories)) == (100, 1230)
    images = {image["id"]: n for n, image in enumerate(sorted(value["images"], key=lambda image: image["id"]))}
    rows = {category["id"]: n for n, category in enumerate(sorted(value["categories"], key=lambda c: c["id"]))}
    relevance = np.zeros((1230, 100), bool)
    known = np.zeros((1230, 100), bool)
    for annotation in value["annotations"]:
        relevance[rows[annotation["category_id"]], images[annotation["image_id"]]] = True
    for image in value["images"]:
        known[[rows[key] for key in image["neg_category_ids"]], images[image["id"]]] = True
    ids = [image.id for image in dataset.images]
    np.testing.assert_array_equal(dataset.relevance(ids), relevance)
    np.testing.assert_array_equal(dataset.known(ids), known | relevance)
    rare = {category["name"].replace("_", " ") for category in value["categories"] if category["frequency"] == "r"}
    assert {category.name for category in dataset.categories if category.group == "novel"} == rare
    # every image of this sample counts its annotations only: none of these files is here
    with pytest.raises(DataError, match=r"100 of the 100 images of lvis-v0\.5 val are not under"):
        dataset.check_files("x")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"lvis_v1_val\.json doesn't exist: expected LVIS's layout"):
        load_lvis(tmp_path, "val")
    write(tmp_path, content())
    (tmp_path / "train2017").rmdir()
    with pytest.raises(DataError, match=r"/train2017 doesn't exist: lvis_v1_val\.json lists images of COCO's"):
        load_lvis(tmp_path, "val")


def damaged(**changes: Any) -> Any:
    value = content()
    for place, found in changes.items():
        key, _, name = place.partition("__")
        value[key][0][name] = found
    return value


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("{", "damaged, it is not valid JSON"),
        ({"images": []}, "no list 'annotations'"),
        (damaged(images__coco_url="http://x/../../etc/passwd", images__id=9), "lists|isn't listed|not a path"),
        (damaged(images__coco_url="http://x/.."), "not a path within the image folder"),
        (damaged(images__neg_category_ids=None), "neg_category_ids None, not a list"),
        (damaged(images__neg_category_ids=[99]), r"neg_category_ids \[99\], not a list"),
        (damaged(categories__frequency="x"), "the frequency 'x', not one of f, c, r"),
        (damaged(categories__id=1), "category id 1 is not an integer, or occurs twice"),
        (damaged(categories__name=""), "category 3 has no name"),
        (damaged(annotations__category_id=99), "category_id 99, which isn't listed"),
    ],
)
def test_damaged_files_end_with_one_line(tmp_path: Path, value: Any, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        load_lvis(write(tmp_path, value), "val")
    assert "\n" not in str(caught.value)
