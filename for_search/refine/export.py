"""A whole answer as files: CSV, JSON, a folder of links, or COCO's layout, which training and evaluation read."""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from for_model.data.dataset import ImageRecord
from for_model.errors import DataError, UsageError
from for_model.files import atomic_path, slug, write_json
from for_search.index.index import SearchIndex
from for_search.query.searcher import Searcher
from for_search.refine.answer import Refinement, WholeAnswer

FORMS = ("csv", "json", "links", "coco")
COCO_SPLIT = "concept"  # the split's name in COCO's layout
SURELY_NOT = 0.1  # images less probable than this are labelled as without the concept


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


def export_answer(searcher: Searcher, answer: WholeAnswer, learnt: Refinement, name: str, out: Path, form: str) -> None:
    """Write an answer, image by image, with a progress bar.

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
    rows = answer_rows(searcher.index, answer, learnt.marked)
    shown = tqdm(rows, "export", len(answer.images), unit="image", unit_scale=True, disable=None)
    try:
        if form == "csv":
            with atomic_path(out) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
                write_csv(shown, stream)
        elif form == "json":
            _write_json(answer, name, shown, out)
        elif form == "links":
            _write_links(searcher, shown, len(str(len(answer.images))), out)
        else:
            write_labels(searcher, [concept_labels(learnt, answer, name)], out)
    except OSError as error:
        raise DataError(f"the answer can't be written to {out}: {error.strerror or error}") from error


def check_place(out: Path, form: str) -> None:
    """Raise UsageError for a form that isn't one, or a folder to write to that holds something; see `export_answer`."""
    if form not in FORMS:
        raise UsageError(f"no form of an answer is called {form!r}: choose one of {', '.join(FORMS)}")
    if form in ("links", "coco") and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is there and not an empty folder: choose another one")


def write_csv(rows: Iterable[AnswerRow], stream: TextIO) -> None:
    """Write rows of an answer as CSV, with a header."""
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["image", "path", "probability", "marked"])
    writer.writerows([row.image.id, row.image.path, f"{row.probability:.4f}", row.marked] for row in rows)


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
