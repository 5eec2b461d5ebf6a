"""What annotation files in COCO's family have in common: lists of images, categories and annotations in one JSON."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from for_model.data.dataset import ImageId, ImageRecord
from for_model.errors import DataError
from for_model.files import is_safe_path


class FormatError(Exception):
    """Where a file departs from its format; the reader adds which file it is."""


def read_lists(
    path: Path, format_name: str, layout: str, lists: Sequence[str] = ("images", "annotations", "categories")
) -> dict[str, Any]:
    """The content of an annotation file, its lists checked to be there.

    path: of the JSON file.
    format_name: whose format it should be, for the errors.
    layout: where the files should lie, for the errors.
    lists: the names of the lists.
    Raises DataError when the file is missing, damaged or of another format.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path} doesn't exist: expected {layout}") from None
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror}): check the path and its permissions") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged, it is not valid JSON ({error}): fetch it again") from error
    for key in lists:
        found = content.get(key) if isinstance(content, dict) else None
        if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
            raise DataError(f"{path} is not in {format_name} format: it has no list {key!r}; fetch it again")
    return content


def image_records(found: Iterable[tuple[Any, Any]]) -> tuple[ImageRecord, ...]:
    """The images of an annotation file as records, in ascending order of id.

    found: pairs of id and path, as the file gives them.

    Raises FormatError for an id that is no integer or string or occurs twice, for a path that leads out of the image
    folder, and when there are no images.
    """
    records: dict[ImageId, ImageRecord] = {}
    for image_id, path in found:
        if not isinstance(image_id, int | str) or isinstance(image_id, bool):
            raise FormatError(f"image id {image_id!r} is neither an integer nor a string")
        if image_id in records:
            raise FormatError(f"image id {image_id!r} occurs twice")
        if not isinstance(path, str) or not is_safe_path(path):
            raise FormatError(f"image {image_id!r} has file_name {path!r}, not a path within the image folder")
        records[image_id] = ImageRecord(image_id, path)
    if not records:
        raise FormatError("it lists no images")
    if len({type(key) for key in records}) > 1:
        raise FormatError("image ids mix integers and strings")
    return tuple(records[key] for key in sorted(records))


def check_annotations(
    annotations: list[dict[str, Any]], images: set[ImageId], categories: Iterable[Any] | None = None
) -> None:
    """Raise FormatError for an annotation without an id, or of an image or category that isn't listed.

    annotations: as the file has them.
    images: the ids of the images that the file lists.
    categories: the ids of the categories that it lists; None for annotations that have none, as captions.
    """
    known = {"image_id": images} | ({} if categories is None else {"category_id": set(categories)})
    for annotation in annotations:
        for key, listed in known.items():
            value = annotation.get(key)
            if not isinstance(value, int | str) or value not in listed:
                raise FormatError(f"annotation {annotation.get('id')!r} has {key} {value!r}, which isn't listed")
        if "id" not in annotation:
            raise FormatError("an annotation has no id")


def negative_categories(item: dict[str, Any], positions: Mapping[int, int]) -> frozenset[int]:
    """The categories that an image's `neg_category_ids` say are known not to be in it.

    item: of the file's `images`.
    positions: category id -> position in the dataset's categories.

    Raises FormatError for what is no list of ids of the file's categories.
    """
    found = item.get("neg_category_ids")
    if not isinstance(found, list) or not all(isinstance(key, int) and key in positions for key in found):
        raise FormatError(f"image {item['id']!r} has neg_category_ids {found!r}, not a list of category ids")
    return frozenset(positions[key] for key in found)
