"""A training's settings: the paper's to the letter, and one clear line for every slip."""

from pathlib import Path

import pytest

from for_model.errors import UsageError
from for_model.heads.config import PlusSettings
from for_model.settings import valid_keys
from for_model.training.config import TrainConfig, config_from, load_config
from tests.helpers.paths import CONFIGS


@pytest.mark.parametrize(
    ("name", "dataset", "size", "w", "pse"),
    [
        ("for-coco", "coco", 448, 0.1, 1.0),
        ("for-lvis", "lvis", 448, 0.0, 1.0),
        ("for-nuimages", "nuimages", 768, 0.0, 10.0),
    ],
)
def test_the_papers_configs_are_table_8(name: str, dataset: str, size: int, w: float, pse: float) -> None:
    config = load_config(CONFIGS / f"{name}.toml")
    assert (config.backbone, config.weights, config.image_size, config.data.dataset) == (
        "RN50x64", "openai", size, dataset
    )  # fmt: skip
    head, optimizer, labels = config.head, config.optimizer, config.pseudo_labels
    assert (head.kind, head.layers, head.queries, head.dropout, head.freeze) == ("for", 2, 50, 0.1, "qkvo")
    assert (optimizer.epochs, optimizer.learning_rate, optimizer.drop_epoch, optimizer.drop_factor) == (
        25,
        1e-5,
        15,
        0.1,
    )
    assert (optimizer.batch_size, optimizer.weight_decay, optimizer.beta1, optimizer.beta2) == (64, 1e-4, 0.9, 0.999)
    assert (optimizer.warmup_steps, optimizer.clip_norm) == (0, 0.0)  # the paper has neither
    assert (labels.threshold, labels.clusters, labels.vocabulary, labels.without_novel) == (
        5e-4,
        50,
        "imagenet21k",
        False,
    )
    assert (config.loss.sup, config.loss.pse, config.loss.no_object_weight) == (1.0, pse, w)
    assert config.data.labelled == 1.0


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("f*.toml")), ids=lambda path: path.stem)
def test_every_config_says_how_it_is_run(path: Path) -> None:
    assert f"python -m for_model train for_model/configs/{path.name}" in path.read_text()
    assert isinstance(load_config(path), TrainConfig)


BASE = {"data": {"dataset": "coco", "split": "train2017"}}


