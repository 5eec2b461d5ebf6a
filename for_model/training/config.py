"""What one training is told: a TOML file, one experiment each, read into frozen models that check every value."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from for_model.methods.head_config import HeadConfig
from for_model.methods.registry import trained_name
from for_model.settings import (
    Count,
    Fraction,
    NonNegative,
    Positive,
    PositiveCount,
    Probability,
    Settings,
    override,
    parse,
    read_table,
    valid_keys,
)

VERSION = 1  # of training: raise it when the same settings train another head

Precision = Literal["auto", "float32", "bfloat16"]
Objective = Literal["set", "ranking"]
Schedule = Literal["drop", "linear"]
Labels = Literal["annotations", "captions"]
SupMean = Literal["labelled", "batch"]


class DataConfig(Settings):
    """What is trained on.

    dataset: as `registry.load_dataset` takes it.
    split: of the dataset.
    root: the dataset's folder, "" for none.
    images: so many of the split's images, the first by id; 0 for all.
    labelled: the share of the images whose labels are used; the others have pseudo-labels only (Table 5).
    fold: which images those are; another fold draws others.
    mirrored: learn from the mirror images too: the soft teacher looks at both, and a step at either.
    labels: where the labels of an image come from: its `annotations`, or its `captions`, in which the names of the base
        categories are looked for.
    nouns: names of the pseudo-labels' vocabulary that are in the captions of at least so many images, and hold no
        category's name, are labels too (ranking objective); 0 for none.
    allow_missing: train without the images whose files are missing, instead of refusing to start.
    """

    dataset: str
    split: str
    root: str = ""
    images: Count = 0
    labelled: Annotated[float, Field(gt=0, le=1)] = 1.0
    fold: Count = 0
    mirrored: bool = False
    labels: Labels = "annotations"
    nouns: Count = 0
    allow_missing: bool = False


class PseudoLabelConfig(Settings):
    """Where pseudo-labels come from (eq. 4).

    vocabulary: `imagenet21k`, `miniscenes` or a text file.
    without_novel: leave out the dataset's novel names (IN21/novel of Table 3).
    without_base: leave out the dataset's base names, which have labels.
    every: of the vocabulary's names, every so many-th, say 10 for a tenth of them.
    names: only so many of the vocabulary's names, the first; 0 for all.
    clusters: N of Cluster-CLIP.
    threshold: names above this probability are labels.
    a_step: of the names that a soft teacher knows, so many are drawn for each step; 0 for all.
    scale: of the cosines in eq. 4's softmax, as a multiple of CLIP's own. The paper doesn't say its own; with CLIP's
        100 and 5e-4 there are many more labels than its Figure 6 shows, and the number of queries decides.
    """

    vocabulary: str = "imagenet21k"
    without_novel: bool = False
    without_base: bool = False
    every: PositiveCount = 1
    names: Count = 0
    clusters: PositiveCount = 50
    threshold: Probability = 5e-4
    a_step: Count = 0
    scale: Positive = 1.0


class LossConfig(Settings):
    """What is minimised: gamma_sup * L_sup + gamma_pse * L_pse (section 3.3).

    objective: `set`, the paper's set prediction loss on labels and on pseudo-labels (`losses/set_prediction.py`), or
        `ranking`, ours, which ranks the batch's images for a name and learns unlabelled names from a soft teacher
        (`losses/ranking.py`).
    sup: gamma_sup, the weight of the loss on labels; 0 leaves it out (Table 1).
    pse: gamma_pse, the weight of the loss on pseudo-labels; 0 leaves it out (Table 1).
    no_object_weight: w of the embeddings that match nothing; 0 leaves the no-object class out.
    scale: of the cosines in the softmax, as a multiple of CLIP's own; 1 in the paper. A smaller one asks for cosines
        that lie further apart.
    sup_mean: what the labelled loss is the mean over: the `labelled` images of a batch, or the whole `batch`. Where
        only a share of the images is labelled (Table 5), over the labelled ones a lone one weighs as much as a batch.
    temperature: of the cosines in the ranking objective's softmax over images.
    rarity: a label of the ranking objective counts by its name's frequency to the power of minus this; 0 for all alike.
    teacher_temperature: of the cosines in the softmax over images that learns from the soft teacher.
    sharpness: of the soft teacher.
    negatives: of a federated dataset (LVIS), so many negatives and pseudo negatives an image, at least (supplement A).
    """

    objective: Objective = "set"
    sup: NonNegative = 1.0
    pse: NonNegative = 1.0
    no_object_weight: NonNegative = 0.1
    scale: Positive = 1.0
    sup_mean: SupMean = "labelled"
    temperature: Positive = 1 / 15
    rarity: NonNegative = 0.0
    teacher_temperature: Positive = 1 / 15
    sharpness: Positive = 1.5
    negatives: Count = 50

    @model_validator(mode="after")
    def _has_a_loss(self) -> "LossConfig":
        if not self.sup and not self.pse:
            raise ValueError("loss.sup and loss.pse are both 0: there is nothing to learn from")
        return self


class OptimizerConfig(Settings):
    """Adam with weight decay as in the paper.

    epochs: passes over the images.
    learning_rate: before warming up and dropping.
    drop_epoch: after so many epochs the rate is multiplied by `drop_factor` (0.7: of the way through the first).
    drop_factor: see `drop_epoch`.
    schedule: `drop`, as in the paper, or `linear`: from the learning rate down to 0 at the end.
    batch_size: images a step, of all processes together.
    weight_decay: Adam's, L2.
    decoupled: take the weight decay as AdamW does, apart from the gradient.
    beta1: of Adam's first moment.
    beta2: of Adam's second moment.
    warmup_steps: the rate rises linearly over so many first steps.
    clip_norm: the gradient is scaled down to this length when it is longer; 0 for never.
    """

    epochs: PositiveCount = 25
    learning_rate: Positive = 1e-5
    drop_epoch: NonNegative = 15
    drop_factor: NonNegative = 0.1
    schedule: Schedule = "drop"
    batch_size: PositiveCount = 64
    weight_decay: NonNegative = 1e-4
    decoupled: bool = False
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    warmup_steps: Count = 0
    clip_norm: NonNegative = 0.0


class FeatureConfig(Settings):
    """How the feature maps are had.

    cache_gib: how much disk they may take, in GiB; when they don't fit, the trunk runs anew each epoch.
    """

    cache_gib: NonNegative = 20.0


class TrainConfig(Settings):
    """One training.

    backbone: as `load_backbone` takes it.
    weights: as `load_backbone` takes them, "" for the backbone's own.
    image_size: pixels a side, 0 for the backbone's own.
    seed: of the start, the images' order and the dropout.
    precision: of the head's arithmetic: `float32`, `bfloat16`, or `auto`, bfloat16 where the machine is fast at it.
    """

    data: DataConfig
    backbone: str = "RN-mini"
    weights: str = ""
    image_size: Count = 0
    seed: Count = 0
    precision: Precision = "auto"
    head: HeadConfig = HeadConfig()
    pseudo_labels: PseudoLabelConfig = PseudoLabelConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    features: FeatureConfig = FeatureConfig()

    @model_validator(mode="after")
    def _nouns_are_ranked(self) -> "TrainConfig":
        if self.data.nouns and self.loss.objective != "ranking":
            raise ValueError(f"data.nouns={self.data.nouns} is learnt from with loss.objective=ranking alone")
        return self

    @property
    def method(self) -> str:
        """How the trained head is called in tables."""
        return trained_name(self.head.kind, labels=self.loss.sup > 0, pseudo_labels=self.loss.pse > 0)

    def to_json(self) -> dict[str, Any]:
        """All settings, nested as in TOML."""
        return self.model_dump()

    def changes(self) -> dict[str, Any]:
        """The settings that aren't the default, nested as in TOML: what names a training, whatever settings are added
        to FOR later."""
        return self.model_dump(exclude_defaults=True)

    def smoke(self) -> "TrainConfig":
        """The same code in minutes: 16 images, 64 names, two epochs of two steps; the head is worth nothing."""
        changed = {
            "data": {"images": 16},
            "pseudo_labels": {"names": 64},
            "optimizer": {"epochs": 2, "drop_epoch": 1, "batch_size": 8},
        }
        return self.model_copy(
            update={name: getattr(self, name).model_copy(update=values) for name, values in changed.items()}
        )


def load_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a training's TOML file.

    overrides: `key=value` or `section.key=value` each, the value as TOML or a plain word.
    Raises UsageError for a file that can't be read, an unknown setting (listing the valid ones) or a wrong value.
    """
    table = read_table(path, "the training's config")
    override(table, overrides, valid_keys(TrainConfig))
    return config_from(table)


def config_from(table: Mapping[str, Any]) -> TrainConfig:
    """A training's settings from nested dicts, as TOML and JSON give them. Raises UsageError, see `load_config`."""
    return parse(TrainConfig, table)
