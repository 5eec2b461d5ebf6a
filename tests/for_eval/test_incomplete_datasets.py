"""A run on a dataset that is missing, half there or damaged ends with one line and exit code 2, whichever it is."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from for_eval.__main__ import main
from for_model.__main__ import main as model_main
from tests.helpers.nuimages_making import write_nuimages
from tests.helpers.paths import CONFIGS


def coco(root: Path, split: str = "val2017") -> Path:
    """Two images, 80 categories of which they hold two; returns the annotation file."""
    (root / "annotations").mkdir(parents=True)
    (root / split).mkdir()
    names = ("1.jpg", "2.jpg")
    for name in names:
        Image.new("RGB", (8, 8)).save(root / split / name)
    content = {
        "images": [{"id": n, "file_name": name} for n, name in enumerate(names)],
        "categories": [{"id": n, "name": ("person", "cat")[n] if n < 2 else f"thing {n}"} for n in range(80)],
        "annotations": [{"id": n, "image_id": n, "category_id": n} for n in range(2)],
    }
    path = root / "annotations" / f"instances_{split}.json"
    path.write_text(json.dumps(content))
    return path


def lvis(root: Path) -> Path:
    content = json.loads(coco(root).read_text())
    for image in content["images"]:
        image["neg_category_ids"] = []
        image["file_name"] = f"val2017/{image['file_name']}"
    for category in content["categories"]:
        category["frequency"] = "f"
    path = root / "lvis_v1_val.json"
    path.write_text(json.dumps(content))
    return path


def nuimages(root: Path) -> Path:
    write_nuimages(root, val=[["vehicle.car"], ["animal"]])
    return root / "v1.0-val" / "object_ann.json"


MAKERS: dict[str, Callable[[Path], Path]] = {
    "coco": coco,
    "coco2014": lambda root: coco(root, "val2014"),
    "lvis": lvis,
    "nuimages": nuimages,
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_leaderboard_of_what_is_not_all_there(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / name
    command = ["leaderboard", "--dataset", name, "--root", str(root), "--methods", "clip", "--out", str(tmp_path)]

    def refused(reason: str) -> None:
        assert main(command) == 2
        printed = capsys.readouterr()
        lines = [line for line in printed.err.splitlines() if line.startswith("error: ") or reason in line]
        assert printed.out == ""
        assert len(lines) == 1
        assert reason in lines[0]
        assert not (tmp_path / "results").exists()

    refused("doesn't exist")
    annotations = MAKERS[name](root)
    pictures = sorted([*root.rglob("*.jpg")])
    kept = pictures[0].read_bytes()
    pictures[0].unlink()
    refused("1 of the 2 images of")
    pictures[0].write_bytes(kept)
    text = annotations.read_text()
    annotations.write_text(text[: len(text) // 2])
    refused("is not valid JSON")
    annotations.unlink()
    refused("doesn't exist")
    annotations.write_text(text)
    shutil.rmtree(pictures[0].parent)
    refused("images of" if name == "nuimages" else "doesn't exist")


@pytest.mark.parametrize("name", MAKERS)
def test_a_training_of_what_is_not_there_says_so_before_it_fetches_weights(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(CONFIGS / f"for-{name}.toml")  # RN50x64 with OpenAI's weights, which can't be had here
    assert model_main(["train", config, f"data.root={tmp_path / name}", "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "doesn't exist" in error
    assert "RN50x64" not in error
