"""A whole answer as files: CSV, JSON, a folder of links, or COCO's layout, which training and evaluation read."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from for_model.errors import DataError, UsageError
from for_model.files import slug, write_bytes, write_json
from for_search.query.searcher import Searcher
from for_search.refine.answer import Refinement, WholeAnswer

FORMS = ("csv", "json", "links", "coco")
COCO_SPLIT = "concept"  # the split's name in COCO's layout
SURELY_NOT = 0.1  # images less probable than this are labelled as without the concept


def export_answer(searcher: Searcher, answer: WholeAnswer, learnt: Refinement, name: str, out: Path, form: str) -> None:
    """Write an answer.

    searcher: of the index that was asked.
    learnt: what the answer is of.
    name: of what was asked for; the category in COCO's layout, of the group base.
    out: a file for `csv` and `json`, replaced if there is one; a folder, new or empty, for `links` and `coco`.
    form: one of FORMS. `links` are symbolic links to the images, named by their rank. `coco` lists all images of the
        index, those of the answer labelled: OUT/annotations/instances_concept.json, and OUT/concept, a link to the
        images' folder. Its annotations name an image and a category, and have no box; `ConceptLabels` says which
        images are labelled as without it.
    Raises UsageError for another form or a folder that holds something, DataError where nothing can be written.
    """
    check_place(out, form)
    found = answer_rows(answer, learnt)
    try:
        if form == "csv":
            write_bytes(out, answer_csv(found).encode())
        elif form == "json":
            estimate = {"precision": answer.precision if found else None, "expected_total": answer.expected_total}
            write_json(out, {"name": name, "threshold": answer.threshold, **estimate, "images": found})
        elif form == "links":
            _write_links(searcher, answer, out)
        else:
            _write_coco(searcher, answer, learnt, name, out)
    except OSError as error:
        raise DataError(f"the answer can't be written to {out}: {error.strerror or error}") from error


def check_place(out: Path, form: str) -> None:
    """Raise UsageError for a form that isn't one, or a folder to write to that holds something; see `export_answer`."""
    if form not in FORMS:
        raise UsageError(f"no form of an answer is called {form!r}: choose one of {', '.join(FORMS)}")
    if form in ("links", "coco") and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is there and not an empty folder: choose another one")


def answer_rows(answer: WholeAnswer, learnt: Refinement) -> list[dict[str, Any]]:
    """The images of an answer, in its order: id, path, probability, and whether the user marked it right."""
    images, marked = learnt.index.images, learnt.marked
    return [
        {"image": image.id, "path": image.path, "probability": float(probability), "marked": image.id in marked}
        for image, probability in (
            (images[int(position)], probability)
            for position, probability in zip(answer.images, answer.probabilities, strict=True)
        )
    ]


def answer_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of `answer_rows` as CSV, with a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "path", "probability", "marked"])
    writer.writerows([[row["image"], row["path"], f"{row['probability']:.4f}", row["marked"]] for row in rows])
    return text.getvalue()


def _write_links(searcher: Searcher, answer: WholeAnswer, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    width = len(str(len(answer.images)))
    for rank, position in enumerate(answer.images, start=1):
        path = searcher.image_path(searcher.index.images[int(position)])
        (out / f"{rank:0{width}d}-{slug(path.stem)}{path.suffix}").symlink_to(path)


def _write_coco(searcher: Searcher, answer: WholeAnswer, learnt: Refinement, name: str, out: Path) -> None:
    write_labels(searcher, [concept_labels(learnt, answer, name)], out)


@dataclass(frozen=True, eq=False)
class ConceptLabels:
    """What a concept says of the images of an index, as labels to train on.

    name: the category's.
    present, absent: positions in the index's images: those of its whole answer; and those that a user marked wrong or
        that are less probable than SURELY_NOT. Of the others nothing is said.
    """

    name: str
    present: NDArray[np.int64]
    absent: NDArray[np.int64]


def concept_labels(learnt: Refinement, answer: WholeAnswer, name: str) -> ConceptLabels:
    """The labels that a whole answer of what was learnt gives. `learnt` has marks."""
    assert learnt.calibration is not None  # or there would be no whole answer
    position = learnt.index.position
    unlikely = learnt.calibration.probabilities(learnt.scores()) < SURELY_NOT
    unlikely[[position(mark.image) for mark in learnt.examples.wrong_marks]] = True
    unlikely[answer.images] = False
    return ConceptLabels(name, np.sort(answer.images), np.flatnonzero(unlikely))


def write_labels(searcher: Searcher, concepts: Sequence[ConceptLabels], out: Path, judged: bool = True) -> None:
    """Write concepts as a dataset in COCO's layout, a category each, which training reads; see `export_answer`.

    judged: say, as LVIS does in `neg_category_ids`, what is known not to be in an image, so that an image that a
        concept says nothing of isn't judged for it. Otherwise whatever isn't labelled counts as without it.
    """
    index = searcher.index
    absent: dict[int, list[int]] = {}
    annotations: list[dict[str, Any]] = []
    for number, concept in enumerate(concepts, start=1):
        for place in concept.absent.tolist():
            absent.setdefault(place, []).append(number)
        for place in concept.present.tolist():
            image = index.images[place].id
            annotations.append({"id": len(annotations) + 1, "image_id": image, "category_id": number})
    (out / "annotations").mkdir(parents=True, exist_ok=True)
    (out / COCO_SPLIT).symlink_to(searcher.image_root, target_is_directory=True)
    names = ", ".join(repr(concept.name) for concept in concepts)
    content = {
        "info": {"description": f"the images that are taken to show {names}, as marks taught"},
        "images": [
            {"id": image.id, "file_name": image.path} | ({"neg_category_ids": absent.get(place, [])} if judged else {})
            for place, image in enumerate(index.images)
        ],
        "categories": [
            {"id": number, "name": concept.name, "group": "base"} for number, concept in enumerate(concepts, start=1)
        ],
        "annotations": annotations,
    }
    write_json(out / "annotations" / f"instances_{COCO_SPLIT}.json", content)
