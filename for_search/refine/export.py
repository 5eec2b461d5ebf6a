"""A whole answer as files: CSV, JSON, a folder of links, or COCO's layout, which training and evaluation read."""

import csv
import io
from pathlib import Path
from typing import Any

from for_model.errors import DataError, UsageError
from for_model.files import slug, write_bytes, write_json
from for_search.query.searcher import Searcher
from for_search.refine.answer import WholeAnswer

FORMS = ("csv", "json", "links", "coco")
COCO_SPLIT = "concept"  # the split's name in COCO's layout


def export_answer(
    searcher: Searcher, answer: WholeAnswer, marked_right: frozenset[Any], name: str, out: Path, form: str
) -> None:
    """Write an answer.

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
    found = [
        {"image": image.id, "path": image.path, "probability": float(probability), "marked": image.id in marked_right}
        for image, probability in (
            (searcher.index.images[int(position)], probability)
            for position, probability in zip(answer.images, answer.probabilities, strict=True)
        )
    ]
    try:
        if form == "csv":
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(["image", "path", "probability", "marked"])
            writer.writerows([[row["image"], row["path"], f"{row['probability']:.4f}", row["marked"]] for row in found])
            write_bytes(out, text.getvalue().encode())
        elif form == "json":
            estimate = {"precision": answer.precision if found else None, "expected_total": answer.expected_total}
            write_json(out, {"name": name, "threshold": answer.threshold, **estimate, "images": found})
        elif form == "links":
            _write_links(searcher, answer, out)
        else:
            _write_coco(searcher, answer, name, out)
    except OSError as error:
        raise DataError(f"the answer can't be written to {out}: {error.strerror or error}") from error


def _write_links(searcher: Searcher, answer: WholeAnswer, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    width = len(str(len(answer.images)))
    for rank, position in enumerate(answer.images, start=1):
        path = searcher.image_path(searcher.index.images[int(position)])
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
