"""What one training is told: a TOML file, one experiment each, read into frozen dataclasses."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from for_model.errors import UsageError
from for_model.files import read_toml, toml_value
from for_model.heads.config import HeadConfig
from for_model.methods.registry import trained_name

VERSION = 1  # of training: raise it when the same settings train another head

Precision = Literal["auto", "float32", "bfloat16"]
SupMean = Literal["labelled", "batch"]


@dataclass(frozen=True)
class DataConfig:
    """What is trained on. dataset, root, split: as `registry.load_dataset` takes them, root "" for none.

    images: so many of the split's images, the first by id; 0 for all.
    labelled: the share of the images whose labels are used; the others have pseudo-labels only (Table 5).
    fold: which images those are; another fold draws others.
    allow_missing: train without the images whose files are missing, instead of refusing to start.
    """

    dataset: str
    split: str
    root: str = ""
    images: int = 0
    labelled: float = 1.0
    fold: int = 0
    allow_missing: bool = False

    def __post_init__(self) -> None:
        _at_least(0, "data", self, "images", "fold")
        if not 0 < self.labelled <= 1:
            raise UsageError(f"data.labelled is {self.labelled}: expected a share above 0, at most 1")


@dataclass(frozen=True)
class PseudoLabelConfig:
    """Where pseudo-labels come from (eq. 4).

    vocabulary: `imagenet21k`, `miniscenes` or a text file.  without_novel: leave out the dataset's novel names
    (IN21/novel of Table 3).  names: only so many of them, the first; 0 for all.
    clusters: N of Cluster-CLIP.  threshold: on the probability.
    scale: of the cosines in eq. 4's softmax, as a multiple of CLIP's own. The paper doesn't say its own; with CLIP's
        100 and 5e-4 there are many more labels than its Figure 6 shows, and the number of queries decides.
    """

    vocabulary: str = "imagenet21k"
    without_novel: bool = False
    names: int = 0
    clusters: int = 50
    threshold: float = 5e-4
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise UsageError(f"pseudo_labels.scale is {self.scale}: expected more than 0")
        _at_least(0, "pseudo_labels", self, "names")
        _at_least(1, "pseudo_labels", self, "clusters")
        if not 0 <= self.threshold <= 1:
            raise UsageError(f"pseudo_labels.threshold is {self.threshold}: expected a probability")


@dataclass(frozen=True)
class LossConfig:
    """sup, pse: the weights of the two losses, gamma_sup and gamma_pse; 0 leaves one out (Table 1).

    no_object_weight: w of the embeddings that match nothing; 0 leaves the no-object class out.
    scale: of the cosines in the softmax, as a multiple of CLIP's own; 1 in the paper. A smaller one asks for cosines
        that lie further apart.
    sup_mean: what the labelled loss is the mean over: the `labelled` images of a batch, or the whole `batch`. Where
        only a share of the images is labelled (Table 5), over the labelled ones a lone one weighs as much as a batch.
    negatives: of a federated dataset (LVIS), so many negatives and pseudo negatives an image, at least (supplement A).
    """

    sup: float = 1.0
    pse: float = 1.0
    no_object_weight: float = 0.1
    scale: float = 1.0
    sup_mean: SupMean = "labelled"
    negatives: int = 50

    def __post_init__(self) -> None:
        _at_least(0, "loss", self, "sup", "pse", "no_object_weight", "negatives")
        if not self.sup and not self.pse:
            raise UsageError("loss.sup and loss.pse are both 0: there is nothing to learn from")
        if self.sup_mean not in get_args(SupMean):
            raise UsageError(f"loss.sup_mean is {self.sup_mean!r}; expected one of {', '.join(get_args(SupMean))}")
        if not self.scale > 0:
            raise UsageError(f"loss.scale is {self.scale}: expected more than 0")


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam with weight decay as in the paper, its rate multiplied by `drop_factor` after `drop_epoch` epochs (0.7: of
    the way through the first).

    batch_size: of all processes together.  warmup_steps: the rate rises linearly over so many first steps.
    clip_norm: the gradient is scaled down to this length when it is longer; 0 for never.
    """

    epochs: int = 25
    learning_rate: float = 1e-5
    drop_epoch: float = 15
    drop_factor: float = 0.1
    batch_size: int = 64
    weight_decay: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.999
    warmup_steps: int = 0
    clip_norm: float = 0.0

    def __post_init__(self) -> None:
        _at_least(1, "optimizer", self, "epochs", "batch_size")
        _at_least(0, "optimizer", self, "drop_epoch", "drop_factor", "weight_decay", "warmup_steps", "clip_norm")
        if not self.learning_rate > 0 or not 0 <= self.beta1 < 1 or not 0 <= self.beta2 < 1:
            raise UsageError(f"optimizer: got {self}; expected a learning_rate above 0 and betas from 0 to below 1")


