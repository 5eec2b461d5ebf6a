"""Base and novel categories by how common they are, kept in a TOML file that a user can edit.

The paper's rule for nuImages: novel are the categories in fewer than 5% of the images, base the others. It ends with 8
and 10 of nuImages's 23 and names none of them. A category that is in no image is `other`: nothing could be scored.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from for_model.data.dataset import Dataset, Group
from for_model.errors import DataError, UsageError
from for_model.files import read_toml, write_bytes

CLASSES_FILE = "classes.toml"  # in the dataset's folder, where its reader looks for it
NOVEL_BELOW = 0.05  # of the images; the paper's

_HEADER = """\
# Base and novel categories of {dataset}, from the share of the images of {split} that each is in. Written by
#
#   {command}
#
# novel: in fewer than {novel_below:g} of the images.  base: in as many or more.  other: in none.
# The paper has 10 base and 8 novel categories by this rule and names none. To leave a category out of training and of
# every score, change its group to "other"; only the groups are read.
"""


def image_counts(dataset: Dataset) -> dict[str, int]:
    """In how many of a dataset's images each category is; its categories in their own order."""
    counts = dataset.relevance([image.id for image in dataset.images]).sum(axis=1)
    return {category.name: int(count) for category, count in zip(dataset.categories, counts, strict=True)}


def groups_by_share(dataset: Dataset, novel_below: float = NOVEL_BELOW) -> dict[str, Group]:
    """Each category's group by the share of the images that it is in.

    novel_below: a share in (0, 1]; a category with exactly that share is base.

    Returns name -> group: `other` for a category in no image.
    Raises UsageError for a share out of range.
    """
    if not 0 < novel_below <= 1:
        raise UsageError(f"--novel-below is {novel_below:g}: expected a share of the images above 0, at most 1")
    shares = {name: count / len(dataset.images) for name, count in image_counts(dataset).items()}
    return {name: "other" if not x else "novel" if x < novel_below else "base" for name, x in shares.items()}


def write_classes(path: Path, dataset: Dataset, command: str, novel_below: float = NOVEL_BELOW) -> dict[str, Group]:
    """Write every category's count, share and group to a TOML file, the most common first. Returns the groups.

    path: of the file, which must not be there yet.
    dataset: whose categories are counted.
    command: what made the file, for its header.
    novel_below: a share of the images in (0, 1], see `groups_by_share`.

    Raises UsageError for a share out of range, or when the file is there already: it may have been edited.
    """
    groups = groups_by_share(dataset, novel_below)
    if path.exists():
        raise UsageError(f"{path} is there already, and may have been edited: delete it, or choose another --out")
    counts, n_images = image_counts(dataset), len(dataset.images)
    lines = [
        _HEADER.format(dataset=dataset.name, split=dataset.split, command=command, novel_below=novel_below),
        f"dataset = {_quoted(dataset.name)}",
        f"split = {_quoted(dataset.split)}",
        f"images = {n_images}",
        f"novel_below = {novel_below!r}",
    ]
    for name in sorted(counts, key=lambda name: (-counts[name], name)):
        lines += [
            f"\n[classes.{_quoted(name)}]",
            f"images = {counts[name]}",
            f"share = {counts[name] / n_images:.6f}",
            f"group = {_quoted(groups[name])}",
        ]
    write_bytes(path, ("\n".join(lines) + "\n").encode())
    return groups


def read_groups(path: Path, names: Sequence[str]) -> dict[str, Group]:
    """The groups that a file of `write_classes` gives the categories `names`, all of them and no others.

    Raises DataError when the file can't be read, lacks a category, has another, or a group that doesn't exist.
    """
    try:
        content = read_toml(path)
    except ValueError as error:
        raise DataError(f"{path} can't be read ({error}): mend it, or delete it and write it again") from error
    classes = content.get("classes")
    if not isinstance(classes, Mapping) or set(classes) != set(names):
        found = set(classes) if isinstance(classes, Mapping) else set()
        odd = ", ".join(sorted(found ^ set(names)))
        raise DataError(
            f"{path} is not of this dataset, its [classes] and the dataset's categories differ in: {odd}; "
            "mend it, or delete it and write it again"
        )
    return {name: _group(path, name, classes[name]) for name in names}


def _group(path: Path, name: str, table: Any) -> Group:
    group: Any = table.get("group") if isinstance(table, Mapping) else None
    if group not in get_args(Group):
        raise DataError(f"{path}: {name!r} has group {group!r}, expected one of {', '.join(get_args(Group))}")
    return group


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # a JSON string is a TOML one
