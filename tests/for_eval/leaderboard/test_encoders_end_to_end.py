"""The other dual encoders as commands: generated images -> leaderboard rows, stores, an index, a search."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from for_eval.__main__ import main
from for_model.data.miniscenes.scenes import write_scenes
from for_model.methods.build import build_method
from for_model.methods.protocol import MethodInfo
from for_search.__main__ import main as search_main
from for_search.store.embed import _default_shard_size
from for_search.store.store import open_store
from tests.helpers.tiny_models import name_tiny_hub_models, name_tiny_open_clip


@pytest.fixture(scope="module", autouse=True)
def _tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        name_tiny_open_clip(tmp_path_factory.mktemp("configs"), patch)
        name_tiny_hub_models(patch)
        yield


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root, {"val": 12}, size=64)
    return root


def leaderboard(scenes: Path, out: Path, methods: str, backbone: str) -> list[dict[str, str]]:
    data = ("--dataset", "coco", "--root", str(scenes), "--split", "val", "--weights", "random", "--device", "cpu")
    command = ["leaderboard", *data, "--methods", methods, "--backbone", backbone]
    assert main([*command, "--out", str(out), "--stores", str(out / "stores")]) == 0
    with (out / "coco.csv").open() as file:
        return list(csv.DictReader(file))


def search_after_embedding(scenes: Path, folder: Path, method: str, backbone: str) -> None:
    """embed, index and search as commands; the search builds the method again from what the index says."""
    data = ("--dataset", "folder", "--root", str(scenes / "val"), "--weights", "random", "--device", "cpu")
    command = ["embed", *data, "--method", method, "--backbone", backbone, "--image-size", "56"]
    size = 56 if method == "blip2" else 48
    assert search_main([*command[:-1], str(size), "--out", str(folder / "store")]) == 0
    info = open_store(folder / "store").info
    assert (info.method, info.backbone, info.image_size) == (method, backbone, size)
    assert search_main(["index", str(folder / "store"), "--out", str(folder / "index")]) == 0
    assert search_main(["search", str(folder / "index"), "a dog", "-k", "3", "--json", "--device", "cpu"]) == 0


def test_rows_of_vits_and_coca(scenes: Path, tmp_path: Path) -> None:
    leaderboard(scenes, tmp_path, "coca", "coca-tiny")
    rows = leaderboard(scenes, tmp_path, "clip,dense-clip,cluster-clip:3", "ViT-tiny")
    assert [(row["backbone"], row["method"], row["embeddings an image"], row["bytes an image"]) for row in rows] == [
        ("ViT-tiny", "clip", "1", "64"),
        ("ViT-tiny", "dense-clip", "16", "1024"),
        ("ViT-tiny", "cluster-clip", "3", "192"),
        ("coca-tiny", "coca", "1", "64"),
    ]
    assert all(0 <= float(row["all mAP@50"]) <= 100 and row["device"] == "cpu" for row in rows)


def test_search_with_coca(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search_after_embedding(scenes, tmp_path, "coca", "coca-tiny")
    found = json.loads(capsys.readouterr().out.split("\n", 2)[2])
    assert len({hit["id"] for hit in found["hits"]}) == 3


@pytest.mark.slow
@pytest.mark.encoders
@pytest.mark.parametrize(("method", "n"), [("owlvit", 9), ("owlv2", 9), ("blip2", 5)])
def test_rows_and_search_with_transformers(
    method: str, n: int, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed: make install-encoders")
    (row,) = leaderboard(scenes, tmp_path, method, "tiny")
    assert (row["backbone"], row["weights"], row["method"], row["images"]) == ("tiny", "random", method, "12")
    result = json.loads(next((tmp_path / "results").glob("*.json")).read_text())
    assert result["versions"]["transformers"]
    capsys.readouterr()
    search_after_embedding(scenes, tmp_path, method, "tiny")
    found = json.loads(capsys.readouterr().out.split("\n", 2)[2])
    assert len({hit["id"] for hit in found["hits"]}) == 3
    assert all(0 <= hit["embedding"] < n for hit in found["hits"])


@pytest.mark.encoders
def test_a_machine_without_the_hub_gets_one_line(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed: make install-encoders")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    data = ("--dataset", "coco", "--root", str(scenes), "--split", "val", "--out", str(tmp_path))
    assert main(["leaderboard", *data, "--methods", "owlv2"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: google/owlv2-base-patch16-finetuned: ")
    assert "give a folder as weights" in error
    assert error.count("\n") == 1


def test_large_embeddings_make_small_shards() -> None:
    def images_a_shard(n: int, dim: int) -> int:
        return _default_shard_size(MethodInfo("owlv2", "", "", "", n, dim, 960, {}))

    assert images_a_shard(1, 512) == images_a_shard(196, 1024) == 512
    assert images_a_shard(5184, 768) == 67  # OWLv2 L/14: 1 GiB of float32
    assert images_a_shard(2**30, 8) == 1


def test_help_names_the_methods(capsys: pytest.CaptureFixture[str]) -> None:
    for run, command in ((search_main, "embed"), (main, "leaderboard")):
        with pytest.raises(SystemExit, match="0"):
            run([command, "--help"])
        text = capsys.readouterr().out
        assert all(name in text for name in ("coca", "owlvit", "owlv2", "blip2", "ViT-B-32"))


def test_a_methods_device_is_its_backbones() -> None:
    assert str(build_method("clip", "ViT-tiny", "random", device="cpu").device) == "cpu"
