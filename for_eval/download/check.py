"""Check a dataset on disk against what was published, before a long run: images, annotations, categories, files."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from for_eval.download.fetch import archives_for, count_images
from for_eval.download.sources import PARTS, Part, PublishedSplit, Source
from for_model.data.instances import read_lists
from for_model.data.lvis import annotation_file, image_path
from for_model.data.nuimages import SURFACES, read_nuimages_table
from for_model.errors import DataError

_NUIMAGES_TABLES = (
    *("attribute", "calibrated_sensor", "category", "ego_pose", "log", "object_ann", "sample", "sample_data"),
    *("sensor", "surface_ann"),
)


@dataclass(frozen=True)
class _Found:
    """What a split's annotations list.

    annotations, categories: how many.
    paths: its images, relative to the dataset's folder.
    """

    annotations: int
    categories: int
    paths: list[str]


@dataclass(frozen=True)
class SplitCheck:
    """One split, or one folder of images.

    line: of the report.
    ok: whether all is as published.
    """

    line: str
    ok: bool


def check(source: Source, root: Path, splits: Sequence[str], parts: Sequence[Part] = PARTS) -> Iterator[SplitCheck]:
    """Yield a verdict for each split; for each folder of images when only images are asked for.

    Of every split: the numbers of images, annotations and categories as published, and each image that it lists a
    file. Without `images` in `parts` the files aren't looked for. A file that is missing or damaged is a verdict too.
    """
    if "annotations" not in parts and source.archives:
        for archive in archives_for(source, splits, parts):
            found = count_images(root / archive.holds[0])
            yield _verdict(archive.holds[0], [("images on disk", found, archive.n_files)])
        return
    for split in source.splits:
        if split.name in splits:
            yield _check_split(source, root, split, "images" in parts)


def _check_split(source: Source, root: Path, split: PublishedSplit, with_files: bool) -> SplitCheck:
    try:
        found = _READERS[source.layout](root, split.name)
        counts: list[tuple[str, int, int | None]] = [
            ("images", len(found.paths), split.images),
            ("annotations", found.annotations, split.annotations),
            ("categories", found.categories, source.categories),
        ]
        if with_files:
            bar = tqdm(found.paths, desc=f"files of {split.name}", unit="image", disable=None)
            on_disk = sum((root / path).is_file() for path in bar)
            counts.append(("images on disk", on_disk, split.images))
    except (DataError, OSError) as error:
        return SplitCheck(f"{split.name:<10} FAIL  {error}", ok=False)
    return _verdict(split.name, counts)


def _verdict(name: str, counts: Sequence[tuple[str, int, int | None]]) -> SplitCheck:
    ok = all(published in (None, found) for _, found, published in counts)
    words = [
        f"{found:,} {what}" + ("" if published in (None, found) else f" (published: {published:,})")
        for what, found, published in counts
    ]
    return SplitCheck(f"{name:<10} {'OK' if ok else 'FAIL':<4}  {', '.join(words)}", ok)


def _coco(root: Path, split: str) -> _Found:
    content = read_lists(root / "annotations" / f"instances_{split}.json", "COCO's", "COCO's layout")
    paths = [f"{split}/{image.get('file_name')}" for image in content["images"]]
    return _Found(len(content["annotations"]), len(content["categories"]), paths)


def _lvis(root: Path, split: str) -> _Found:
    content = read_lists(annotation_file(root, split, "v1")[0], "LVIS's", "LVIS's layout")
    paths = [str(image_path(image)) for image in content["images"]]  # train2017/000000000001.jpg
    return _Found(len(content["annotations"]), len(content["categories"]), paths)


def _nuimages(root: Path, split: str) -> _Found:
    folder = root / f"v1.0-{split}"
    if missing := [name for name in _NUIMAGES_TABLES if not (folder / f"{name}.json").is_file()]:
        raise DataError(f"{folder} lacks {', '.join(missing)} of its tables: unpack the metadata archive")
    names = {str(row.get("name")) for row in read_nuimages_table(root, split, "category")}
    keys = {str(row.get("key_camera_token")) for row in read_nuimages_table(root, split, "sample")}
    rows = read_nuimages_table(root, split, "sample_data")
    paths = [str(row.get("filename")) for row in rows if str(row.get("token")) in keys]
    return _Found(len(read_nuimages_table(root, split, "object_ann")), len(names - set(SURFACES)), paths)


_READERS: dict[str, Callable[[Path, str], _Found]] = {"coco": _coco, "lvis": _lvis, "nuimages": _nuimages}
