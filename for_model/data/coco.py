"""COCO's layout: ROOT/annotations/instances_SPLIT.json, and the images in ROOT/SPLIT.

COCO 2017 and 2014 are published so, and MiniScenes is written so.
"""

import contextlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from for_model.data.dataset import Category, Dataset, Group, ImageId, ImageRecord
from for_model.errors import DataError
from for_model.files import is_safe_path

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


def load_coco(root: Path, split: str, name: str = "coco") -> Dataset:
    """A split of a dataset in COCO's layout, with image-level labels from its instance annotations.

    root: the folder that holds `annotations` and one image folder a split.  split: `val2017`, `train2014`, `dev`, ...
    name: the dataset's name, as stores and results record it.
    Categories are in ascending order of their id. Their group is the JSON category's own `group`, else that of the
    COCO-OVD split, by name. Crowd annotations count as present. Images that the JSON lists and the folder lacks are
    kept: what embeds them skips and records them.
    Raises DataError when a file or folder is missing, or when the JSON is damaged or not in COCO's format.
    """
    root = Path(root).expanduser().resolve()
    annotation_file = root / "annotations" / f"instances_{split}.json"
    image_root = root / split
    content = _read(annotation_file)
    if not image_root.is_dir():
        raise DataError(f"{image_root} doesn't exist: expected the images of {name} {split} in that folder")
    try:
        images = _images(content["images"])
        categories = _categories(content["categories"])
        labels = _labels(content, {image.id for image in images}, {key: n for n, key in enumerate(categories)})
    except _FormatError as error:
        raise DataError(f"{annotation_file} is not in COCO's instances format: {error}; fetch it again") from error
    return Dataset(name, split, image_root, images, tuple(categories.values()), labels)


class _FormatError(Exception):
    """Where a file departs from COCO's format; `load_coco` adds which file it is."""


def _read(path: Path) -> dict[str, Any]:
    """The annotation file's content, its three lists checked to be there."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(
            f"{path} doesn't exist: expected COCO's layout, ROOT/annotations/instances_SPLIT.json and ROOT/SPLIT/"
        ) from None
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror}): check the path and its permissions") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged, it is not valid JSON ({error}): fetch it again") from error
    for key in ("images", "annotations", "categories"):
        found = content.get(key) if isinstance(content, dict) else None
        if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
            raise DataError(f"{path} is not in COCO's instances format: it has no list {key!r}; fetch it again")
    return content


def _images(items: list[dict[str, Any]]) -> tuple[ImageRecord, ...]:
    """In ascending order of id."""
    records = {}
    for item in items:
        image_id, path = item.get("id"), item.get("file_name")
        if not isinstance(image_id, int | str) or isinstance(image_id, bool):
            raise _FormatError(f"image id {image_id!r} is neither an integer nor a string")
        if image_id in records:
            raise _FormatError(f"image id {image_id!r} occurs twice")
        if not isinstance(path, str) or not is_safe_path(path):
            raise _FormatError(f"image {image_id!r} has file_name {path!r}, not a path within the image folder")
        records[image_id] = ImageRecord(image_id, path)
    if not records:
        raise _FormatError("it lists no images")
    if len({type(key) for key in records}) > 1:
        raise _FormatError("image ids mix integers and strings")
    return tuple(records[key] for key in sorted(records))


def _categories(items: list[dict[str, Any]]) -> dict[int, Category]:
    """COCO's category id -> category, in ascending order of id."""
    ovd: dict[str, Group] = {**dict.fromkeys(COCO_OVD_BASE, "base"), **dict.fromkeys(COCO_OVD_NOVEL, "novel")}
    categories: dict[int, Category] = {}
    for item in items:
        key, name = item.get("id"), item.get("name")
        if not isinstance(key, int) or key in categories:
            raise _FormatError(f"category id {key!r} is not an integer, or occurs twice")
        if not isinstance(name, str) or not name.strip():
            raise _FormatError(f"category {key} has no name")
        group = item.get("group", ovd.get(name, "other"))
        if group not in get_args(Group):
            raise _FormatError(f"category {name!r} is of group {group!r}, not one of {', '.join(get_args(Group))}")
        categories[key] = Category(name, group)
    return dict(sorted(categories.items()))


def _labels(
    content: dict[str, Any], images: set[ImageId], positions: Mapping[int, int]
) -> dict[ImageId, frozenset[int]]:
    """Image id -> positions of the categories present; images without annotations are left out.

    positions: COCO's category id -> position in the dataset's categories.
    """
    from pycocotools.coco import COCO  # its import takes long, and only this function needs it

    for annotation in content["annotations"]:
        for key, known in (("image_id", images), ("category_id", positions)):
            value = annotation.get(key)
            if not isinstance(value, int | str) or value not in known:
                raise _FormatError(f"annotation {annotation.get('id')!r} has {key} {value!r}, which isn't listed")
        if "id" not in annotation:
            raise _FormatError("an annotation has no id")
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress there
        coco.createIndex()
    return {
        image_id: frozenset(positions[annotation["category_id"]] for annotation in annotations)
        for image_id, annotations in coco.imgToAnns.items()
    }
