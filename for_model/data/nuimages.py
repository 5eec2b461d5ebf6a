"""nuImages v1.0 as published: its tables in ROOT/v1.0-SPLIT/*.json, the images in ROOT/samples/CAM_*/.

Read through the dataset's own devkit. An image is a key frame, the only ones that are annotated; its id is the token
of its `sample_data` record. nuImages has no base and novel categories of its own: see `for_model/data/classes.py`.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from for_model.data.classes import CLASSES_FILE, NOVEL_BELOW, groups_by_share, read_groups
from for_model.data.dataset import Category, Dataset, ImageId, ImageRecord
from for_model.errors import DataError, UsageError
from for_model.files import is_safe_path

_log = logging.getLogger(__name__)

SPLITS = ("train", "val", "mini")  # `test` is published without annotations

# The 23 object classes as they are written in prompts; those that aren't here are named by the last part of their name.
PROMPT_NAMES = {
    "animal": "animal",
    "human.pedestrian.adult": "adult",
    "human.pedestrian.child": "child",
    "human.pedestrian.construction_worker": "construction worker",
    "human.pedestrian.personal_mobility": "personal mobility device",
    "human.pedestrian.police_officer": "police officer",
    "human.pedestrian.stroller": "stroller",
    "human.pedestrian.wheelchair": "wheelchair",
    "movable_object.barrier": "road barrier",
    "movable_object.debris": "debris",
    "movable_object.pushable_pullable": "pushable or pullable object",
    "movable_object.trafficcone": "traffic cone",
    "static_object.bicycle_rack": "bicycle rack",
    "vehicle.bicycle": "bicycle",
    "vehicle.bus.bendy": "bendy bus",
    "vehicle.bus.rigid": "rigid bus",
    "vehicle.car": "car",
    "vehicle.construction": "construction vehicle",
    "vehicle.emergency.ambulance": "ambulance",
    "vehicle.emergency.police": "police car",
    "vehicle.motorcycle": "motorcycle",
    "vehicle.trailer": "trailer",
    "vehicle.truck": "truck",
}
SURFACES = ("flat.driveable_surface", "vehicle.ego")  # of the surface annotations; no objects, and so no categories


def load_nuimages(root: Path, split: str) -> Dataset:
    """A split of nuImages, with image-level labels from its object annotations, and base and novel categories.

    root: the folder that holds `v1.0-train`, `v1.0-val` or `v1.0-mini`, and `samples`.
    split: one of `SPLITS`.

    The groups are those of ROOT/classes.toml, which `python -m for_eval classes` writes. Without that file they follow
    the paper's rule, from the shares of the train split, or of this one where train isn't there; the log says which.
    Raises UsageError for another split; DataError as `read_split` does, or when classes.toml is damaged.
    """
    dataset = read_split(root, split)
    names = [category.name for category in dataset.categories]
    file = Path(root).expanduser().resolve() / CLASSES_FILE
    if file.exists():
        groups = read_groups(file, names)
        source = str(file)
    else:
        train = split != "train" and (file.parent / "v1.0-train").is_dir()
        by_share = groups_by_share(read_split(root, "train") if train else dataset, NOVEL_BELOW)
        groups = {name: by_share.get(name, "other") for name in names}
        source = (
            f"the shares of {'train' if train else split}, novel below {NOVEL_BELOW:.0%}; "
            f"`python -m for_eval classes --root {root}` keeps them in {CLASSES_FILE}"
        )
    count = {group: sum(value == group for value in groups.values()) for group in ("base", "novel", "other")}
    counts = ", ".join(f"{n} {group}" for group, n in count.items())
    _log.info("nuimages %s: %s categories, from %s", split, counts, source)
    return replace(dataset, categories=tuple(Category(name, groups[name]) for name in names))


def read_split(root: Path, split: str) -> Dataset:
    """A split of nuImages with every category in the group `other`, categories in the order of nuImages's own names.

    Images that the tables list and the folder lacks are kept: what embeds them skips and records them.
    Raises UsageError for a split that isn't one of `SPLITS`; DataError when a table or `samples` is missing, or when
    a table is damaged or refers to a record that isn't there.
    """
    if split not in SPLITS:
        raise UsageError(f"nuimages has no split {split!r}: choose one of {', '.join(SPLITS)}")
    root = Path(root).expanduser().resolve()
    _log.info("nuimages %s: reading its tables", split)
    categories = read_nuimages_table(root, split, "category")
    if not (root / "samples").is_dir():
        raise DataError(f"{root / 'samples'} doesn't exist: unpack the samples archive of nuImages there")
    try:  # one table after the other: that of sample_data alone takes gigabytes
        objects, positions = _categories(categories)
        images = _images(read_nuimages_table(root, split, "sample"), read_nuimages_table(root, split, "sample_data"))
        labels = _labels(read_nuimages_table(root, split, "object_ann"), {image.id for image in images}, positions)
    except _FormatError as error:
        raise DataError(
            f"{root / f'v1.0-{split}' / error.table}.json is damaged: {error}; unpack the metadata archive again"
        ) from error
    return Dataset("nuimages", split, root, images, objects, labels)


class _FormatError(Exception):
    """Where a table departs from nuImages's schema; `read_split` adds which folder it is in."""

    def __init__(self, table: str, what: str) -> None:
        super().__init__(what)
        self.table = table


