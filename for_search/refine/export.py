"""A whole answer as files: CSV, JSON, a folder of links, or COCO's layout, which training and evaluation read."""

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from for_model.data.dataset import ImageRecord
from for_model.errors import DataError, UsageError
from for_model.files import atomic_path, slug, write_json
from for_search.index.index import SearchIndex
from for_search.query.searcher import Searcher
from for_search.refine.answer import WholeAnswer

FORMS = ("csv", "json", "links", "coco")
COCO_SPLIT = "concept"  # the split's name in COCO's layout


@dataclass(frozen=True)
class AnswerRow:
    """An image of a whole answer.

    probability: that it is meant; 1 for one that is marked right.
    marked: whether it is.
    """

    image: ImageRecord
    probability: float
    marked: bool


def answer_rows(
    index: SearchIndex, answer: WholeAnswer, marked_right: frozenset[Any], first: int = 0, count: int | None = None
) -> Iterator[AnswerRow]:
    """A page of an answer, one image after the other, in its order.

    marked_right: the ids of the images that the user marked right.
    first: how many images are left out, those of earlier pages.
    count: how many there are at most; None for all the others.
    Raises UsageError for negative numbers.
    """
    if first < 0 or (count is not None and count < 0):
        raise UsageError(f"images {first} and {count} further ones: expected 0 or more")
    page = range(first, len(answer.images) if count is None else min(first + count, len(answer.images)))
    for place in page:
        image = index.images[int(answer.images[place])]
        yield AnswerRow(image, float(answer.probabilities[place]), image.id in marked_right)


def export_answer(
    searcher: Searcher, answer: WholeAnswer, marked_right: frozenset[Any], name: str, out: Path, form: str
) -> None:
    """Write an answer, image by image, with a progress bar.

    searcher: of the index that was asked.
    marked_right: the ids of the images that the user marked right.
    name: of what was asked for; the category in COCO's layout, of the group base.
    out: a file for `csv` and `json`, replaced if there is one; a folder, new or empty, for `links` and `coco`.
    form: one of FORMS. `links` are symbolic links to the images, named by their rank. `coco` lists all images of the
        index, those of the answer labelled: OUT/annotations/instances_concept.json, and OUT/concept, a link to the
        images' folder. Its annotations name an image and a category, and have no box.
    Raises UsageError for another form or a folder that holds something, DataError where nothing can be written.
    """
    if form not in FORMS:
        raise UsageError(f"no form of an answer is called {form!r}: choose one of {', '.join(FORMS)}")
    if form in ("links", "coco") and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is there and not an empty folder: choose another one")
    rows = answer_rows(searcher.index, answer, marked_right)
    shown = tqdm(rows, "export", len(answer.images), unit="image", unit_scale=True, disable=None)
    try:
        if form == "csv":
            with atomic_path(out) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
                writer = csv.writer(stream, lineterminator="\n")
                writer.writerow(["image", "path", "probability", "marked"])
                writer.writerows([row.image.id, row.image.path, f"{row.probability:.4f}", row.marked] for row in shown)
        elif form == "json":
            _write_json(answer, name, shown, out)
        elif form == "links":
            _write_links(searcher, shown, len(str(len(answer.images))), out)
        else:
            _write_coco(searcher, answer, name, out)
    except OSError as error:
        raise DataError(f"the answer can't be written to {out}: {error.strerror or error}") from error


def _write_json(answer: WholeAnswer, name: str, rows: Iterable[AnswerRow], out: Path) -> None:
    """One object, with a line for each image, so that they needn't lie in memory all together."""
    precision = answer.precision if len(answer.images) else None
    head = {"name": name, "threshold": answer.threshold, "precision": precision}
    head["expected_total"] = answer.expected_total
    with atomic_path(out) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.write(json.dumps(head, ensure_ascii=False)[:-1] + ', "images": [')
        for number, row in enumerate(rows):
            value = {
                "image": row.image.id,
                "path": row.image.path,
                "probability": row.probability,
                "marked": row.marked,
            }
            stream.write((",\n" if number else "\n") + json.dumps(value, ensure_ascii=False))
        stream.write("\n]}\n")


def _write_links(searcher: Searcher, rows: Iterable[AnswerRow], width: int, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for rank, row in enumerate(rows, start=1):
        path = searcher.image_path(row.image)
        (out / f"{rank:0{width}d}-{slug(path.stem)}{path.suffix}").symlink_to(path)


def _write_coco(searcher: Searcher, answer: WholeAnswer, name: str, out: Path) -> None:
    index = searcher.index
    (out / "annotations").mkdir(parents=True, exist_ok=True)
    (out / COCO_SPLIT).symlink_to(searcher.image_root, target_is_directory=True)
    labelled = sorted(index.images[int(position)].id for position in answer.images)
    content = {
        "info": {"description": f"the images that are taken to show {name!r}, {100 * answer.precision:.0f}% right"},
        "images": [{"id": image.id, "file_name": image.path} for image in index.images],
        "categories": [{"id": 1, "name": name, "group": "base"}],
        "annotations": [
            {"id": number, "image_id": image, "category_id": 1} for number, image in enumerate(labelled, start=1)
        ],
    }
    write_json(out / "annotations" / f"instances_{COCO_SPLIT}.json", content)
