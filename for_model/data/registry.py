"""Datasets by name: the one place where a dataset is added."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from for_model.data.coco import lexical_groups, load_coco
from for_model.data.dataset import Dataset
from for_model.data.folder import load_folder
from for_model.data.lvis import load_lvis
from for_model.data.nuimages import load_nuimages
from for_model.errors import UsageError


@dataclass(frozen=True)
class _Entry:
    """How a dataset is loaded.

    load: (root, split) -> Dataset.
    default_split: the split when none is asked for; None for a dataset without splits.
    default_root: split -> where it lies when no root is given; None when a root must be given.
    """

    load: Callable[[Path, str], Dataset]
    default_split: str | None
    default_root: Callable[[str], Path] | None = None


def _miniscenes_root(split: str) -> Path:
    from for_model.data.miniscenes.scenes import default_root  # draws with font files, which other datasets don't need

    return default_root(split)


_DATASETS = {
    "coco": _Entry(load_coco, default_split="val2017"),
    "coco2014": _Entry(
        lambda root, split: load_coco(root, split, name="coco2014", split_names=lexical_groups),
        default_split="val2014",
    ),
    "folder": _Entry(lambda root, _: load_folder(root), default_split=None),
    "lvis": _Entry(load_lvis, default_split="val"),
    "lvis-v0.5": _Entry(lambda root, split: load_lvis(root, split, "v0.5"), default_split="val"),
    "miniscenes": _Entry(
        lambda root, split: load_coco(root, split, name="miniscenes"),
        default_split="val",
        default_root=_miniscenes_root,
    ),
    "nuimages": _Entry(load_nuimages, default_split="val"),
}

DATASET_NAMES = tuple(_DATASETS)


def load_dataset(name: str, root: Path | None = None, split: str | None = None) -> Dataset:
    """A split of a dataset by its name: one of `DATASET_NAMES`.

    root: its folder; only MiniScenes can do without.  split: its default is the dataset's validation split.
    Raises UsageError for an unknown name, a missing root, or a split of a dataset without splits; DataError as the
    dataset's reader does.
    """
    entry = _DATASETS.get(name)
    if entry is None:
        raise UsageError(f"unknown dataset {name!r}: choose one of {', '.join(_DATASETS)}")
    if root is None and entry.default_root is None:
        raise UsageError(f"dataset {name!r} needs a folder: give it with --root")
    if split is not None and entry.default_split is None:
        raise UsageError(f"dataset {name!r} has no splits, got split {split!r}: leave --split out")
    wanted = split or entry.default_split or ""
    return entry.load(root if root is not None else entry.default_root(wanted), wanted)  # type: ignore[misc]
