import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from for_model.__main__ import main
from for_model.data.coco import COCO_OVD_BASE, COCO_OVD_NOVEL, load_coco
from for_model.data.miniscenes import glyphs
from for_model.data.miniscenes.concepts import CONCEPTS, REPLACED
from for_model.data.miniscenes.scenes import render_scene, scene_rng, write_scenes
from for_model.errors import DataError, UsageError


def digest(folder: Path) -> dict[str, str]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    assert main(["scenes", "--out", str(root), "--train", "16", "--dev", "16", "--val", "72"]) == 0
    return root


def objects(root: Path, split: str) -> list[dict]:
    return json.loads((root / "annotations" / f"instances_{split}.json").read_text())["annotations"]


@pytest.mark.slow
def test_the_same_arguments_give_the_same_bytes(scenes: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path, {"train": 16, "dev": 16, "val": 72})
    assert digest(tmp_path) == digest(scenes)


def test_another_seed_gives_other_scenes(scenes: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path, {"val": 4}, seed=1)
    same = set(digest(tmp_path).values()) & set(digest(scenes).values())
    assert not same


def test_a_scene_depends_on_its_index_alone(scenes: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path, {"val": 5})
    fewer, more = digest(tmp_path), digest(scenes)
    assert all(more[name] == value for name, value in fewer.items() if name.endswith(".jpg"))


def test_the_coco_reader_reads_them(scenes: Path) -> None:
    dataset = load_coco(scenes, "val", name="miniscenes")
    assert len(dataset.images) == 72
    assert sum(c.group == "base" for c in dataset.categories) == 48
    assert sum(c.group == "novel" for c in dataset.categories) == 17
    assert all(dataset.labels[image.id] for image in dataset.images)
    assert dataset.relevance([i.id for i in dataset.images]).sum(0).max() <= 8


def test_no_held_back_drawing_is_seen_elsewhere(scenes: Path) -> None:
    shown = {split: {o["drawing"] for o in objects(scenes, split)} for split in ("train", "dev", "val")}
    held = {split: {d for c in CONCEPTS for d in c.held_back(split)} for split in ("dev", "val")}
    assert not held["val"] & held["dev"]
    assert not held["val"] & (shown["train"] | shown["dev"])
    assert not held["dev"] & (shown["train"] | shown["val"])


def test_held_back_drawings_are_not_shown_in_training_in_any_style() -> None:
    shared = {style for c in CONCEPTS for d in c.shared() for style in glyphs.styles(d)}
    held = {style for c in CONCEPTS for s in ("dev", "val") for d in c.held_back(s) for style in glyphs.styles(d)}
    assert not shared & held


@pytest.mark.slow
def test_a_third_of_the_objects_of_val_show_held_back_drawings() -> None:
    held = {d for c in CONCEPTS for d in c.held_back("val")}
    drawn = [o for i in range(300) for o in render_scene(scene_rng(0, "val", i), "val")[1]]
    assert sum(o.drawing in held for o in drawn) > len(drawn) / 3


def test_names_are_those_of_coco_ovd_but_for_the_replaced() -> None:
    names = {group: {c.name for c in CONCEPTS if c.group == group} for group in ("base", "novel", "other")}
    assert names["base"] == (set(COCO_OVD_BASE) - set(REPLACED)) | set(REPLACED.values())
    assert names["novel"] == set(COCO_OVD_NOVEL)
    assert len({c.name for c in CONCEPTS}) == len(CONCEPTS)


def test_every_drawing_is_there_and_differs_from_the_others() -> None:
    pictures: dict[bytes, str] = {}
    for concept in CONCEPTS:
        for drawing in concept.drawings:
            key = glyphs.mask(*glyphs.styles(drawing)[0]).tobytes()
            assert key not in pictures, f"{drawing} equals {pictures.get(key)}"
            pictures[key] = drawing


def test_boxes_and_areas_fit_the_pixels() -> None:
    for index in range(40):
        pixels, drawn = render_scene(scene_rng(3, "train", index), "train", 96)
        assert pixels.shape == (96, 96, 3)
        assert pixels.dtype == np.uint8
        assert 1 <= len(drawn) <= 8
        for item in drawn:
            x, y, width, height = item.box_xywh_px
            assert 0 <= x <= x + width <= 96
            assert 0 <= y <= y + height <= 96
            assert 0 < item.area_px <= width * height


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--size", "100"], "multiple of 32"),
        (["--size", "32"], "multiple of 32"),
        (["--val", "-1"], "0 or more"),
    ],
)
def test_impossible_arguments_are_one_line(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["scenes", "--out", str(tmp_path / "s"), *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_scenes_are_not_overwritten(scenes: Path) -> None:
    with pytest.raises(DataError, match="there already"):
        write_scenes(scenes, {"val": 3})
    with pytest.raises(UsageError):
        write_scenes(scenes, {"val": 3}, size=70)
