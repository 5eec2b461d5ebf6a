"""Training end to end on a few drawn scenes: what learns, what resumes, what several processes share."""

import csv
import json
import shutil
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from scipy.optimize import linear_sum_assignment

import for_model.training.targets as targets_module
import for_model.training.train as train_module
from for_model.__main__ import main
from for_model.backbones.clip_resnet import load_clip_resnet
from for_model.data.coco import load_coco
from for_model.data.images import load_image
from for_model.data.miniscenes.scenes import write_scenes
from for_model.errors import DataError, ForError, UsageError
from for_model.files import locked, write_json
from for_model.methods.build import build_method
from for_model.methods.head_files import load_head, read_head_file
from for_model.text import cached_category_embeddings
from for_model.training.config import TrainConfig, config_from
from for_model.training.distributed import World
from for_model.training.losses.ranking import best_cosines, ranking_loss
from for_model.training.train import Training, load_training_data, train
from tests.helpers.ports import free_port
from tests.helpers.programs import program


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root, {"train": 40}, size=96)
    return root


def config(scenes: Path, **sections: dict) -> TrainConfig:
    table = {
        "precision": "float32",
        "image_size": 96,
        "data": {"dataset": "coco", "root": str(scenes), "split": "train"},
        "head": {"queries": 4, "feedforward": 64, "layers": 1},
        "pseudo_labels": {"vocabulary": "miniscenes", "clusters": 4, "threshold": 0.2},
        "optimizer": {"epochs": 2, "batch_size": 16, "learning_rate": 1e-3, "drop_epoch": 1},
    }
    for section, settings in sections.items():
        table[section] = {**table.get(section, {}), **settings} if isinstance(settings, dict) else settings
    return config_from(table)


def training_of(settings: TrainConfig, out: Path) -> Training:
    return Training(settings, out, load_training_data(settings), load_clip_resnet("RN-mini", None, 96), World())


def weights_of(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "head.safetensors")


