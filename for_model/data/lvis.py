"""LVIS: ROOT/lvis_v1_SPLIT.json, and COCO 2017's images in ROOT/train2017 and ROOT/val2017.

The annotations may also lie in ROOT/annotations, so that COCO's folder can be LVIS's too. LVIS is federated: an
image is judged for some categories only, those that are annotated in it and those that were found not to be in it
(`neg_category_ids`), and of the others nothing is known. The val split's images come from both of COCO's folders.
"""

from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from for_model.data.dataset import Category, Dataset, Group, ImageId
from for_model.data.instances import FormatError, check_annotations, image_records, negative_categories, read_lists
from for_model.errors import DataError

_GROUPS: dict[str, Group] = {"f": "base", "c": "base", "r": "novel"}  # the paper: rare is novel
_NAMES = {"v1": "lvis", "v0.5": "lvis-v0.5"}


def load_lvis(root: Path, split: str, version: str | None = None) -> Dataset:
    """A split of LVIS, with image-level labels and negatives.

    root: the folder of the annotations and the image folders.
    split: `val`, `train`, ...
    version: `v1` or `v0.5`, other categories and other annotations; None for v1 where it is there, else v0.5. The
        dataset's name tells them apart: `lvis`, `lvis-v0.5`.

    Categories are in ascending order of their id, underscores in their names replaced by spaces. An image is not judged
    for a category that is marked as not exhaustively annotated in it and has no annotation there, as in LVIS's own
    evaluation. Images whose files are missing are kept, see `Dataset.check_files`.
    Raises DataError when a file or folder is missing, or when the JSON is damaged or not in LVIS's format.
    """
    root = Path(root).expanduser().resolve()
    path, version = annotation_file(root, split, version)
    content = read_lists(path, "LVIS's", "LVIS's layout")
    try:
        images = image_records((item.get("id"), image_path(item)) for item in content["images"])
        categories = _categories(content["categories"])
        ids = {image.id for image in images}
        check_annotations(content["annotations"], ids, categories)
        positions = {key: n for n, key in enumerate(categories)}
        negatives = {item["id"]: negative_categories(item, positions) for item in content["images"]}
    except FormatError as error:
        raise DataError(f"{path} is not in LVIS's format: {error}; fetch it again") from error
    for folder in sorted({str(PurePosixPath(image.path).parent) for image in images}):
        if not (root / folder).is_dir():
            raise DataError(
                f"{root / folder} doesn't exist: {path.name} lists images of COCO's {folder}, put them there"
            )
    labels = _labels(content, positions)
    absent = {key: found - labels.get(key, frozenset()) for key, found in negatives.items()}
    return Dataset(_NAMES[version], split, root, images, tuple(categories.values()), labels, absent)


def annotation_file(root: Path, split: str, version: str | None) -> tuple[Path, str]:
    """Where a split's annotations lie, and of which version they are.

    root, split, version: as `load_lvis` takes them.

    Raises DataError when there are none.
    """
    versions = _NAMES if version is None else (version,)
    places = [(root / folder / f"lvis_{v}_{split}.json", v) for v in versions for folder in ("", "annotations")]
    for path, found in places:
        if path.exists():
            return path, found
    raise DataError(
        f"{places[0][0]} doesn't exist: expected LVIS's layout, ROOT/lvis_{places[0][1]}_SPLIT.json (or in "
        "ROOT/annotations/) and COCO's images in ROOT/train2017/ and ROOT/val2017/"
    )


def image_path(item: dict[str, Any]) -> Any:
    """`val2017/000000397133.jpg`: v1 says where an image lies by its address at COCO only."""
    address = item.get("coco_url")
    if not isinstance(address, str):
        return item.get("file_name")
    return "/".join(PurePosixPath(urlsplit(address).path).parts[-2:])


def _categories(items: list[dict[str, Any]]) -> dict[int, Category]:
    """LVIS's category id -> category, in ascending order of id."""
    categories: dict[int, Category] = {}
    for item in items:
        key, name, frequency = item.get("id"), item.get("name"), item.get("frequency")
        if not isinstance(key, int) or key in categories:
            raise FormatError(f"category id {key!r} is not an integer, or occurs twice")
        if not isinstance(name, str) or not name.strip():
            raise FormatError(f"category {key} has no name")
        if frequency not in _GROUPS:
            raise FormatError(f"category {name!r} has the frequency {frequency!r}, not one of f, c, r")
        categories[key] = Category(name.replace("_", " "), _GROUPS[frequency])
    return dict(sorted(categories.items()))


def _labels(content: dict[str, Any], positions: dict[int, int]) -> dict[ImageId, frozenset[int]]:
    """Image id -> positions of the categories present; images without annotations are left out."""
    from lvis import LVIS  # it imports OpenCV and pycocotools, which only this function needs

    class Checked(LVIS):
        def _load_json(self, path: str) -> dict[str, Any]:  # the train split's JSON is too large to be read twice
            return content

    index = Checked("")
    return {
        image_id: frozenset(positions[annotation["category_id"]] for annotation in annotations)
        for image_id, annotations in index.img_ann_map.items()
    }


def load_lvis_v05(root: Path, split: str) -> Dataset:
    """LVIS v0.5, the older annotations; see `load_lvis`."""
    return load_lvis(root, split, "v0.5")
