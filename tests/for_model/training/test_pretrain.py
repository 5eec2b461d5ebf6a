import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from for_model.__main__ import main
from for_model.backbones.pixels import CLIP_MEAN, CLIP_STD
from for_model.data.miniscenes.concepts import CONCEPTS
from for_model.errors import UsageError
from for_model.training import pretrain as P
from tests.helpers.paths import CONFIGS

RECIPE = CONFIGS / "rn-mini.toml"
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


def test_a_true_pair_is_an_image_that_holds_all_that_a_caption_names() -> None:
    images = [[1, 2, 3], [2], [2, 3]]
    captions = [[1], [2], [3, 2]]
    assert P.true_pairs(images, captions).tolist() == [[True, True, True], [False, True, False], [False, True, True]]


def test_one_sided_pairs_are_normalised_each_way() -> None:
    positives = torch.tensor([[1, 1], [0, 1]], dtype=torch.bool)
    logits = torch.tensor([[2.0, 1.0], [0.5, 3.0]])
    by_image = -(logits.log_softmax(1) * torch.tensor([[0.5, 0.5], [0.0, 1.0]])).sum(1).mean()
    by_text = -(logits.log_softmax(0) * torch.tensor([[1.0, 0.5], [0.0, 0.5]])).sum(0).mean()
    got = P.contrastive_loss(logits, torch.eye(2), torch.tensor(1.0), positives)
    assert torch.allclose(got, (by_image + by_text) / 2)


@pytest.mark.slow
def test_the_text_tower_without_padding_equals_encode_text() -> None:
    training = P.Pretraining(P.load_recipe(RECIPE), "cpu")
    tokens = training.row_of[training.tokenizer(["a dog", "a photo of a dog, an umbrella and a guitar.", ""])]
    whole = F.normalize(training.model.encode_text(tokens), dim=-1)
    assert torch.allclose(P.text_embeddings(training.model, tokens), whole, atol=1e-6)


def test_captions_name_one_to_three_objects_whatever_the_number() -> None:
    rng = np.random.default_rng(0)
    concepts = [3, 50, 120, 200]
    counts = []
    for _ in range(400):
        text, named = P.caption(rng, concepts)
        assert all(CONCEPTS[c].name in text for c in named)
        assert len(set(named)) == len(named)
        assert set(named) <= set(concepts)
        counts.append(len(named))
    assert [counts.count(n) / 400 for n in (1, 2, 3)] == pytest.approx([0.5, 0.3, 0.2], abs=0.08)
    assert all(P.caption(rng, [7])[1] == [7] for _ in range(50))


def test_augmentation_keeps_the_values_and_differs_between_images() -> None:
    training = P.Pretraining(P.load_recipe(RECIPE), "cpu")
    image = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    shown = (training._augment(np.random.default_rng(1), image.repeat(64, 0)) * std + mean) * 255
    plain = torch.from_numpy(image[0]).permute(2, 0, 1).float()
    options = [
        variant
        for order in itertools.permutations(range(3))
        for inverted in (plain[list(order)], 255 - plain[list(order)])
        for variant in (inverted, inverted.flip(2))
    ]
    met = {next(i for i, option in enumerate(options) if torch.allclose(x, option, atol=0.01)) for x in shown}
    assert len(met) > 12


def test_overrides_and_unknown_settings() -> None:
    assert P.load_recipe(RECIPE, ["scenes.epochs=3"]).stages[1].epochs == 3
    assert P.load_recipe(RECIPE, ["seed=5"]).seed == 5
    with pytest.raises(UsageError, match=r"scenes\.learning_rate"):
        P.load_recipe(RECIPE, ["scenes.learnign_rate=3"])
    with pytest.raises(UsageError, match="seed is 'abc'; expected int, at least 0"):
        P.load_recipe(RECIPE, ["seed=abc"])


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_command_writes_weights_that_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from for_model.backbones.clip_resnet import load_clip_resnet

    out, work = tmp_path / "mini.safetensors", tmp_path / "work"
    arguments = ["pretrain-mini", "--work", str(work), "--out", str(out)]
    tiny = [setting.replace("crops.epochs=2", "crops.epochs=1") for setting in TINY]
    assert main([*arguments, *tiny]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()[:-1]]
    assert [line["stage"] for line in lines] == ["crops", "scenes"]
    backbone = load_clip_resnet("RN-mini", str(out))
    state = load_file(work / "checkpoint.safetensors")
    own = state["model.visual.attnpool.c_proj.weight"]
    assert torch.allclose(backbone.model.visual.attnpool.c_proj.weight, own, atol=1e-3)
    assert out.stat().st_size < 15e6
    assert main([*arguments, *tiny, "seed=1"]) == 2
    assert "another recipe" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("scenes.object_px=[28]", r"scenes\.object_px is \[28\]; expected two numbers"),
        ("scenes.object_px=[28, 'x']", r"scenes\.object_px is 'x'; expected two numbers"),
        ("scenes.batch_size=0", r"scenes\.batch_size is 0; expected int, at least 1"),
        ("scenes=3", r"\[scenes\] is 3; expected a table"),
        ("stages=3", r"stages is 3; expected \[\[stage\]\]"),
        ("seed", "KEY=VALUE; valid keys: seed, weight_decay, crops.name"),
        ("sceens.epochs=3", "unknown setting 'sceens'; valid: seed"),
    ],
)
def test_a_slip_in_a_recipe_is_one_clear_line(change: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        P.load_recipe(RECIPE, [change])


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can't read the recipe"):
        P.load_recipe(tmp_path / "missing.toml")
    path = tmp_path / "mine.toml"
    for text in ("seed = 0", "stage = 3", "[[stage]]\nsize = 3", '[[stage]]\nname = "a"\n[[stage]]\nname = "a"'):
        path.write_text(text)
        with pytest.raises(UsageError, match=r"expected \[\[stage\]\] tables, each with a name of its own"):
            P.load_recipe(path)
    path.write_text('seed = 0\nweight_decay = 0.1\n[[stage]]\nname = "crops"')
    with pytest.raises(UsageError, match=r"the setting crops\.n_images is missing"):
        P.load_recipe(path)
