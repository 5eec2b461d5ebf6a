"""The loop: mark results, take the whole answer, train on it, and look whether the new head finds more.

A simulated user (`simulated_user`) marks results for some names in one split, the catalogue. The whole answers are
written as labels in COCO's layout, as `concept export --form coco` does, and a head is trained on them. It is scored on
another split, none of whose images was marked or trained on, beside the head that the catalogue was searched with, and
beside a head that was trained on the same images without any label, which tells what the marks brought.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from for_eval.leaderboard.columns import Column
from for_eval.leaderboard.evaluate import run_facts
from for_eval.leaderboard.studies import Study
from for_eval.refinement.refine_table import Searches, indexed, result_file, searches, title_of
from for_eval.refinement.simulated_user import full_average_precision, rounds_of
from for_model.data.dataset import Dataset
from for_model.errors import UsageError
from for_model.files import sha256_json, write_json
from for_model.methods.build import build_method
from for_model.methods.clip_method import ClipMethod
from for_model.methods.protocol import Method
from for_model.text import cached_category_embeddings
from for_model.training import train
from for_model.training.config import TrainConfig, config_from
from for_search.query.searcher import searcher_of
from for_search.refine.answer import refine_index, whole_answer
from for_search.refine.export import COCO_SPLIT, ConceptLabels, concept_labels, write_labels
from for_search.refine.feedback import Feedback
from for_search.refine.learners.refiners import DEFAULT_REFINER


def measure_loop(
    catalogue: Dataset,
    unseen: Dataset,
    method: ClipMethod,
    config: TrainConfig,
    names: Sequence[str],
    rounds: int,
    out: Path,
    judged: bool = True,
) -> Path:
    """Go through the loop once; writes the result and returns its path.

    catalogue: with labels; its images are marked and trained on.
    unseen: another split, which both heads are scored on.
    method: the head before; the catalogue is searched with it.
    config: of the training; its data are replaced by the labels that the marks gave.
    names: categories of both splits; none for all base and novel ones.
    rounds: of ten marks each.
    judged: train on images that a concept says nothing of as not judged; otherwise they count as without it.

    Raises UsageError for a name that isn't a category of both, and for no rounds.
    """
    if rounds < 1:
        raise UsageError(f"{rounds} rounds of marks: give at least 1")
    with tempfile.TemporaryDirectory() as folder:
        labels = Path(folder) / "labels"
        with searches(catalogue, method) as looked_for:
            chosen = _chosen(looked_for, unseen, names)
            found = [_taught(looked_for, place, rounds) for place in chosen]
            answers = [_row(looked_for, place, each) for place, each in zip(chosen, found, strict=True)]
            write_labels(searcher_of(looked_for.index, method=method), found, labels, judged)
            categories = [looked_for.categories[place].name for place in chosen]
        with_labels = _config_of(config, method, labels)
        without = config_from({**with_labels.to_json(), "loss": {**with_labels.to_json()["loss"], "sup": 0.0}})
        heads: dict[str, Method] = {"before": method}
        for name, settings in (("after", with_labels), ("without labels", without)):
            for _ in train.train(settings, Path(folder) / name, str(method.device)):
                pass
            head = Path(folder) / name / "head.safetensors"
            heads[name] = build_method(str(head), loaded=method.backbone)
        ap = {name: _ap_of(head, unseen, categories, Path(folder) / f"stores {name}") for name, head in heads.items()}
    result = {
        "format": LOOP.format,
        "dataset": catalogue.name,
        "split": catalogue.split,
        "unseen": unseen.split,
        "method": method.info.to_json(),
        "head": {"method": heads["after"].info.to_json()["method"], "n_embeddings": heads["after"].info.n_embeddings},
        "config_sha256": sha256_json(config.changes()),
        "epochs": config.optimizer.epochs,
        "rounds": rounds,
        "unjudged": "not judged" if judged else "without it",
        "names": [
            {**row, "ap": {name: round(float(values[i]), 4) for name, values in ap.items()}}
            for i, row in enumerate(answers)
        ],
        **run_facts(),
    }
    what = "all" if not names else names[0] if len(names) == 1 else f"{len(names)}-names"
    more = (config.method, what, f"{rounds}-rounds", "judged" if judged else "all-judged")
    path = result_file(LOOP, out, catalogue, method, *more)
    write_json(path, result)
    return path


def _chosen(looked_for: Searches, unseen: Dataset, names: Sequence[str]) -> list[int]:
    """The places of the names among the categories that are looked for, of which both splits have images."""
    known = {category.name: place for place, category in enumerate(looked_for.categories)}
    there = {category.name for category in unseen.categories}
    for name in names:
        if name not in known or name not in there:
            raise UsageError(f"{name!r} is no category of both splits: choose some of {', '.join(sorted(known))}")
    shown = unseen.relevance([image.id for image in unseen.images]).any(axis=1)
    shows = {category.name: bool(any_) for category, any_ in zip(unseen.categories, shown, strict=True)}
    return [known[name] for name in names or known if shows.get(name) and looked_for.relevance[known[name]].any()]


def _taught(looked_for: Searches, place: int, rounds: int) -> ConceptLabels:
    index, text, relevant = looked_for.index, looked_for.texts[place], looked_for.relevance[place]
    *_, seen = rounds_of(index, text, relevant, DEFAULT_REFINER, looked_for.sample, rounds)
    learnt = refine_index(index, text, Feedback(seen.marks), DEFAULT_REFINER, looked_for.sample)
    return concept_labels(learnt, whole_answer(learnt), looked_for.categories[place].name)


def _row(looked_for: Searches, place: int, labels: ConceptLabels) -> dict[str, Any]:
    """What a result says of a name's labels: how many, how many of them are right, and how many images were missed."""
    relevant, category = looked_for.relevance[place], looked_for.categories[place]
    return {
        "name": category.name,
        "group": category.group,
        "n_relevant": int(relevant.sum()),
        "n_present": len(labels.present),
        "n_right": int(relevant[labels.present].sum()),
        "n_absent": len(labels.absent),
        "n_absent_wrong": int(relevant[labels.absent].sum()),
    }


