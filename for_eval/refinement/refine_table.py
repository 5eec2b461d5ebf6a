"""What marks are worth: one JSON result a row (dataset, method, refiner), and the table that is made from them.

`OUT/results/refine/*.json` are the source of truth and hold every name's curve; `OUT/refine.csv` is made from them
alone. A row that is there already, of the same embeddings, isn't made again.
"""

import contextlib
import json
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from for_eval.leaderboard.columns import Column
from for_eval.leaderboard.studies import Study
from for_eval.refinement.simulated_user import ASKED, PAGE, ROUNDS, TEXT_ALONE, simulate
from for_model.data.dataset import Category, Dataset
from for_model.errors import DataError, UsageError
from for_model.files import read_note, sha256_json, write_json
from for_model.methods.clip_method import ClipMethod
from for_model.methods.protocol import Method
from for_model.methods.registry import method_title
from for_model.text import cached_category_embeddings
from for_model.training.features import Kept, open_features
from for_search.index.index import SearchIndex
from for_search.index.index_files import build_index
from for_search.refine.catalogue_sample import CatalogueSample, sample_catalogue
from for_search.refine.learners.refiners import REFINERS
from for_search.store.embed import embed
from for_search.store.store import MANIFEST, store_path

HARD = 0.3  # names whose AP by the text alone is below this
WORSE = 0.05  # AP that a name may lose
_FEATURES_GIB = 10.0
_GROUPS = ("all", "base", "novel", "hard")


def parse_refiners(names: str) -> list[str]:
    """`linear,rocchio` -> the names; an empty string for all without ASKED. Raises UsageError that lists them."""
    known = [TEXT_ALONE, *REFINERS]
    chosen = [name.strip() for name in names.split(",") if name.strip()] or known
    for name in chosen:
        if name.removesuffix(ASKED) not in known or name == TEXT_ALONE + ASKED:
            raise UsageError(
                f"no refiner is called {name!r}: choose some of {', '.join(known)}, or one with {ASKED} behind it"
            )
    return chosen


def measure_refiners(
    dataset: Dataset, method: Method, refiners: Sequence[str], out: Path, stores: Path | None = None
) -> Iterator[Path]:
    """Simulate a search for every base and novel name, by each refiner, and write a result each; yields their paths.

    dataset: with labels.
    method: embeds it, unless its store is there.
    refiners: some of REFINERS, with ASKED behind them or not, and TEXT_ALONE.
    out: the folder of the leaderboards.
    stores: see `store_path`.
    Raises DataError for a dataset without labels, and what embedding raises.
    """
    paths = {refiner: result_file(REFINE, out, dataset, method, refiner) for refiner in refiners}
    head = row_head(dataset, method)
    todo = [name for name, path in paths.items() if not is_row_of(path, head)]
    if todo:
        with searches(dataset, method, stores) as found:
            for refiner in todo:
                names = [
                    {
                        "name": category.name,
                        "group": category.group,
                        "n_relevant": int(relevant.sum()),
                        "rounds": [
                            _rounded(asdict(each))
                            for each in simulate(found.index, text, relevant, refiner, found.sample)
                        ],
                    }
                    for category, text, relevant in found.every_name(refiner)
                ]
                result = {
                    "format": REFINE.format,
                    **head,
                    "refiner": refiner,
                    "page": PAGE,
                    "scores": {group: summaries(names, group) for group in _GROUPS},
                    "names": [_for_curves(name) for name in names],
                }
                write_json(paths[refiner], result)
    yield from paths.values()


@dataclass(frozen=True, eq=False)
class Searches:
    """An index and what is looked for in it.

    sample: of the index.
    categories: C of them, base and novel.
    texts: [C, Co] float32, their embeddings.
    relevance: [C, M] bool, over the index's images.
    """

    index: SearchIndex
    sample: CatalogueSample
    categories: tuple[Category, ...]
    texts: NDArray[np.float32]
    relevance: NDArray[np.bool_]

    def every_name(self, what: str) -> Iterator[tuple[Category, NDArray[np.float32], NDArray[np.bool_]]]:
        """Category, text and relevant images of each name that any image shows; `what` stands at the progress bar."""
        rows = [
            (category, text, relevant)
            for category, text, relevant in zip(self.categories, self.texts, self.relevance, strict=True)
            if relevant.any()
        ]
        label = f"{self.index.dataset} {self.index.info.method} {what}"
        yield from tqdm(rows, desc=label, unit="name", disable=None)