def test_a_run_leaves_a_head_that_is_a_method_and_a_log(scenes: Path, tmp_path: Path) -> None:
    lines = list(train(config(scenes), tmp_path / "run"))
    assert [line["epoch"] for line in lines] == [1, 2]
    assert lines[0]["images"] == 40
    assert lines[0]["learning_rate"] == pytest.approx(1e-3)
    assert lines[1]["learning_rate"] == pytest.approx(1e-4)  # dropped once
    assert lines[0]["loss"] == pytest.approx(lines[0]["sup"] + lines[0]["pse"], abs=1e-4)
    assert [json.loads(text) for text in (tmp_path / "run" / "log.jsonl").read_text().splitlines()] == lines
    with (tmp_path / "run" / "log.csv").open() as file:
        assert [float(row["loss"]) for row in csv.DictReader(file)] == [line["loss"] for line in lines]
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()
    method = build_method(str(tmp_path / "run" / "head.safetensors"), device="cpu")
    assert (method.info.method, method.info.n_embeddings, method.info.image_size) == ("for", 4, 96)
    assert list(train(config(scenes), tmp_path / "run")) == []  # nothing is left to do


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_weights(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(scenes, data={"mirrored": True}, optimizer={"epochs": 3})
    whole = list(train(settings, tmp_path / "whole"))
    monkeypatch.setattr(train_module, "CHECKPOINT_SECONDS", 0.0)  # one after every step
    first = train(settings, tmp_path / "parts")
    assert next(first) | {"seconds": 0, "images_per_second": 0} == whole[0] | {"seconds": 0, "images_per_second": 0}
    first.close()
    second = training_of(settings, tmp_path / "parts")
    learn = second._learn

    def dies(*arguments: object) -> None:
        if second.step == 5:  # in the middle of the second epoch
            raise KeyboardInterrupt
        learn(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(second, "_learn", dies)
    with pytest.raises(KeyboardInterrupt):
        list(second.run())
    rest = list(train(settings, tmp_path / "parts"))
    assert [line["epoch"] for line in rest] == [2, 3]
    assert [line["loss"] for line in rest] == [line["loss"] for line in whole[1:]]
    expected = weights_of(tmp_path / "whole")
    for name, value in weights_of(tmp_path / "parts").items():
        assert torch.equal(value, expected[name]), name


def test_what_killed_trainings_left_over_is_cleared_away(scenes: Path, tmp_path: Path) -> None:
    for name in (".config.json.x_1.tmp", ".checkpoint.safetensors.ab.tmp", ".tmpx3Kp1a", ".log.csv.q.tmp"):
        (tmp_path / name).write_text("half")
    first = train(config(scenes, optimizer={"epochs": 2}), tmp_path)  # goes on though there is no config.json yet
    next(first)
    first.close()
    (tmp_path / ".head.safetensors.f0.tmp").write_text("half")
    (tmp_path / ".notes.tmp").write_text("mine")
    list(train(config(scenes, optimizer={"epochs": 2}), tmp_path))
    there = {path.name for path in tmp_path.iterdir()}
    assert there == {"config.json", "head.safetensors", "lock", "log.csv", "log.jsonl", ".notes.tmp"}


def test_a_step_looks_at_the_images_or_at_their_mirror_images(scenes: Path, tmp_path: Path) -> None:
    training = training_of(config(scenes, data={"mirrored": True}), tmp_path)
    seen = {0: 0, 1: 0}
    for epoch in range(4):
        for (view, rows, X), order in zip(training._batches(epoch), training._order(epoch), strict=True):
            assert rows.tolist() == order.tolist()
            ((_, expected),) = training.views[view].batches([order])
            assert torch.equal(X, expected)
            seen[view] += 1
    assert min(seen.values()) > 0
    plain = training_of(config(scenes), tmp_path / "plain")
    assert {view for view, _, _ in plain._batches(0)} == {0}


@pytest.mark.slow
def test_another_seed_or_setting_trains_another_head(scenes: Path, tmp_path: Path) -> None:
    for number, changed in enumerate(({}, {"seed": 1}, {"loss": {"pse": 0.0}})):
        list(train(config(scenes, **changed), tmp_path / str(number)))
    queries = [weights_of(tmp_path / str(number))["queries"] for number in range(3)]
    assert not torch.equal(queries[0], queries[1])
    assert not torch.equal(queries[0], queries[2])
    with pytest.raises(UsageError, match="other settings"):
        list(train(config(scenes, seed=2), tmp_path / "0"))
    with locked(tmp_path / "3" / "lock", UsageError("held")):
        write_json(tmp_path / "3" / "config.json", json.loads((tmp_path / "0" / "config.json").read_text()))
        with pytest.raises(UsageError, match="another training is writing"):
            list(train(config(scenes), tmp_path / "3"))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"")
    with pytest.raises(UsageError, match="not a training's"):
        list(train(config(scenes), tmp_path / "photos"))


@pytest.mark.parametrize(("sup", "pse", "name"), [(1.0, 0.0, "for-sup"), (0.0, 1.0, "for-pl"), (2.0, 0.5, "for")])
def test_the_losses_have_their_weights(scenes: Path, tmp_path: Path, sup: float, pse: float, name: str) -> None:
    line = next(train(config(scenes, loss={"sup": sup, "pse": pse}), tmp_path / "run"))
    assert line["loss"] == pytest.approx(sup * line["sup"] + pse * line["pse"], abs=1e-3)
    assert (line["sup"] > 0) == (sup > 0)
    assert (line["pse"] > 0) == (pse > 0)
    assert config(scenes, loss={"sup": sup, "pse": pse}).method == name


@pytest.mark.parametrize(
    ("kind", "freeze", "letters"),
    [
        ("for", "none", "qkvc"),
        ("for", "vo", "qk"),
        ("for", "qkvo", ""),
        ("ft-clip", "qkvo", "qkvc"),
        ("ft-dense-clip", "qkvo", "vc"),
    ],
)
def test_what_is_frozen_stays(scenes: Path, tmp_path: Path, kind: str, freeze: str, letters: str) -> None:
    settings = config(scenes, head={"kind": kind, "freeze": freeze}, optimizer={"epochs": 1})
    training = training_of(settings, tmp_path / "run")
    frozen = {name: value.clone() for name, value in training.backbone.pool.state_dict().items()}
    before = {name: value.detach().clone() for name, value in training.parameters.items()}
    list(training.run())
    assert all(torch.equal(value, frozen[name]) for name, value in training.backbone.pool.state_dict().items())
    same = {name for name, value in training.parameters.items() if torch.equal(value, before[name])}
    # a bias of k moves all logits of a softmax alike, so no gradient reaches it but Adam's weight decay
    assert not {name for name in same if not name.endswith("k_proj.bias")}
    own = {name.split(".")[1][0] for name in before if name.startswith("own.")}
    assert own == set(letters)


@pytest.mark.slow
def test_overfits_eight_scenes(scenes: Path, tmp_path: Path) -> None:
    """100% of the base names of 8 scenes: each name ranks the scenes that hold it first."""
    settings = config(
        scenes,
        data={"images": 8},
        head={"queries": 8, "layers": 2, "dropout": 0.0, "freeze": "none"},
        loss={"pse": 0.0},
        optimizer={"epochs": 40, "batch_size": 8, "learning_rate": 2e-3, "drop_epoch": 30, "clip_norm": 1.0},
    )
    list(train(settings, tmp_path / "run"))
    method = build_method(str(tmp_path / "run" / "head.safetensors"), device="cpu")
    dataset = load_coco(scenes, "train")
    images = dataset.images[:8]
    pixels = [method.preprocess(load_image(dataset.image_root / image.path, 192)) for image in images]
    Y = method.encode_images(torch.stack(pixels))
    base = [i for i, c in enumerate(dataset.categories) if c.group == "base"]
    texts = cached_category_embeddings(method, [dataset.categories[i].name for i in base])
    scores = torch.einsum("mnd,cd->cmn", Y, texts).amax(-1)
    held = torch.tensor([[i in dataset.labels.get(image.id, ()) for image in images] for i in base])
    present = held.any(1)
    assert int(present.sum()) >= 8
    for score, relevant in zip(scores[present], held[present], strict=True):
        assert score[relevant].min() > score[~relevant].max()


def test_the_labelled_loss_may_be_the_mean_over_the_whole_batch(scenes: Path, tmp_path: Path) -> None:
    sums = {}
    for over in ("labelled", "batch"):
        half = config(scenes, data={"labelled": 0.5}, loss={"sup_mean": over}, head={"dropout": 0.0})
        training = training_of(half, tmp_path / over)
        rows = np.flatnonzero(training.views[0].usable)[:16]
        ((rows, X),) = training.views[0].batches([rows])
        training._learn(0, rows, X)
        sums[over] = training.sums["sup"]
        share = training.targets.labelled[rows].mean()
    assert 0 < share < 1
    assert sums["batch"] == pytest.approx(share * sums["labelled"], rel=1e-4)


def test_the_labelled_share_is_drawn_by_the_fold(scenes: Path, tmp_path: Path) -> None:
    masks = [targets_module.labelled_images(40, 0.1, fold) for fold in (0, 0, 1)]
    assert [mask.sum() for mask in masks] == [4, 4, 4]
    assert (masks[0] == masks[1]).all()
    assert (masks[0] != masks[2]).any()
    assert targets_module.labelled_images(40, 0.001, 0).sum() == 1
    few = config(scenes, data={"labelled": 0.1}, loss={"pse": 0.0})
    training = training_of(few, tmp_path / "sup")
    order = np.concatenate(training._order(0))
    assert set(order) == set(np.flatnonzero(training.targets.labelled))  # the unlabelled teach nothing here
    assert len(order) == 40  # and yet it learns for as long
    both = training_of(config(scenes, data={"labelled": 0.1}), tmp_path / "both")
    assert sorted(np.concatenate(both._order(0))) == list(range(40))
    assert list(both.run())


def test_the_order_of_the_images_in_a_batch_changes_nothing(scenes: Path, tmp_path: Path) -> None:
    settings = config(scenes, head={"dropout": 0.0}, loss={"no_object_weight": 0.1})
    gradients = []
    for number, order in enumerate((np.arange(16), np.arange(16)[::-1].copy())):
        training = training_of(settings, tmp_path / str(number))
        rows, X = next(training.views[0].batches([order]))
        training._learn(0, rows, X)
        gradients.append(torch.cat([p.grad.flatten() for p in training.parameters.values() if p.grad is not None]))
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-3)


