import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from for_model import pretrain as P
from for_model.__main__ import main
from for_model.data.concepts import CONCEPTS
from for_model.errors import UsageError

RECIPE = Path(P.__file__).parent / "configs" / "rn-mini.toml"
TINY = [
    "crops.n_images=32", "crops.epochs=2", "crops.batch_size=16",
    "scenes.n_images=16", "scenes.epochs=1", "scenes.batch_size=8", "scenes.size=64",
]  # fmt: skip


def test_loss_equals_clips_own_when_all_captions_differ() -> None:
    generator = torch.Generator().manual_seed(0)
    images, texts = (F.normalize(torch.randn(5, 7, generator=generator), dim=-1) for _ in range(2))
    logits = 10 * images @ texts.T
    labels = torch.arange(5)
    expected = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    got = P.contrastive_loss(images, texts, torch.tensor(10.0), torch.eye(5, dtype=torch.bool))
    assert torch.allclose(got, expected)


def test_images_of_the_same_objects_are_not_pushed_apart() -> None:
    same = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), dim=-1)
    positives = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    scale = torch.tensor(50.0)
    lowest = -torch.log(torch.tensor(0.5)) * 2 / 3  # two equal positives share the probability
    assert torch.allclose(P.contrastive_loss(same, same, scale, positives), lowest, atol=1e-4)
    assert P.contrastive_loss(same, same, scale, torch.eye(3, dtype=torch.bool)) >= lowest


def test_captions_name_the_objects_and_now_and_then_leave_one_out() -> None:
    rng = np.random.default_rng(0)
    concepts = [3, 50, 120]
    names = [CONCEPTS[c].name for c in concepts]
    counts = [sum(name in P.caption(rng, concepts) for name in names) for _ in range(300)]
    assert min(counts) >= 1
    assert counts.count(3) > 150
    assert counts.count(2) > 10
    assert all(CONCEPTS[7].name in P.caption(rng, [7]) for _ in range(50))


def test_overrides_and_unknown_settings() -> None:
    assert P.load_recipe(RECIPE, ["scenes.epochs=3"]).stages[1].epochs == 3
    assert P.load_recipe(RECIPE, ["seed=5"]).seed == 5
    with pytest.raises(UsageError, match=r"scenes\.learning_rate"):
        P.load_recipe(RECIPE, ["scenes.learnign_rate=3"])
    with pytest.raises(UsageError, match="not JSON"):
        P.load_recipe(RECIPE, ["seed=abc"])


def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    recipe = P.load_recipe(RECIPE, TINY)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    steps = list(P.pretrain(recipe, whole))
    assert [s[:2] for s in steps] == [("crops", 1), ("crops", 2), ("scenes", 1)]
    for _ in range(3):  # each run is stopped after its first epoch
        next(P.pretrain(recipe, parts))
    assert list(P.pretrain(recipe, parts)) == []
    first, second = (load_file(folder / "checkpoint.safetensors") for folder in (whole, parts))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_the_command_writes_weights_that_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from for_model.backbone import load_backbone

    out, work = tmp_path / "mini.safetensors", tmp_path / "work"
    arguments = ["pretrain-mini", "--work", str(work), "--out", str(out)]
    tiny = [setting.replace("crops.epochs=2", "crops.epochs=1") for setting in TINY]
    assert main([*arguments, *tiny]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()[:-1]]
    assert [line["stage"] for line in lines] == ["crops", "scenes"]
    backbone = load_backbone("RN-mini", str(out))
    state = load_file(work / "checkpoint.safetensors")
    own = state["model.visual.attnpool.c_proj.weight"]
    assert torch.allclose(backbone.model.visual.attnpool.c_proj.weight, own, atol=1e-3)
    assert out.stat().st_size < 15e6
    assert main([*arguments, *tiny, "seed=1"]) == 2
    assert "another recipe" in capsys.readouterr().err
