"""How many right images it takes until marks alone find more than the text does (Figure 3 of CLIP-Branches).

Half of the images, those at even positions, may be marked; the others are ranked. Without any text, a refiner learns
from some right images and as many wrong ones, both drawn at random.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from for_eval.refinement.refine_table import is_row_of, refine_path, row_head, searches
from for_eval.refinement.simulated_user import full_average_precision
from for_model.data.dataset import Dataset
from for_model.errors import DataError
from for_model.files import read_note, write_bytes, write_json
from for_model.methods.protocol import Method
from for_model.methods.registry import method_title
from for_search.refine.answer import refine_index
from for_search.refine.feedback import Feedback, Mark
from for_search.refine.refiners import REFINERS

FORMAT = "for-marks-needed/1"
COUNTS = (1, 2, 4, 8, 16)  # right images that are marked
_WHAT = "marks-needed"
_SEED = 0


def measure_marks_needed(dataset: Dataset, method: Method, out: Path, stores: Path | None = None) -> Path:
    """Write the result of a dataset and method, unless it is there; returns its path. See `measure_refiners`.

    Its `ap` has, for every refiner and each of COUNTS, the mean AP over the names of which half of the images hold that
    many, `ap_text` the text's over the same names, and `n_names` how many these are.
    """
    path, head = refine_path(out, dataset, method, _WHAT), row_head(dataset, method)
    if is_row_of(path, head):
        return path
    learners = [name for name in REFINERS if name != "marks-only"]  # without a text, linear is the same
    found: dict[str, dict[int, list[float]]] = {name: {count: [] for count in COUNTS} for name in ("text", *learners)}
    with searches(dataset, method, stores) as looked_for:
        index, generator = looked_for.index, np.random.default_rng(_SEED)
        marked = np.arange(len(index.images)) % 2 == 0
        for _, text, relevant in looked_for.every_name(_WHAT):
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
        "format": FORMAT,
        **head,
        "n_names": {str(count): len(found["text"][count]) for count in COUNTS},
        "ap_text": {str(count): _mean_ap(found["text"][count]) for count in COUNTS},
        "ap": {name: {str(count): _mean_ap(found[name][count]) for count in COUNTS} for name in learners},
    }
    write_json(path, result)
    return path


def _mean_ap(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 4) if values else None


def write_marks_needed_table(out: Path) -> Path:
    """Write OUT/refine-marks-needed.csv from the results under OUT/results/refine; returns its path."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["dataset", "method", "refiner", "right images marked", "names", "AP", "AP text"])
    for path in sorted((out / "results" / "refine").glob(f"*_{_WHAT}.json")):
        result: dict[str, Any] | None = read_note(path)
        if result is None or result.get("format") != FORMAT:
            raise DataError(f"{path} is no result of the format {FORMAT}: delete it and run refine again")
        title = method_title(result["method"]["method"], result["method"]["n_embeddings"])
        for refiner, aps in result["ap"].items():
            for count, ap in aps.items():
                if ap is not None:
                    cells = [f"{100 * ap:.1f}", f"{100 * result['ap_text'][count]:.1f}"]
                    writer.writerow([result["dataset"], title, refiner, count, result["n_names"][count], *cells])
    path = out / "refine-marks-needed.csv"
    write_bytes(path, text.getvalue().encode())
    return path