def test_unreadable_images_are_counted(scenes: Path, tmp_path: Path) -> None:
    root = tmp_path / "scenes"
    shutil.copytree(scenes, root)
    (root / "train" / "000000000003.jpg").write_bytes(b"")
    # kept feature maps tell before the first epoch, and another image takes the place; on the fly it is found out
    for budget, images in ((1.0, 40), (0.0, 39)):
        settings = config(root, features={"cache_gib": budget}, optimizer={"epochs": 1})
        (line,) = train(settings, tmp_path / str(budget))
        assert (line["images"], line["skipped"]) == (images, 1)


def test_what_is_not_finite_ends_the_training(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ForError, match="not finite"):
        list(train(config(scenes, optimizer={"learning_rate": 1e30, "epochs": 5}), tmp_path / "loss"))
    training = training_of(config(scenes), tmp_path / "gradient")
    monkeypatch.setattr(training.head, "forward", lambda X, pool: _exploding(X, training))
    with pytest.raises(ForError, match="gradient is not finite"):
        list(training.run())


def _exploding(X: torch.Tensor, training: Training) -> torch.Tensor:
    """Finite embeddings with an infinite gradient."""
    queries = training.head.queries
    bent = queries + (queries * 0).abs().sqrt() * 0.0  # d sqrt(x) / dx at 0
    return torch.nn.functional.normalize(bent[None, :, :256].expand(len(X), -1, -1), dim=-1)


