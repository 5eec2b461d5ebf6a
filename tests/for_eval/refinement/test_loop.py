"""From marks to a trained head that finds more than the one before it, on scenes that nobody marked."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from for_eval.refinement.loop import LOOP, measure_loop
from for_model.data.dataset import Dataset
from for_model.data.miniscenes.scenes import write_scenes
from for_model.data.registry import load_dataset
from for_model.errors import UsageError
from for_model.methods.build import build_method
from for_model.methods.clip_method import ClipMethod
from for_model.training.config import load_config
from tests.helpers.paths import REPOSITORY

# Python 3.12 warns when scenes are drawn in processes while torch has threads.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")]

N_SCENES = 80
CONFIG = REPOSITORY / "for_model" / "configs" / "for-plus-miniscenes.toml"
SETTINGS = ["head.queries=4", "loss.pse=1", "pseudo_labels.names=40", "optimizer.epochs=20", "optimizer.batch_size=40"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Dataset]:
    root = tmp_path_factory.mktemp("loop")
    write_scenes(root, {"dev": N_SCENES, "val": N_SCENES})
    return load_dataset("miniscenes", root, "dev"), load_dataset("miniscenes", root, "val")


@pytest.fixture(scope="module")
def method() -> ClipMethod:
    method = build_method("cluster-clip:4", image_size=96, device="cpu")  # maps of nine cells
    assert isinstance(method, ClipMethod)
    return method


def test_a_head_trained_on_what_marks_gave_beats_the_one_before(
    tmp_path: Path, scenes: tuple[Dataset, Dataset], method: ClipMethod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOR_CACHE", str(tmp_path / "cache"))
    catalogue, unseen = scenes
    counts = Counter(place for found in catalogue.labels.values() for place in found)
    names = [catalogue.categories[place].name for place, _ in counts.most_common(6)]
    names = [name for name in names if next(c for c in catalogue.categories if c.name == name).group != "other"][:3]
    path = measure_loop(catalogue, unseen, method, load_config(CONFIG, SETTINGS), names, 3, tmp_path)
    result = json.loads(path.read_text())
    for name in result["names"]:
        assert name["n_right"] / name["n_present"] > 0.7
        assert name["n_absent"] > N_SCENES / 2
    ap = {
        head: np.mean([name["ap"][head] for name in result["names"]]) for head in ("before", "after", "without labels")
    }
    assert ap["after"] > ap["before"] + 0.02
    assert ap["after"] > ap["without labels"]  # so the marks did it
    lines = LOOP.write_table(tmp_path).read_text().splitlines()
    groups = {name["group"] for name in result["names"]}
    told = [line.split(",")[8] for line in lines[1:]]
    assert told == ["all", *sorted(groups if len(groups) > 1 else ()), *(name["name"] for name in result["names"])]


def test_what_makes_no_sense_is_told_before_anything_is_embedded(
    tmp_path: Path, scenes: tuple[Dataset, Dataset], method: ClipMethod
) -> None:
    config = load_config(CONFIG, SETTINGS)
    with pytest.raises(UsageError, match="0 rounds of marks"):
        measure_loop(*scenes, method, config, [], 0, tmp_path)
    renamed = replace(scenes[1], labels={})
    with pytest.raises(UsageError, match="'unicorn' is no category of both splits"):
        measure_loop(scenes[0], renamed, method, config, ["unicorn"], 1, tmp_path)