@contextlib.contextmanager
def indexed(dataset: Dataset, method: Method, stores: Path | None = None) -> Iterator[SearchIndex]:
    """A dataset's index, which is deleted at the end; embedded unless its store is there, from kept feature maps where
    that is possible. Raises what embedding raises."""
    store = store_path(dataset, method.info, stores)
    if not (store / MANIFEST).exists():
        features = None
        if isinstance(method, ClipMethod):
            found = open_features(dataset, method.backbone, _FEATURES_GIB, exact=True)
            features = found if isinstance(found, Kept) else None
        embed(dataset, method, store, features=features)
    with tempfile.TemporaryDirectory() as folder:
        yield build_index(store, Path(folder) / "index")


@contextlib.contextmanager
def searches(dataset: Dataset, method: Method, stores: Path | None = None) -> Iterator[Searches]:
    """What is looked for in a dataset: every base and novel name, in its index; see `indexed`.

    Raises DataError for a dataset without labels to look for, and what embedding raises.
    """
    scored = [i for i, category in enumerate(dataset.categories) if category.group != "other"]
    if not scored or not dataset.labels:
        raise DataError(
            f"{dataset.name} {dataset.split} has no labelled categories to look for: use a labelled dataset"
        )
    categories = tuple(dataset.categories[i] for i in scored)
    texts = cached_category_embeddings(method, [category.name for category in categories]).numpy().astype(np.float32)
    with indexed(dataset, method, stores) as index:
        relevance = dataset.relevance([image.id for image in index.images])[scored]
        yield Searches(index, sample_catalogue(index), categories, texts, relevance)


def row_head(dataset: Dataset, method: Method) -> dict[str, Any]:
    """What every row says of its data; two rows that say the same are of the same images, labels and embeddings."""
    labels = [[image.id, sorted(dataset.labels.get(image.id, ()))] for image in dataset.images]
    return {
        "dataset": dataset.name,
        "split": dataset.split,
        "n_images": len(dataset.images),
        "labels_sha256": sha256_json([[category.name for category in dataset.categories], labels]),
        "method": method.info.to_json(),
    }


def is_row_of(path: Path, head: dict[str, Any]) -> bool:
    """Whether a file holds a finished row of that head."""
    row = read_note(path) or {}
    return all(row.get(key) == value for key, value in json.loads(json.dumps(head)).items())


def result_file(study: Study, out: Path, dataset: Dataset, method: Method, *more: str) -> Path:
    """Where a row's result is kept under the leaderboards' folder.

    more: what tells it from other rows of the method.
    """
    info = method.info
    head = info.settings.get("head_sha256", "")[:8]
    parts = (dataset.name, dataset.split, info.backbone, f"{info.method}-{info.n_embeddings}", head, *more)
    return study.path(out, *(part for part in parts if part))


def _for_curves(name: dict[str, Any]) -> dict[str, Any]:
    """Of a name's scores, what its curve is drawn from; the means hold the rest."""
    keys = ("rounds", "found", "ap_unseen", "ap_unseen_text", "ap_list")
    return {**name, "rounds": [{key: each[key] for key in keys} for each in name["rounds"]]}


def _rounded(scores: dict[str, Any]) -> dict[str, Any]:
    """Four decimals say all that a table shows, and keep the files small."""
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in scores.items()}