@dataclass(frozen=True)
class FeatureConfig:
    """cache_gib: how much disk the feature maps may take; when they don't fit, the trunk runs anew each epoch."""

    cache_gib: float = 20.0


@dataclass(frozen=True)
class TrainConfig:
    """One training. backbone, weights, image_size: as `backbone.load_backbone` takes them, "" and 0 for default.

    precision: of the head's arithmetic: `float32`, `bfloat16`, or `auto`, bfloat16 where the machine is fast at it.
    """

    data: DataConfig
    backbone: str = "RN-mini"
    weights: str = ""
    image_size: int = 0
    seed: int = 0
    precision: Precision = "auto"
    head: HeadConfig = field(default_factory=HeadConfig)
    pseudo_labels: PseudoLabelConfig = field(default_factory=PseudoLabelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    features: FeatureConfig = field(default_factory=FeatureConfig)

    def __post_init__(self) -> None:
        _at_least(0, "", self, "seed", "image_size")
        if self.precision not in get_args(Precision):
            raise UsageError(f"precision is {self.precision!r}; expected one of {', '.join(get_args(Precision))}")

    @property
    def method(self) -> str:
        """How the trained head is called in tables."""
        return trained_name(self.head.kind, labels=self.loss.sup > 0, pseudo_labels=self.loss.pse > 0)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def changes(self) -> dict[str, Any]:
        """The settings that aren't the default, nested as in TOML: what names a training, whatever settings are added
        to FOR later."""
        return _changes(self)

    def smoke(self) -> "TrainConfig":
        """The same code in minutes: 16 images, 64 names, two epochs of two steps; the head is worth nothing."""
        return replace(
            self,
            data=replace(self.data, images=16),
            pseudo_labels=replace(self.pseudo_labels, names=64),
            optimizer=replace(self.optimizer, epochs=2, drop_epoch=1, batch_size=8),
        )


def load_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a training's TOML file. overrides: `key=value` or `section.key=value`, the value as TOML or a plain word.

    Raises UsageError for a file that can't be read, an unknown setting (listing the valid ones) or a wrong value.
    """
    try:
        table = read_toml(path)
    except ValueError as error:
        raise UsageError(f"can't read the training's config {path}: {error}") from error
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise UsageError(f"setting {override!r}: expected KEY=VALUE; valid keys: {', '.join(valid_keys())}")
        *section, name = key.strip().split(".")
        target = table
        for part in section:
            target = target.setdefault(part, {})
            if not isinstance(target, dict):
                raise UsageError(f"unknown setting {key!r}; valid: {', '.join(valid_keys())}")
        target[name] = toml_value(text.strip())
    return config_from(table)


def config_from(table: Mapping[str, Any]) -> TrainConfig:
    """A training's settings from nested dicts, as TOML and JSON give them. Raises UsageError, see `load_config`."""
    config: TrainConfig = _build(TrainConfig, table, "")
    return config


def valid_keys() -> list[str]:
    """Every setting there is, `section.key`."""
    return _keys(TrainConfig, "")


def _keys(kind: Any, prefix: str) -> list[str]:
    hints = get_type_hints(kind)
    keys = []
    for each in fields(kind):
        section = is_dataclass(hints[each.name])
        keys += _keys(hints[each.name], f"{each.name}.") if section else [f"{prefix}{each.name}"]
    return keys


def _build(kind: Any, table: Any, prefix: str) -> Any:
    """A dataclass from a table, every key known and every value of its type."""
    if not isinstance(table, Mapping):
        raise UsageError(f"[{prefix.rstrip('.')}] is {table!r}; expected a table of settings")
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in hints:
            raise UsageError(f"unknown setting {prefix + key!r}; valid: {', '.join(valid_keys())}")
        hint = hints[key]
        values[key] = _build(hint, value, f"{key}.") if is_dataclass(hint) else _typed(hint, value, prefix + key)
    missing = [
        each.name for each in fields(kind) if each.name in ("data", "dataset", "split") and each.name not in values
    ]
    if missing:
        raise UsageError(f"the setting {prefix}{missing[0]} is missing: every training needs it")
    return kind(**values)


def _changes(config: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for each in fields(config):
        value = getattr(config, each.name)
        if is_dataclass(value):
            if section := _changes(value):
                found[each.name] = section
        elif value != each.default:  # MISSING, which equals nothing, where there is no default
            found[each.name] = value
    return found


def _typed(hint: Any, value: Any, key: str) -> Any:
    wanted = str if get_args(hint) else hint
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        raise UsageError(f"{key} is {value!r}; expected {wanted.__name__}")
    return value


def _at_least(least: float, section: str, config: Any, *names: str) -> None:
    for name in names:
        if not getattr(config, name) >= least:
            key = f"{section}.{name}".lstrip(".")
            raise UsageError(f"{key} is {getattr(config, name)}: expected at least {least:g}")
