"""Datasets by name: the one place where a dataset is added.

Entries name functions as `"module:function"`, so that only the reader of the dataset that is asked for is imported.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from for_model.errors import UsageError
from for_model.lazy_import import imported

if TYPE_CHECKING:
    from for_model.data.dataset import Dataset


@dataclass(frozen=True)
class DatasetEntry:
    """One dataset.

    name: as commands, stores and results write it.
    load: the function that reads it, itself or as `"module:function"`: (root, split) -> Dataset, or (root) -> Dataset
        for a dataset without splits.
    default_split: the split when none is asked for; None for a dataset without splits.
    default_root: the function that says where a split lies when no root is given, itself or as `"module:function"`;
        None for a dataset whose root must be given.
    labelled: whether it comes with labels; a folder of images has none.
    """

    name: str
    load: "str | Callable[..., Dataset]"
    default_split: str | None
    default_root: str | Callable[[str], Path] | None = None
    labelled: bool = True


DATASETS: dict[str, DatasetEntry] = {
    entry.name: entry
    for entry in (
        DatasetEntry("coco", "for_model.data.coco:load_coco", default_split="val2017"),
        DatasetEntry("coco2014", "for_model.data.coco:load_coco2014", default_split="val2014"),
        DatasetEntry("flickr8k", "for_model.data.flickr8k:load_flickr8k", default_split="val"),
        DatasetEntry("folder", "for_model.data.folder:load_folder", default_split=None, labelled=False),
        DatasetEntry("lvis", "for_model.data.lvis:load_lvis", default_split="val"),
        DatasetEntry("lvis-v0.5", "for_model.data.lvis:load_lvis_v05", default_split="val"),
        DatasetEntry(
            "miniscenes",
            "for_model.data.coco:load_miniscenes",
            default_split="val",
            default_root="for_model.data.miniscenes.scenes:default_root",
        ),
        DatasetEntry("nuimages", "for_model.data.nuimages:load_nuimages", default_split="val"),
    )
}


def load_dataset(
    name: str, root: Path | None = None, split: str | None = None, root_option: str = "--root"
) -> "Dataset":
    """A split of a dataset.

    name: one of DATASETS.
    root: its folder; None only for a dataset that has a place of its own (MiniScenes).
    split: None for the dataset's default, its validation split.
    root_option: how the user gives the root, for the message that it is missing.

    Raises UsageError for an unknown name, a missing root, or a split of a dataset without splits; DataError as the
    dataset's reader does.
    """
    entry = DATASETS.get(name)
    if entry is None:
        raise UsageError(f"unknown dataset {name!r}: choose one of {', '.join(DATASETS)}")
    if split is not None and entry.default_split is None:
        raise UsageError(f"dataset {name!r} has no splits, got split {split!r}: leave --split out")
    wanted = split or entry.default_split or ""
    if root is None:
        if entry.default_root is None:
            raise UsageError(f"dataset {name!r} needs a folder: give it with {root_option}")
        root = imported(entry.default_root)(wanted)
    load = imported(entry.load)
    dataset: Dataset = load(root) if entry.default_split is None else load(root, wanted)
    return dataset


def datasets_help() -> str:
    """What can be given as a dataset, for a command's --help."""
    return ", ".join(
        name if entry.default_root is None else f"{name} (built in, needs no --root)"
        for name, entry in DATASETS.items()
    )