def summaries(names: Sequence[dict[str, Any]], group: str) -> dict[str, dict[str, Any]]:
    """Means over the names of a group, after each number of rounds.

    names: as a result has them.
    group: `base`, `novel`, `all`, or `hard`, those whose AP by the text alone is below HARD.

    Returns rounds -> scores. `n_names` have right images left that weren't shown, and `ap_unseen`, `ap_unseen_text`,
    their difference `gain` and the share that is `worse` by more than WORSE are of those; `found` (the share of the
    right images that was shown), `ap_list`, `precision` and `recall` are of all names of the group. `precision_error`
    is the mean distance of the estimated precision from the precision. What nothing is known of is None.
    """
    chosen = [name for name in names if group in ("all", name["group"]) or (group == "hard" and _text_ap(name) < HARD)]
    table = {}
    for rounds in ROUNDS:
        found = [(name, each) for name in chosen for each in name["rounds"] if each["rounds"] == rounds]
        left = [each for _, each in found if each["ap_unseen"] is not None]
        gains = [each["ap_unseen"] - each["ap_unseen_text"] for each in left]
        sure = [each for _, each in found if each["precision"] is not None]
        table[str(rounds)] = {
            "n_names": len(left),
            "ap_unseen_text": _mean([each["ap_unseen_text"] for each in left]),
            "ap_unseen": _mean([each["ap_unseen"] for each in left]),
            "gain": _mean(gains),
            "worse": _mean([float(gain < -WORSE) for gain in gains]),
            "ap_list": _mean([each["ap_list"] for _, each in found]),
            "found": _mean([each["found"] / name["n_relevant"] for name, each in found]),
            "precision": _mean([each["precision"] for each in sure]),
            "recall": _mean([each["recall"] for _, each in found if each["recall"] is not None]),
            "precision_error": _mean([abs(each["precision"] - each["estimated_precision"]) for each in sure]),
            "fit_ms": _median([each["fit_ms"] for _, each in found if each["fit_ms"] is not None]),
            "whole_ms": _median([each["whole_ms"] for _, each in found if each["whole_ms"] is not None]),
        }
    return table


def _text_ap(name: dict[str, Any]) -> float:
    return float(name["rounds"][0]["ap_list"])


def _mean(values: Sequence[float]) -> float | None:
    return statistics.mean(values) if values else None


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


_COLUMNS: tuple[Column, ...] = (
    Column("dataset", ("dataset",)),
    Column("split", ("split",)),
    Column("method", ("title",)),
    Column("embeddings an image", ("method", "n_embeddings")),
    Column("refiner", ("refiner",)),
    Column("group", ("group",)),
    Column("rounds", ("rounds",)),
    Column("names", ("of_round", "n_names")),
    *(
        Column(heading, ("of_round", key), 1, True)
        for heading, key in (
            ("AP unseen, text", "ap_unseen_text"),
            ("AP unseen", "ap_unseen"),
            ("gain", "gain"),
            ("names worse by 5", "worse"),
            ("AP list", "ap_list"),
            ("found", "found"),
            ("precision", "precision"),
            ("recall", "recall"),
            ("off in precision", "precision_error"),
        )
    ),
    Column("fit ms", ("of_round", "fit_ms"), 0),
    Column("whole answer ms", ("of_round", "whole_ms"), 0),
)


def _lines(result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A line for each group of names and number of rounds."""
    for group, table in result["scores"].items():
        for rounds, scores in table.items():
            yield {**result, "title": title_of(result), "group": group, "rounds": rounds, "of_round": scores}


REFINE = Study("refine", "for-refine/1", "refine", _COLUMNS, _lines)


def title_of(result: dict[str, Any]) -> str:
    """What a result's method is called in tables."""
    return method_title(result["method"]["method"], result["method"]["n_embeddings"])


def refine_summary(paths: Sequence[Path]) -> str:
    """A short table of some results after two rounds, for a terminal: gains in AP of unseen images, in points."""
    lines = [
        f"{'dataset':<11}{'method':<22}{'refiner':<16}{'AP text':>8}{'gain':>7}{'hard':>7}{'worse':>7}{'found':>7}"
    ]
    for path in paths:
        result = read_note(path)
        if result is None:
            continue
        every, hard = (result["scores"][group]["2"] for group in ("all", "hard"))
        cells = (every["ap_unseen_text"], every["gain"], hard["gain"], every["worse"], every["found"])
        numbers = [
            f"{'' if value is None else f'{100 * value:.1f}':>{width}}"
            for value, width in zip(cells, (8, 7, 7, 7, 7), strict=True)
        ]
        lines.append(f"{result['dataset']:<11}{title_of(result):<22}{result['refiner']:<16}{''.join(numbers)}")
    return "\n".join(lines)
