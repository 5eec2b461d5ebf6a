"""How far labels can take a refiner: AP by the labels of more and more images that are drawn at random, up to all.

The images at even positions may be labelled, the others are ranked, as in `marks_needed`. What is learnt from the
labels of every one of them no user's marks will reach: where that lies near the text's AP, the embeddings limit what
marks can do.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from for_eval.leaderboard.columns import Column
from for_eval.leaderboard.studies import Study
from for_eval.refinement.refine_table import HARD, is_row_of, result_file, row_head, searches, title_of
from for_eval.refinement.simulated_user import full_average_precision
from for_model.data.dataset import Dataset
from for_model.files import write_json
from for_model.methods.protocol import Method
from for_search.refine.answer import refine_index
from for_search.refine.feedback import Feedback, Mark

LABELLED = (20, 100, 500)  # images, before all of them
_LEARNERS = ("similarity", "linear", "marks-only")
_SEED = 0


def measure_ceiling(dataset: Dataset, method: Method, out: Path, stores: Path | None = None) -> Path:
    """Write the result of a dataset and method, unless it is there; returns its path. See `measure_refiners`.

    Its `names` have each name's group, the text's AP over the ranked half, and the AP of each learner by each number of
    labelled images; of the names that both halves show.
    """
    path, head = result_file(CEILING, out, dataset, method), row_head(dataset, method)
    if is_row_of(path, head):
        return path
    names = []
    with searches(dataset, method, stores) as looked_for:
        index = looked_for.index
        half = np.arange(len(index.images)) % 2 == 0
        drawn = np.random.default_rng(_SEED).permutation(np.flatnonzero(half))
        counts = [*(count for count in LABELLED if count < len(drawn)), len(drawn)]
        for category, text, relevant in looked_for.every_name("ceiling"):
            text_ap = full_average_precision(index.score_images(text[None])[0][~half], relevant[~half])
            if text_ap is None or not relevant[half].any():
                continue
            found: dict[str, dict[str, float]] = {}
            for name in _LEARNERS:
                found[name] = {}
                for count in counts:
                    marks = [Mark(index.images[i].id, bool(relevant[i])) for i in drawn[:count].tolist()]
                    if name == "marks-only" and not any(mark.right for mark in marks):
                        continue  # nothing to learn from without a text
                    learnt = refine_index(index, text, Feedback(tuple(marks)), name, looked_for.sample)
                    ap = full_average_precision(learnt.scores()[~half], relevant[~half])
                    found[name][str(count)] = round(ap or 0.0, 4)
            names.append({"name": category.name, "group": category.group, "ap_text": round(text_ap, 4), "ap": found})
    write_json(path, {"format": CEILING.format, **head, "n_labelled": counts, "names": names})
    return path


def _lines(result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A line for each learner, group of names and number of labelled images, of the names that have all of them."""
    for learner in _LEARNERS:
        for group in ("all", "base", "novel", "hard"):
            for count in result["n_labelled"]:
                pairs = [
                    (name["ap_text"], name["ap"][learner][str(count)])
                    for name in result["names"]
                    if group in ("all", name["group"]) or (group == "hard" and name["ap_text"] < HARD)
                    if str(count) in name["ap"].get(learner, {})
                ]
                if pairs:
                    text, learnt = (float(np.mean(values)) for values in zip(*pairs, strict=True))
                    scores = {"names": len(pairs), "text": text, "learnt": learnt, "gain": learnt - text}
                    said = {"title": title_of(result), "refiner": learner, "group": group, "count": count}
                    yield {**result, **said, "of_count": scores}


_COLUMNS: tuple[Column, ...] = (
    Column("dataset", ("dataset",)),
    Column("method", ("title",)),
    Column("refiner", ("refiner",)),
    Column("group", ("group",)),
    Column("images labelled", ("count",)),
    Column("names", ("of_count", "names")),
    Column("AP text", ("of_count", "text"), 1, True),
    Column("AP", ("of_count", "learnt"), 1, True),
    Column("gain", ("of_count", "gain"), 1, True),
)

CEILING = Study("refine-ceiling", "for-refine-ceiling/1", "refine --ceiling", _COLUMNS, _lines)