def test_settings_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[data]\ndataset = "coco"\nsplit = "train2017"\n')
    changes = ["weights=random", "data.root=~/my photos", "head.queries=7", "loss.pse=0", "head.freeze='vo'"]
    config = load_config(path, [*changes, "optimizer.learning_rate=3e-4", "pseudo_labels.without_novel=true"])
    assert (config.weights, config.data.root, config.head.queries, config.loss.pse) == ("random", "~/my photos", 7, 0.0)
    assert (config.head.freeze, config.optimizer.learning_rate) == ("vo", 3e-4)
    assert config.pseudo_labels.without_novel
    assert config_from(config.to_json()) == config


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("head.querys=3", "head.queries"),
        ("heads=3", "valid"),
        ("seed", "KEY=VALUE"),
        ("seed.x=1", "valid"),
        ("head.queries=many", "expected int"),
        ("head.queries=2.5", "expected int"),
        ("head.queries=true", "expected int"),
        ("head=3", "table"),
        ("head.queries=0", "queries is 0; expected int, at least 1"),
        ("head.kind=sum", "ft-dense-clip"),
        ("head.freeze=qk", "qkvo"),
        ("optimizer.learning_rate=0", "above 0"),
        ("optimizer.learning_rate=nan", "above 0"),
        ("optimizer.epochs=0", "at least 1"),
        ("optimizer.batch_size=0", "at least 1"),
        ("data.labelled=0", r"data\.labelled is 0; expected float, above 0, at most 1"),
        ("data.labelled=1.5", "at most 1"),
        ("data.images=-1", "at least 0"),
        ("pseudo_labels.threshold=2", "at least 0, at most 1"),
        ("pseudo_labels.clusters=0", "at least 1"),
        ("loss.no_object_weight=-0.1", "at least 0"),
        ("loss.pse=nan", "at least 0"),
        ("data.dateset=coco", r"unknown setting 'data\.dateset'"),
        ("foo.bar=1", "unknown setting 'foo'"),
        ("precision=half", "bfloat16"),
    ],
)
def test_a_slip_is_one_clear_line(tmp_path: Path, change: str, says: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('seed = 0\n[data]\ndataset = "coco"\nsplit = "train2017"\n')
    with pytest.raises(UsageError, match=says):
        load_config(path, [change])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("loss.objective=rank", "loss.objective.*ranking"),
        ("loss.temperature=0", "temperature"),
        ("loss.rarity=-1", "rarity"),
        ("loss.sharpness=0", "loss.sharpness"),
        ("pseudo_labels.every=0", "every"),
        ("pseudo_labels.a_step=-1", "a_step"),
        ("optimizer.schedule=cosine", "schedule.*linear"),
        ("data.labels=boxes", "labels.*captions"),
        ("head.kind=for++", r"for\+"),
        ("head.whole=-1", "whole"),
        ("head.hidden=-1", "hidden"),
    ],
)
def test_a_slip_in_fors_plus_is_one_clear_line(tmp_path: Path, change: str, says: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[data]\ndataset = "coco"\nsplit = "train2017"\n')
    with pytest.raises(UsageError, match=says) as raised:
        load_config(path, [change])
    assert "\n" not in str(raised.value)


def test_what_is_not_set_is_the_papers() -> None:
    config = config_from(BASE)
    assert (config.loss.objective, config.optimizer.schedule, config.data.labels) == ("set", "drop", "annotations")
    assert (config.head.kind, config.optimizer.decoupled, config.pseudo_labels.without_base) == ("for", False, False)


def test_for_plus_takes_its_own_settings_out_of_the_heads() -> None:
    config = config_from({**BASE, "head": {"kind": "for+", "queries": 3, "whole": 0.25, "layers": 5}})
    settings = config.head.of(PlusSettings)
    assert (settings.queries, settings.whole, settings.hidden, settings.root) == (3, 0.25, 512, False)
    assert not hasattr(settings, "layers")
    assert config.method == "for+"


def test_files_that_are_no_config(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can't read"):
        load_config(tmp_path / "missing.toml")
    (tmp_path / "bad.toml").write_text("data = [")
    with pytest.raises(UsageError, match="can't read"):
        load_config(tmp_path / "bad.toml")
    with pytest.raises(UsageError, match=r"setting data is missing"):
        config_from({})
    with pytest.raises(UsageError, match=r"data\.split is missing"):
        config_from({"data": {"dataset": "coco"}})
    with pytest.raises(UsageError, match="nothing to learn"):
        config_from({**BASE, "loss": {"sup": 0.0, "pse": 0.0}})


def test_every_setting_is_listed() -> None:
    keys = valid_keys(TrainConfig)
    assert {"seed", "weights", "data.root", "head.queries", "optimizer.learning_rate", "features.cache_gib"} <= set(
        keys
    )
    assert len(keys) == len(set(keys))


def test_changes_are_what_departs_from_the_default() -> None:
    config = config_from(
        {"data": {"dataset": "coco", "split": "train2017"}, "head": {"queries": 4}, "loss": {"sup": 1}}
    )
    assert config.changes() == {"data": {"dataset": "coco", "split": "train2017"}, "head": {"queries": 4}}
    assert config_from(config.changes()) == config


def test_an_unknown_setting_is_said_before_one_that_is_missing() -> None:
    with pytest.raises(UsageError, match=r"unknown setting 'data\.dateset'; valid: data\.dataset, ") as raised:
        config_from({"data": {"dateset": "coco", "split": "train2017"}})
    assert "\n" not in str(raised.value)


def test_settings_never_change() -> None:
    config = config_from(BASE)
    with pytest.raises(ValueError, match="frozen"):
        config.head.queries = 3  # type: ignore[misc]
