"""A kept concept scored against a label: does what the marks taught find more of it than the concept's text does?

The images that the concept's marks name are left out of what is ranked, for both.
"""

from pathlib import Path
from typing import Any

import numpy as np

from for_eval.leaderboard.columns import Column
from for_eval.leaderboard.studies import Study
from for_eval.refinement.refine_table import indexed, result_file, title_of
from for_eval.refinement.simulated_user import full_average_precision
from for_model.data.dataset import Dataset
from for_model.errors import UsageError
from for_model.files import write_json
from for_model.methods.protocol import Method
from for_search.query.searcher import searcher_of
from for_search.query.side_by_side import named_category
from for_search.refine.answer import whole_answer
from for_search.refine.concepts import read_concept, refine_by_concept


def measure_concept(
    dataset: Dataset, method: Method, concept_file: Path, label: str, out: Path, stores: Path | None = None
) -> Path:
    """Write the result of a concept; returns its path. See `measure_refiners` for the other arguments.

    concept_file: CONCEPTS/NAME.json.
    label: a category of the dataset; an empty one for the concept's name.

    Raises UsageError for a label that is no category, or where all images of it are marked, and as `read_concept` and
    `refine_by_concept` do.
    """
    concept = read_concept(concept_file.parent, concept_file.stem)
    category = named_category(label or concept.name, dataset)
    if category is None:
        raise UsageError(
            f"{label or concept.name!r} is no category of {dataset.name} {dataset.split}: say what the concept means "
            "with --label"
        )
    place = next(i for i, known in enumerate(dataset.categories) if known.name == category)
    with indexed(dataset, method, stores) as index:
        searcher = searcher_of(index, method=method)
        learnt = refine_by_concept(searcher, concept)
        relevant = dataset.relevance([image.id for image in index.images])[place]
        marked = np.zeros(len(index.images), bool)
        marked[[index.position(image) for image in learnt.marked]] = True
        ap: dict[str, float | None] = {"text": None}
        if concept.text.strip():
            text = searcher.text_query(concept.text).embeddings
            ap["text"] = full_average_precision(index.score_images(text)[0][~marked], relevant[~marked])
        ap["concept"] = full_average_precision(learnt.scores()[~marked], relevant[~marked])
        if ap["concept"] is None:
            raise UsageError(
                f"every image of {category!r} is marked: none is left to score concept {concept.name!r} on"
            )
        answer = whole_answer(learnt, concept.threshold) if learnt.calibration is not None else None
    said: dict[str, Any] = {"n": 0, "precision": None, "recall": None, "estimated_precision": None}
    if answer is not None and len(answer.images):
        right = relevant[answer.images]
        said = {
            "n": len(answer.images),
            "precision": float(right.mean()),
            "recall": float(right.sum() / relevant.sum()),
            "estimated_precision": answer.precision,
        }
    result = {
        "format": CONCEPT_SCORES.format,
        "dataset": dataset.name,
        "split": dataset.split,
        "method": method.info.to_json(),
        "concept": concept.name,
        "label": category,
        "refiner": concept.refiner,
        "n_right": len(learnt.examples.right),
        "n_wrong": len(learnt.examples.wrong),
        "n_gone": len(learnt.examples.gone),
        "n_unmarked": int((~marked).sum()),
        "ap": ap,
        "answer": said,
    }
    path = result_file(CONCEPT_SCORES, out, dataset, method, concept.name, category)
    write_json(path, result)
    return path


_COLUMNS: tuple[Column, ...] = (
    Column("dataset", ("dataset",)),
    Column("split", ("split",)),
    Column("method", ("title",)),
    Column("concept", ("concept",)),
    Column("label", ("label",)),
    Column("refiner", ("refiner",)),
    Column("right", ("n_right",)),
    Column("wrong", ("n_wrong",)),
    Column("AP text", ("ap", "text"), 1, True),
    Column("AP concept", ("ap", "concept"), 1, True),
    Column("answer", ("answer", "n")),
    Column("precision", ("answer", "precision"), 1, True),
    Column("recall", ("answer", "recall"), 1, True),
    Column("estimated precision", ("answer", "estimated_precision"), 1, True),
)

CONCEPT_SCORES = Study(
    "concepts",
    "for-concept-scores/1",
    "refine --concept FILE",
    _COLUMNS,
    lambda result: [{**result, "title": title_of(result)}],
)
