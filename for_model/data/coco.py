"""COCO's layout: ROOT/annotations/instances_SPLIT.json, and the images in ROOT/SPLIT.

COCO 2017 and 2014 are published so, and MiniScenes is written so.
"""

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from for_model.data.dataset import Category, Dataset, Group, ImageId
from for_model.data.instances import FormatError, check_annotations, image_records, negative_categories, read_lists
from for_model.errors import DataError

_LAYOUT = "COCO's layout, ROOT/annotations/instances_SPLIT.json and ROOT/SPLIT/"

# The open-vocabulary split of COCO's 80 categories; the 15 others are in neither list.
COCO_OVD_BASE = (
    *("person", "bicycle", "car", "motorcycle", "train", "truck", "boat", "bench", "bird", "horse", "sheep", "bear"),
    *("zebra", "giraffe", "backpack", "handbag", "suitcase", "frisbee", "skis", "kite", "surfboard", "bottle", "fork"),
    *("spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli", "carrot", "pizza", "donut", "chair", "bed"),
    *("toilet", "tv", "laptop", "mouse", "remote", "microwave", "oven", "toaster", "refrigerator", "book", "clock"),
    *("vase", "toothbrush"),
)
COCO_OVD_NOVEL = (
    *("airplane", "bus", "cat", "dog", "cow", "elephant", "umbrella", "tie", "snowboard", "skateboard", "cup", "knife"),
    *("cake", "couch", "keyboard", "sink", "scissors"),
)


def ovd_groups(names: Sequence[str]) -> dict[str, Group]:
    """The COCO-OVD split of those of the names that are in it."""
    ovd: dict[str, Group] = {**dict.fromkeys(COCO_OVD_BASE, "base"), **dict.fromkeys(COCO_OVD_NOVEL, "novel")}
    return {name: ovd[name] for name in names if name in ovd}


def lexical_groups(names: Sequence[str]) -> dict[str, Group]:
    """The split of the paper's Table 10: of COCO's 80 names in lexical order, the first 65 are base, the last 15 novel.

    Raises FormatError for another number of names.
    """
    if len(set(names)) != 80:
        raise FormatError(f"it names {len(set(names))} categories, and the split is of COCO's 80")
    return {name: "base" if place < 65 else "novel" for place, name in enumerate(sorted(names))}


def load_coco(
    root: Path,
    split: str,
    name: str = "coco",
    split_names: Callable[[Sequence[str]], Mapping[str, Group]] = ovd_groups,
) -> Dataset:
    """A split of a dataset in COCO's layout, with image-level labels from its instance annotations.

    root: the folder that holds `annotations` and one image folder a split.  split: `val2017`, `train2014`, `dev`, ...
    name: the dataset's name, as stores and results record it.  split_names: the groups of the categories' names.
    Where any image lists `neg_category_ids`, as in LVIS and in exported concepts, an image is judged for its labels and
    these alone.
    Categories are in ascending order of their id. Their group is the JSON category's own `group`, else that of
    `split_names`, else `other`. Crowd annotations count as present. Images that the JSON lists and the folder lacks are
    kept: what embeds them skips and records them.
    Raises DataError when a file or folder is missing, or when the JSON is damaged or not in COCO's format.
    """
    root = Path(root).expanduser().resolve()
    annotation_file = root / "annotations" / f"instances_{split}.json"
    image_root = root / split
    content = read_lists(annotation_file, "COCO's instances", _LAYOUT)
    if not image_root.is_dir():
        raise DataError(f"{image_root} doesn't exist: expected the images of {name} {split} in that folder")
    try:
        images = image_records((item.get("id"), item.get("file_name")) for item in content["images"])
        categories = _categories(content["categories"], split_names)
        positions = {key: n for n, key in enumerate(categories)}
        labels = _labels(content, {image.id for image in images}, positions)
        negatives = None
        if any("neg_category_ids" in item for item in content["images"]):
            found = {item["id"]: negative_categories(item, positions) for item in content["images"]}
            negatives = {key: absent - labels.get(key, frozenset()) for key, absent in found.items()}
    except FormatError as error:
        raise DataError(f"{annotation_file} is not in COCO's instances format: {error}; fetch it again") from error
    return Dataset(name, split, image_root, images, tuple(categories.values()), labels, negatives)


def _categories(
    items: list[dict[str, Any]], split_names: Callable[[Sequence[str]], Mapping[str, Group]]
) -> dict[int, Category]:
    """COCO's category id -> category, in ascending order of id."""
    groups = split_names([item["name"] for item in items if isinstance(item.get("name"), str)])
    categories: dict[int, Category] = {}
    for item in items:
        key, name = item.get("id"), item.get("name")
        if not isinstance(key, int) or key in categories:
            raise FormatError(f"category id {key!r} is not an integer, or occurs twice")
        if not isinstance(name, str) or not name.strip():
            raise FormatError(f"category {key} has no name")
        group = item.get("group", groups.get(name, "other"))
        if group not in get_args(Group):
            raise FormatError(f"category {name!r} is of group {group!r}, not one of {', '.join(get_args(Group))}")
        categories[key] = Category(name, group)
    return dict(sorted(categories.items()))


def _labels(
    content: dict[str, Any], images: set[ImageId], positions: Mapping[int, int]
) -> dict[ImageId, frozenset[int]]:
    """Image id -> positions of the categories present; images without annotations are left out.

    positions: COCO's category id -> position in the dataset's categories.
    """
    from pycocotools.coco import COCO  # its import takes long, and only this function needs it

    check_annotations(content["annotations"], images, positions)
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress there
        coco.createIndex()
    return {
        image_id: frozenset(positions[annotation["category_id"]] for annotation in annotations)
        for image_id, annotations in coco.imgToAnns.items()
    }


def load_coco2014(root: Path, split: str) -> Dataset:
    """COCO 2014, its categories grouped as the multi-label table of the paper has them (Table 10); see `load_coco`."""
    return load_coco(root, split, name="coco2014", split_names=lexical_groups)


def load_miniscenes(root: Path, split: str) -> Dataset:
    """MiniScenes, which are written in COCO's layout; see `load_coco`."""
    return load_coco(root, split, name="miniscenes")
