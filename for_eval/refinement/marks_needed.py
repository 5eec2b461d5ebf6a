"""How many right images it takes until marks alone find more than the text does (Figure 3 of CLIP-Branches).

Half of the images, those at even positions, may be marked; the others are ranked. Without any text, a refiner learns
from some right images and as many wrong ones, both drawn at random.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from for_eval.leaderboard.columns import Column
from for_eval.leaderboard.studies import Study
from for_eval.refinement.refine_table import is_row_of, result_file, row_head, searches, title_of
from for_eval.refinement.simulated_user import full_average_precision
from for_model.data.dataset import Dataset
from for_model.files import write_json
from for_model.methods.protocol import Method
from for_search.refine.answer import refine_index
from for_search.refine.feedback import Feedback, Mark
from for_search.refine.learners.refiners import REFINERS

COUNTS = (1, 2, 4, 8, 16)  # right images that are marked
_SEED = 0


def measure_marks_needed(dataset: Dataset, method: Method, out: Path, stores: Path | None = None) -> Path:
    """Write the result of a dataset and method, unless it is there; returns its path. See `measure_refiners`.

    Its `ap` has, for every refiner and each of COUNTS, the mean AP over the names of which half of the images hold that
    many, `ap_text` the text's over the same names, and `n_names` how many these are.
    """
    path, head = result_file(MARKS_NEEDED, out, dataset, method), row_head(dataset, method)
    if is_row_of(path, head):
        return path
    learners = [name for name in REFINERS if name != "marks-only"]  # without a text, linear is the same
    found: dict[str, dict[int, list[float]]] = {name: {count: [] for count in COUNTS} for name in ("text", *learners)}
    with searches(dataset, method, stores) as looked_for:
        index, generator = looked_for.index, np.random.default_rng(_SEED)
        marked = np.arange(len(index.images)) % 2 == 0
        for _, text, relevant in looked_for.every_name("marks needed"):
            right = generator.permutation(np.flatnonzero(marked & relevant))
            wrong = generator.permutation(np.flatnonzero(marked & ~relevant))
            scores = index.score_images(text[None])[0]
            text_ap = full_average_precision(scores[~marked], relevant[~marked])
            for count in COUNTS:
                if text_ap is None or len(right) < count or len(wrong) < count:
                    break
                found["text"][count].append(text_ap)
                marks = [Mark(index.images[i].id, True) for i in right[:count].tolist()]
                marks += [Mark(index.images[i].id, False) for i in wrong[:count].tolist()]
                for name in learners:
                    learnt = refine_index(index, None, Feedback(tuple(marks)), name, looked_for.sample)
                    ap = full_average_precision(learnt.scores()[~marked], relevant[~marked])
                    found[name][count].append(ap or 0.0)
    result = {
        "format": MARKS_NEEDED.format,
        **head,
        "n_names": {str(count): len(found["text"][count]) for count in COUNTS},
        "ap_text": {str(count): _mean_ap(found["text"][count]) for count in COUNTS},
        "ap": {name: {str(count): _mean_ap(found[name][count]) for count in COUNTS} for name in learners},
    }
    write_json(path, result)
    return path


def _mean_ap(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 4) if values else None


_COLUMNS: tuple[Column, ...] = (
    Column("dataset", ("dataset",)),
    Column("method", ("title",)),
    Column("refiner", ("refiner",)),
    Column("right images marked", ("count",)),
    Column("names", ("names",)),
    Column("AP", ("of_refiner",), 1, True),
    Column("AP text", ("of_text",), 1, True),
)


def _lines(result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A line for each refiner and number of marks that some name has enough images for."""
    for refiner, aps in result["ap"].items():
        for count, ap in aps.items():
            if ap is not None:
                of_count = {"names": result["n_names"][count], "of_refiner": ap, "of_text": result["ap_text"][count]}
                yield {**result, "title": title_of(result), "refiner": refiner, "count": count, **of_count}


MARKS_NEEDED = Study("refine-marks-needed", "for-marks-needed/1", "refine --marks-needed", _COLUMNS, _lines)