def _config_of(config: TrainConfig, method: ClipMethod, labels: Path) -> TrainConfig:
    """The training on the labels, for the backbone of the head before."""
    settings, info = config.to_json(), method.info
    settings["data"] = {"dataset": "coco", "root": str(labels), "split": COCO_SPLIT}
    settings |= {"backbone": info.backbone, "weights": info.weights, "image_size": info.image_size}
    settings["loss"] = {**settings["loss"], "negatives": 0}  # pseudo negatives would judge what isn't judged
    return config_from(settings)


def _ap_of(method: Method, unseen: Dataset, names: Sequence[str], stores: Path) -> NDArray[np.float64]:
    """[C]: the average precision of each name over the images of `unseen`."""
    place = {category.name: i for i, category in enumerate(unseen.categories)}
    texts = cached_category_embeddings(method, list(names)).numpy().astype(np.float32)
    with indexed(unseen, method, stores) as index:
        scores = index.score_images(texts)  # [C, M]
        relevance = unseen.relevance([image.id for image in index.images])[[place[name] for name in names]]
    return np.array([full_average_precision(*each) or 0.0 for each in zip(scores, relevance, strict=True)])


def _lines(result: dict[str, Any]) -> list[dict[str, Any]]:
    """A line for each group of names, and one for each name where they are few."""
    names, lines = result["names"], []
    groups = {group: [name for name in names if group in ("all", name["group"])] for group in ("all", "base", "novel")}
    for group, chosen in groups.items():
        if chosen and (group == "all" or len(chosen) < len(names)):
            lines.append(_line(result, group, chosen))
    if 1 < len(names) <= 10:
        lines += [_line(result, name["name"], [name]) for name in names]
    return lines


def _line(result: dict[str, Any], what: str, names: Sequence[dict[str, Any]]) -> dict[str, Any]:
    present, right = sum(name["n_present"] for name in names), sum(name["n_right"] for name in names)
    ap = {key: float(np.mean([name["ap"][key] for name in names])) for key in names[0]["ap"]}
    said = {
        "names": len(names),
        "labels": present,
        "precision": right / present if present else None,
        "recall": right / sum(name["n_relevant"] for name in names),
        "better": float(np.mean([name["ap"]["after"] > name["ap"]["before"] for name in names])),
        "gain": ap["after"] - ap["before"],
        "by_labels": ap["after"] - ap["without labels"],
    }
    what = names[0]["name"] if len(result["names"]) == 1 else what
    return {**result, "title": title_of(result), "what": what, "ap": ap, "said": said}


_COLUMNS: tuple[Column, ...] = (
    Column("dataset", ("dataset",)),
    Column("marked", ("split",)),
    Column("scored", ("unseen",)),
    Column("head before", ("title",)),
    Column("head after", ("head", "method")),
    Column("epochs", ("epochs",)),
    Column("rounds", ("rounds",)),
    Column("unlikely images left", ("unjudged",)),
    Column("names", ("what",)),
    Column("count", ("said", "names")),
    Column("labels", ("said", "labels")),
    Column("right", ("said", "precision"), 1, True),
    Column("found", ("said", "recall"), 1, True),
    Column("AP before", ("ap", "before"), 1, True),
    Column("AP after", ("ap", "after"), 1, True),
    Column("gain", ("said", "gain"), 1, True),
    Column("AP without labels", ("ap", "without labels"), 1, True),
    Column("gain by labels", ("said", "by_labels"), 1, True),
    Column("names better", ("said", "better"), 1, True),
)

LOOP = Study("loop", "for-loop/1", "loop", _COLUMNS, _lines)