def test_without_labels_there_is_nothing_to_supervise(scenes: Path, tmp_path: Path) -> None:
    root = tmp_path / "scenes"
    shutil.copytree(scenes, root)
    path = root / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "annotations": []}))
    with pytest.raises(DataError, match=r"loss\.sup=0"):
        list(train(config(root), tmp_path / "both"))
    assert len(list(train(config(root, loss={"sup": 0.0}), tmp_path / "pl"))) == 2


def plus(scenes: Path, **sections: dict) -> TrainConfig:
    """A training of FOR+ that ranks the images of a batch."""
    table: dict[str, dict] = {
        "head": {"kind": "for+", "hidden": 16},
        "loss": {"objective": "ranking", "pse": 8.0},
        "optimizer": {"schedule": "linear", "weight_decay": 0.0},
    }
    return config(scenes, **{key: {**table.get(key, {}), **sections.get(key, {})} for key in {*table, *sections}})


class TestRanking:
    @pytest.mark.slow
    def test_overfits_a_few_scenes(self, scenes: Path, tmp_path: Path) -> None:
        """Each base name ranks the scenes that hold it first, which the untrained head doesn't."""
        settings = plus(
            scenes,
            data={"images": 12},
            head={"queries": 8, "hidden": 64},
            loss={"pse": 0.0},
            optimizer={"epochs": 120, "batch_size": 12, "learning_rate": 5e-3},
        )
        training = training_of(settings, tmp_path / "run")
        ((_, X),) = training.views[0].batches([np.arange(12)])
        held = torch.tensor([[n in found for found in training.targets.base] for n in range(48)])
        held = held[held.any(1)]
        names = [n for n in range(48) if any(n in found for found in training.targets.base)]
        assert len(names) >= 8

        def in_order() -> int:
            with torch.no_grad():
                Y = training.head(X, training.backbone.pool)
            scores = torch.einsum("mnd,cd->cmn", Y, training.targets.base_texts[names]).amax(-1)
            return sum(bool(s[h].min() > s[~h].max()) for s, h in zip(scores, held, strict=True) if not h.all())

        before = in_order()
        lines = list(training.run())
        assert before < len(names) / 2
        assert in_order() == sum(not h.all() for h in held)
        assert lines[-1]["loss"] < lines[0]["loss"] / 10

    def test_resumed_in_the_middle_it_ends_with_the_same_weights(
        self, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings = plus(scenes, pseudo_labels={"every": 4, "a_step": 10})
        whole = list(train(settings, tmp_path / "whole"))
        monkeypatch.setattr(train_module, "CHECKPOINT_SECONDS", 0.0)
        part = training_of(settings, tmp_path / "parts")
        monkeypatch.setattr(part, "_save_by_the_clock", lambda: (part._save(), _stop_at(part, 4)))
        (tmp_path / "parts").mkdir()
        with pytest.raises(KeyboardInterrupt):
            list(part.run())
        rest = list(training_of(settings, tmp_path / "parts").run())
        assert [line["loss"] for line in rest] == [line["loss"] for line in whole[1:]]
        expected = weights_of(tmp_path / "whole")
        for name, value in weights_of(tmp_path / "parts").items():
            assert torch.equal(value, expected[name]), name
        assert read_head_file(tmp_path / "whole" / "head.safetensors").method == "for+"

    def test_several_processes_are_refused_in_one_line(
        self, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(train_module, "join_world", lambda device: World(0, 2))
        monkeypatch.setattr(World, "close", lambda world: None)
        with pytest.raises(UsageError, match=r"loss\.objective=ranking .* 2 processes .* without torchrun") as raised:
            list(train(plus(scenes), tmp_path / "run"))
        assert "\n" not in str(raised.value)
        assert not (tmp_path / "run").exists()

    def test_a_linear_schedule_ends_near_0_and_decoupled_is_adamw(self, scenes: Path, tmp_path: Path) -> None:
        rate = {"learning_rate": 1e-3, "warmup_steps": 2}
        training = training_of(plus(scenes, loss={"pse": 0.0}, optimizer={**rate, "decoupled": True}), tmp_path)
        rates = []
        for step in range(training.total_steps):
            training.step = step
            rates.append(training._set_rate())
        assert training.total_steps == 6  # 40 images, 16 a step, twice
        assert rates == pytest.approx([1e-3 * part for part in (1 / 2, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6)])
        assert training.optimizer.param_groups[0]["lr"] == rates[-1]
        assert type(training.optimizer) is torch.optim.AdamW
        coupled = training_of(plus(scenes, loss={"pse": 0.0}), tmp_path)
        assert type(coupled.optimizer) is torch.optim.Adam


def _stop_at(training: Training, step: int) -> None:
    if training.step == step:
        raise KeyboardInterrupt


_SECOND = """
import json, sys
from pathlib import Path
from for_model.training.train import train
from for_model.training.config import config_from
list(train(config_from(json.loads(sys.argv[1])), Path(sys.argv[2]), "cpu"))
"""


@pytest.mark.slow
def test_two_processes_train_the_same_head_as_one(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This process is the first of the two, and starts the second as `torchrun` would."""
    settings = config(scenes, head={"dropout": 0.0}, data={"labelled": 0.7, "images": 33}, optimizer={"epochs": 1})
    (alone,) = train(settings, tmp_path / "one")
    monkeypatch.setattr("for_model.training.distributed._TIMEOUT", timedelta(minutes=5))  # should the second not come
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    with program(_SECOND, json.dumps(settings.to_json()), str(tmp_path / "two"), **world, RANK="1") as second:
        for name, value in {**world, "RANK": "0"}.items():
            monkeypatch.setenv(name, value)
        (together,) = train(settings, tmp_path / "two", "cpu")
        assert second.wait() == 0, second.said()
    for key in ("loss", "sup", "pse"):
        assert together[key] == pytest.approx(alone[key], rel=1e-4)
    assert together["images"] == alone["images"] == 33
    one, two = weights_of(tmp_path / "one"), weights_of(tmp_path / "two")
    for name, value in one.items():
        torch.testing.assert_close(two[name].float(), value.float(), atol=3e-3, rtol=1e-2)


@pytest.mark.slow
def test_the_command_trains_says_where_and_teaches(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f'[data]\ndataset = "coco"\nsplit = "train"\nroot = "{scenes}"\n[pseudo_labels]\nclusters = 4\n')
    out = tmp_path / "run"
    arguments = [
        "train",
        str(path),
        "--out",
        str(out),
        "--smoke",
        "weights=random",
        "pseudo_labels.vocabulary=miniscenes",
    ]
    assert main([*arguments, "head.queries=3"]) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 2
    assert f"--methods {out / 'head.safetensors'}" in captured.err
    file = read_head_file(out / "head.safetensors")
    assert (file.config.queries, file.backbone["weights"], file.training["data"]["images"]) == (3, "random", 16)
    assert load_head(file, load_clip_resnet("RN-mini", "random")).n_embeddings(25) == 3
    assert main(["train", str(path), "head.querys=3"]) == 2
    assert "head.queries" in capsys.readouterr().err


def test_a_federated_image_is_compared_with_what_is_known_and_pseudo_negatives(scenes: Path, tmp_path: Path) -> None:
    """On a dataset with negatives the softmax of an image runs over its labels, its negatives and drawn categories."""
    settings = config(scenes, loss={"pse": 0.0, "negatives": 5, "no_object_weight": 0.0})
    dataset = load_training_data(settings)
    base = [i for i, category in enumerate(dataset.categories) if category.group == "base"]
    absent = {image.id: frozenset(base[:2]) - dataset.labels[image.id] for image in dataset.images}
    training = Training(
        settings, tmp_path, replace(dataset, negatives=absent), load_clip_resnet("RN-mini", None, 96), World()
    )
    rows = np.arange(8)
    known = training.targets.known(rows, 5, (0, 3))
    assert known is not None
    frequencies = training.targets.frequencies
    for row, image, runs_over in zip(rows, dataset.images, known.numpy(), strict=False):
        labels = {base.index(i) for i in dataset.labels[image.id] if i in base}
        negatives = {base.index(i) for i in absent[image.id]}
        assert set(training.targets.base[row]) == labels
        assert labels | negatives <= set(np.flatnonzero(runs_over))
        assert runs_over.sum() == len(labels) + max(5, len(negatives))
        assert all(frequencies[n] > 0 for n in set(np.flatnonzero(runs_over)) - labels - negatives)
    assert sum(frequencies) == sum(map(len, training.targets.base))
    torch.testing.assert_close(training.targets.known(rows[3:5], 5, (0, 3)), known[3:5])  # whatever the batch
    assert (training.targets.known(rows, 5, (0, 4)) != known).any()  # drawn anew each step
    X = next(training.views[0].batches([rows]))[1]
    training._learn(0, rows, X)
    federated = training.sums["loss"]
    # by hand: the same head on the same images, with the softmax over what is known alone
    fresh = Training(settings, tmp_path, replace(dataset, negatives=absent), training.backbone, World())
    torch.manual_seed(train_module._seed(settings.seed, 0, 0))
    Y = fresh.head.train()(X, fresh.backbone.pool)
    allowed = fresh.targets.known(rows, 5, (0, 0))
    logits = fresh.backbone.logit_scale * Y @ fresh.targets.base_texts.T
    logs = logits.masked_fill(~allowed[:, None], -torch.inf).log_softmax(-1)  # [B, N, C]
    expected = 0.0
    for image, wanted in zip(logs, fresh.targets.base, strict=False):
        best = linear_sum_assignment(image[:, wanted].exp().detach().numpy(), maximize=True)
        expected -= float(image[:, wanted].detach().numpy()[best].sum()) / len(rows)
    assert federated == pytest.approx(expected, rel=1e-4)


def test_missing_images_stop_a_training_before_it_starts(scenes: Path, tmp_path: Path) -> None:
    root = tmp_path / "scenes"
    shutil.copytree(scenes, root)
    (root / "train" / "000000000003.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of the 40 images .* data\.allow_missing=true trains without them"):
        list(train(config(root, backbone="no such backbone"), tmp_path / "run"))
    (line,) = train(config(root, data={"allow_missing": True}, optimizer={"epochs": 1}), tmp_path / "run")
    assert line["skipped"] == 1


def test_a_missing_root_is_asked_for_as_a_setting() -> None:
    given = config_from({"data": {"dataset": "flickr8k", "split": "train"}})
    with pytest.raises(UsageError, match=r"^dataset 'flickr8k' needs a folder: give it with data\.root=FOLDER$"):
        load_training_data(given)


def test_captions_in_place_of_annotations(scenes: Path, tmp_path: Path) -> None:
    root = tmp_path / "scenes"
    shutil.copytree(scenes, root)
    settings = config(root, data={"labels": "captions"}, loss={"pse": 0.0}, optimizer={"epochs": 1})
    with pytest.raises(DataError, match=r"captions_train\.json doesn't exist") as error:
        list(train(settings, tmp_path / "none"))
    assert "\n" not in str(error.value)
    annotated = load_coco(root, "train")
    base, novel = (next(c.name for c in annotated.categories if c.group == group) for group in ("base", "novel"))
    first, second, *_ = (image.id for image in annotated.images)
    content = {
        "images": [{"id": image.id, "file_name": image.path} for image in annotated.images],
        "annotations": [
            {"id": 1, "image_id": first, "caption": f"One {base} and two {novel}s ."},
            {"id": 2, "image_id": second, "caption": "Nothing"},
        ],
    }
    write_json(root / "annotations" / "captions_train.json", content)
    training = training_of(settings, tmp_path / "run")
    trained_on = [c.name for c in annotated.categories if c.group == "base"]
    assert [[trained_on[n] for n in found] for found in training.targets.base[:2]] == [[base], []]  # base names alone
    assert not any(training.targets.base[2:])
    assert len(list(training.run())) == 1


def test_nouns_of_captions_beside_the_labels(scenes: Path, tmp_path: Path) -> None:
    root = tmp_path / "scenes"
    shutil.copytree(scenes, root)
    annotated = load_coco(root, "train")
    novel = next(c.name for c in annotated.categories if c.group == "novel")
    content = {
        "images": [{"id": image.id, "file_name": image.path} for image in annotated.images],
        "annotations": [
            {"id": n, "image_id": image.id, "caption": f"A {novel} on snow and sand" if n % 2 else f"{novel} in snow"}
            for n, image in enumerate(annotated.images)
        ],
    }
    write_json(root / "annotations" / "captions_train.json", content)
    words = tmp_path / "words.txt"
    words.write_text(f"sand\nsnow\n{novel} house\nnothing of the kind\n")
    loss, vocabulary = {"objective": "ranking", "pse": 0.0}, {"vocabulary": str(words)}
    plain = training_of(config(root, loss=loss, pseudo_labels=vocabulary), tmp_path / "plain")
    settings = config(root, data={"nouns": 2}, loss=loss, pseudo_labels=vocabulary)
    training = training_of(settings, tmp_path / "run")
    assert training.targets.nouns is not None
    assert training.targets.nouns[:3] == [[1], [0, 1], [1]]  # of sand, snow
    rows = np.arange(4)
    Y = F.normalize(torch.randn(4, 3, training.backbone.dim), dim=-1)
    added = ranking_loss(
        best_cosines(Y, training.targets.noun_texts),
        torch.tensor([[False, True], [True, True], [False, True], [True, True]]),
        1 / settings.loss.temperature,
    )
    assert training.objective.on_labels(Y, rows, 0) == pytest.approx(plain.objective.on_labels(Y, rows, 0) + added)
    with pytest.raises(DataError, match=r"no name of .* is in the captions of 999 images"):
        training_of(config(root, data={"nouns": 999}, loss=loss, pseudo_labels=vocabulary), tmp_path / "many")
    with pytest.raises(UsageError, match=r"data\.nouns=2 is learnt from with loss\.objective=ranking alone"):
        config(root, data={"nouns": 2})
