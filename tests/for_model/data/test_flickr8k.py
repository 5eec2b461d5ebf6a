"""Flickr8k's splits: the two that are published, and the two that are made of train by a rule."""

import json
from pathlib import Path

import pytest

from for_model.data.captions import captions_path
from for_model.data.registry import load_dataset
from for_model.errors import DataError
from tests.helpers.paths import SHARED

REAL = SHARED / "flickr8k"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twelve images of train, listed in descending order of id, with a category each but the ninth."""
    ids = [1000 - 7 * n for n in range(12)]
    content = {
        "images": [{"id": key, "file_name": f"{key}.jpg"} for key in ids],
        "categories": [{"id": 1, "name": "man", "group": "base"}, {"id": 2, "name": "dog", "group": "novel"}],
        "annotations": [{"id": n, "image_id": key, "category_id": 1 + n % 2} for n, key in enumerate(ids) if n != 8],
    }
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return tmp_path


def test_dev_is_every_fifth_image_of_train_and_fit_the_others(root: Path) -> None:
    train, fit, dev = (load_dataset("flickr8k", root, split) for split in ("train", "fit", "dev"))
    assert dev.images == tuple(train.images[place] for place in (0, 5, 10))
    assert fit.images == tuple(train.images[place] for place in (1, 2, 3, 4, 6, 7, 8, 9, 11))
    assert [(part.name, part.split) for part in (fit, dev)] == [("flickr8k", "fit"), ("flickr8k", "dev")]
    for part in (fit, dev):
        assert part.image_root == train.image_root == root / "train"
        assert part.categories == train.categories
        assert captions_path(part) == root / "annotations" / "captions_train.json"
    assert {**fit.labels, **dev.labels} == train.labels
    assert not fit.labels.keys() & dev.labels.keys()
    assert len(train.labels) == 11


def test_val_is_the_default_and_lies_in_a_folder_of_its_own(root: Path) -> None:
    val = load_dataset("flickr8k", root)
    assert (val.split, val.image_root, len(val.images)) == ("val", root / "val", 12)
    with pytest.raises(DataError, match=r"instances_test\.json doesn't exist"):
        load_dataset("flickr8k", root, "test")


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/data/flickr8k")
def test_the_real_splits() -> None:
    parts = {split: load_dataset("flickr8k", REAL, split) for split in ("train", "fit", "dev", "val")}
    assert {split: len(part.images) for split, part in parts.items()} == {
        "train": 5000,
        "fit": 4000,
        "dev": 1000,
        "val": 1500,
    }
    groups = [category.group for category in parts["val"].categories]
    assert (groups.count("base"), groups.count("novel")) == (71, 36)
    for part in parts.values():
        part.check_files("fetch them")
