"""Feature maps: kept ones equal those made on the fly, a stopped run goes on, and the budget decides."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ImageOps

import for_model.training.features as features_module
from for_model.backbones.clip_resnet import ClipResnet, load_clip_resnet
from for_model.data.coco import load_coco
from for_model.data.dataset import Dataset
from for_model.data.images import load_image
from for_model.data.miniscenes.scenes import write_scenes
from for_model.errors import DataError, StoreError, UsageError
from for_model.files import locked
from for_model.training.features import Kept, OnTheFly, open_features


@pytest.fixture(scope="module")
def backbone() -> ClipResnet:
    return load_clip_resnet("RN-mini", "random", 96)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    write_scenes(tmp_path / "scenes", {"dev": 10}, size=96)
    (tmp_path / "scenes" / "dev" / "000000000004.jpg").write_bytes(b"no image")
    return load_coco(tmp_path / "scenes", "dev")


ALL = [np.array([7, 2, 3]), np.array([9]), np.array([], np.int64), np.array([0, 3])]


@pytest.mark.parametrize("budget", [0.0, 1.0])
def test_the_rows_asked_for_come_in_their_order(
    backbone: ClipResnet, dataset: Dataset, tmp_path: Path, budget: float
) -> None:
    opened = open_features(dataset, backbone, budget, tmp_path / "kept")
    assert isinstance(opened, Kept if budget else OnTheFly)
    found = list(opened.batches(ALL))
    assert [rows.tolist() for rows, _ in found] == [[7, 2], [9], [], [0]]
    for rows, X in found:
        assert X.shape == (len(rows), 9, backbone.width)
        assert X.dtype == torch.float32
        for row, x in zip(rows, X, strict=True):
            image = load_image(dataset.image_root / dataset.images[row].path, 192)
            expected = backbone.features(backbone.preprocess(image)[None])[0]
            torch.testing.assert_close(x, expected, atol=1e-3, rtol=1e-3)
    (skipped,) = opened.skipped
    assert (skipped.row, skipped.path) == (3, "000000000004.jpg")
    assert "not an image" in skipped.reason
    assert opened.usable.tolist() == [row != 3 or not budget for row in range(10)]  # on the fly nobody knows before


def test_the_budget_decides_and_says_why(
    backbone: ClipResnet, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 10 * 9 * backbone.width * 2 / 2**30
    assert "within the" in open_features(dataset, backbone, size, tmp_path / "kept").why
    assert "more than the" in open_features(dataset, backbone, size * 0.99, tmp_path / "kept").why
    monkeypatch.setattr(features_module, "_free_bytes", lambda path: 1000)
    assert isinstance(open_features(dataset, backbone, 1.0, tmp_path / "kept"), Kept)  # they are there already
    assert "free" in open_features(dataset, backbone, 1.0, tmp_path / "full").why
    with pytest.raises(UsageError, match="cache_gib"):
        open_features(dataset, backbone, -1.0, tmp_path / "kept")


def test_a_stopped_run_goes_on_and_ends_with_the_same(
    backbone: ClipResnet, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features_module, "_CHUNK", 4)
    monkeypatch.setattr(features_module, "_BATCH", 2)
    whole = open_features(dataset, backbone, 1.0, tmp_path / "whole")
    calls: list[int] = []
    features = backbone.features

    def stops(pixels: torch.Tensor) -> torch.Tensor:
        calls.append(len(pixels))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return features(pixels)

    monkeypatch.setattr(backbone, "features", stops)
    with pytest.raises(KeyboardInterrupt):
        open_features(dataset, backbone, 1.0, tmp_path / "parts")
    (note,) = (tmp_path / "parts").rglob("progress.json")
    assert json.loads(note.read_text())["done"] == 4
    rest = open_features(dataset, backbone, 1.0, tmp_path / "parts")
    assert sum(calls[4:]) == 6  # not the first four again
    assert rest.skipped == whole.skipped
    ((_, a),), ((_, b),) = (list(each.batches([np.arange(10)])) for each in (whole, rest))
    assert torch.equal(a, b)
    open_features(dataset, backbone, 1.0, tmp_path / "parts")
    assert sum(calls[4:]) == 6  # a finished one is only opened


def test_other_images_or_weights_are_kept_apart(backbone: ClipResnet, dataset: Dataset, tmp_path: Path) -> None:
    open_features(dataset, backbone, 1.0, tmp_path)
    open_features(dataset, load_clip_resnet("RN-mini", None, 96), 1.0, tmp_path)
    open_features(load_coco(dataset.image_root.parent, "dev", name="other"), backbone, 1.0, tmp_path)
    assert len(list(tmp_path.rglob("features.npy"))) == 3


def test_the_mirror_images_are_kept_apart(backbone: ClipResnet, dataset: Dataset, tmp_path: Path) -> None:
    open_features(dataset, backbone, 1.0, tmp_path / "kept")
    for budget in (0.0, 1.0):
        mirrored = open_features(dataset, backbone, budget, tmp_path / "kept", mirrored=True)
        ((rows, X),) = mirrored.batches([np.array([7, 3])])
        assert rows.tolist() == [7]
        image = ImageOps.mirror(load_image(dataset.image_root / dataset.images[7].path, 192))
        expected = backbone.features(backbone.preprocess(image)[None])
        torch.testing.assert_close(X, expected, atol=1e-3, rtol=1e-3)
    assert len(list(tmp_path.rglob("features.npy"))) == 2


def test_what_cannot_be(backbone: ClipResnet, dataset: Dataset, tmp_path: Path) -> None:
    open_features(dataset, backbone, 1.0, tmp_path / "kept")
    (folder,) = (tmp_path / "kept").iterdir()
    with locked(folder / "lock", StoreError("held")), pytest.raises(StoreError, match="another process"):
        open_features(dataset, backbone, 1.0, tmp_path / "kept")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="can't be written"):
        open_features(dataset, backbone, 1.0, tmp_path / "file")
    shutil.rmtree(dataset.image_root)
    dataset.image_root.mkdir()
    with pytest.raises(DataError, match="none of the 10 images"):
        open_features(dataset, backbone, 1.0, tmp_path / "none")
    assert not list((tmp_path / "none").iterdir())