def read_nuimages_table(root: Path, split: str, name: str) -> list[dict[str, Any]]:
    """The records of a table, as the devkit reads them."""
    from nuimages import NuImages  # its import takes seconds, and only this function needs it

    path = root / f"v1.0-{split}" / f"{name}.json"
    if not path.is_file():
        raise DataError(
            f"{path} doesn't exist: expected nuImages v1.0 as published, ROOT/v1.0-{split}/ and ROOT/samples/"
        )
    try:
        records = getattr(NuImages(path.parent.name, str(root), lazy=True, verbose=False), name)
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror}): check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path} is damaged, it is not valid JSON ({error}): unpack the metadata archive again"
        ) from error
    if not isinstance(records, list) or not all(isinstance(row, dict) for row in records):
        raise DataError(f"{path} is damaged, it is not a list of records: unpack the metadata archive again")
    return records


def _text(row: dict[str, Any], key: str, table: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value:
        raise _FormatError(table, f"a record has {key} {value!r}, not a text")
    return value


def _categories(rows: list[dict[str, Any]]) -> tuple[tuple[Category, ...], dict[str, int | None]]:
    """The object classes in the order of nuImages's own names, and token -> position; None for a surface."""
    tokens = {_text(row, "token", "category"): _text(row, "name", "category") for row in rows}
    objects = sorted(set(tokens.values()) - set(SURFACES))
    names = [PROMPT_NAMES.get(name, name.rpartition(".")[2].replace("_", " ")) for name in objects]
    if not objects or len(set(names)) < len(objects):
        raise _FormatError("category", f"expected object classes with names that differ, got {', '.join(names)!r}")
    position = {name: n for n, name in enumerate(objects)}
    return tuple(Category(name, "other") for name in names), {key: position.get(tokens[key]) for key in tokens}


def _images(samples: list[dict[str, Any]], sample_data: list[dict[str, Any]]) -> tuple[ImageRecord, ...]:
    """The camera key frame of every sample, in ascending order of id."""
    wanted = {_text(row, "key_camera_token", "sample") for row in samples}
    records = {}
    for row in sample_data:
        token = _text(row, "token", "sample_data")
        if token in wanted:
            path = row.get("filename")
            if not isinstance(path, str) or not is_safe_path(path) or not path.startswith("samples/"):
                raise _FormatError("sample_data", f"record {token!r} has filename {path!r}, not a path within samples/")
            records[token] = ImageRecord(token, path)
    if not wanted:
        raise _FormatError("sample", "it lists no samples")
    if missing := wanted - set(records):
        raise _FormatError("sample", f"key_camera_token {min(missing)!r} isn't in sample_data.json")
    return tuple(records[token] for token in sorted(records))


def _labels(
    annotations: Iterable[dict[str, Any]], images: set[ImageId], positions: Mapping[str, int | None]
) -> dict[ImageId, frozenset[int]]:
    """Image id -> positions of the categories present; images without objects are left out.

    positions: category token -> position, None for a surface, which is no object even if annotated as one.
    """
    present: dict[ImageId, set[int]] = {}
    for row in annotations:
        image, category = _text(row, "sample_data_token", "object_ann"), _text(row, "category_token", "object_ann")
        if image not in images:
            raise _FormatError("object_ann", f"sample_data_token {image!r} is no key frame of a camera")
        if category not in positions:
            raise _FormatError("object_ann", f"category_token {category!r} isn't in category.json")
        if (position := positions[category]) is not None:
            present.setdefault(image, set()).add(position)
    return {image: frozenset(found) for image, found in present.items()}
