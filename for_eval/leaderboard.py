"""Dataset x methods -> one JSON result a row -> CSV tables.

The JSON files under `results/` are the source of truth; every CSV is made from them alone, sorted, with fixed
decimals, so that the same results always give the same bytes. What wasn't measured is empty, never 0.
"""

import json
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from for_eval.bootstrap import bootstrap_interval
from for_eval.columns import COLUMNS, GROUPS, LABELS, MULTILABEL_COLUMNS, RECALL_KS, Column, cell, to_csv
from for_eval.embed import EmbedReport, embed
from for_eval.metrics import BoolArray, RetrievalScores, Scores, recall_at_k, retrieval_scores
from for_eval.multilabel import zero_shot_scores
from for_eval.rank import score_matrix
from for_eval.rankings import Rankings, rankings_of, write_rankings
from for_eval.store import Store, open_store, store_path
from for_model.clip_method import TRAINED
from for_model.data.dataset import Dataset
from for_model.errors import DataError, UsageError
from for_model.files import sha256_file, sha256_json, slug, write_bytes, write_json
from for_model.methods import Method
from for_model.prompts import prompts_of
from for_model.text import cached_category_embeddings

FORMAT = "for-result/1"
K = 50  # images that mAP@50 looks at
RESAMPLES = 1000
SEED = 0
MULTILABEL = ("coco2014",)  # datasets whose labelling of images is scored too (the paper's Table 10)
# `all` ranks every image for every category; `federated`, where a dataset (LVIS) says so, only the images of which it
# is known whether they hold the category.
Protocol = Literal["all", "federated"]
_PACKAGES = ("torch", "open_clip_torch", "numpy", "faiss-cpu", "pillow")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A store's scores.

    scores: {group: {"map", "map_low", "map_high", "map_over_p", "map_over_hits", "precision", "recall@k",
        "n_categories"}} for base, novel and all (base and novel together), each in 0..1 or None where no category of
        the group is present. The interval is the 95% bootstrap over images, centred (`bootstrap.Interval.shifted`).
    per_category: {"name", "group", "n_relevant", "ap"} of every scored category; ap is None where P = 0.
    rankings: what the scores were made from.
    multilabel: `gzsl` and `zsl` -> the fields of `multilabel.MultiLabelScores`; None for a dataset not in MULTILABEL.
    """

    scores: dict[str, Any]
    per_category: list[dict[str, Any]]
    rankings: Rankings
    multilabel: dict[str, Any] | None


def evaluate(dataset: Dataset, store: Store, method: Method) -> list[Evaluation]:
    """Score a store against its dataset's labels, in each of the dataset's protocols, `all` first.

    Raises DataError for a dataset without labels.
    """
    scored = [i for i, category in enumerate(dataset.categories) if category.group != "other"]
    if not scored or not dataset.labels:
        raise DataError(f"{dataset.name} {dataset.split} has no labelled categories to score: use a labelled dataset")
    categories = [dataset.categories[i] for i in scored]
    scores = score_matrix(store, cached_category_embeddings(method, [category.name for category in categories]))
    relevance = dataset.relevance(store.ids)[scored]
    known = dataset.known(store.ids)
    protocols: dict[Protocol, BoolArray | None] = {"all": None}
    if known is not None:
        protocols["federated"] = known[scored]
    return [
        _evaluation(
            scores,
            rankings_of(
                scores,
                relevance,
                of_which_known,
                dataset=dataset.name,
                split=dataset.split,
                protocol=protocol,
                k=K,
                categories=[category.name for category in categories],
                groups=[category.group for category in categories],
                image_ids=store.ids,
            ),
        )
        for protocol, of_which_known in protocols.items()
    ]


def _evaluation(scores: Scores, rankings: Rankings) -> Evaluation:
    relevance, known, groups = rankings.relevance, rankings.known, np.array(rankings.groups)
    masks = {group: np.ones(len(groups), bool) if group == "all" else groups == group for group in GROUPS}
    retrieval = retrieval_scores(scores, relevance, K, known)
    recalls = recall_at_k(scores, relevance, RECALL_KS, known)
    intervals = bootstrap_interval(scores, relevance, masks, K, RESAMPLES, SEED, known=known)
    table: dict[str, Any] = {}
    for group, mask in masks.items():
        mean, interval = retrieval.mean(mask), intervals[group]
        low, high = interval.shifted() if interval else (None, None)
        table[group] = {
            "n_categories": mean.n_categories,
            "map": mean.ap,
            "map_low": low,
            "map_high": high,
            "map_over_p": mean.ap_over_p,
            "map_over_hits": mean.ap_over_hits,
            "precision": mean.precision,
            **{f"recall@{k}": _mean(values[mask]) for k, values in recalls.items()},
        }
    multilabel = None
    if rankings.dataset in MULTILABEL:
        labelling = zero_shot_scores(scores, relevance, masks["novel"], LABELS)
        multilabel = {setting: asdict(found) for setting, found in labelling.items()}
    return Evaluation(table, _per_category(rankings, retrieval), rankings, multilabel)


def _per_category(rankings: Rankings, retrieval: RetrievalScores) -> list[dict[str, Any]]:
    return [
        {"name": name, "group": group, "n_relevant": int(n_relevant), "ap": None if np.isnan(ap) else float(ap)}
        for name, group, n_relevant, ap in zip(
            rankings.categories, rankings.groups, retrieval.n_relevant, retrieval.ap, strict=True
        )
    ]


def _mean(values: Any) -> float | None:
    present = values[~np.isnan(values)]
    return float(present.mean()) if len(present) else None


def run_method(
    dataset: Dataset, method: Method, device: str, stores: Path | None = None
) -> list[tuple[dict[str, Any], Rankings]]:
    """Embed (or go on, or find it done), score, and return the result as JSON values with its rankings, one a
    protocol."""
    report = embed(dataset, method, store_path(dataset, method.info, stores))
    store = open_store(report.store)
    common = {
        "format": FORMAT,
        "dataset": dataset.name,
        "split": dataset.split,
        "method": method.info.to_json(),
        "bytes_per_image": 2 * method.info.n_embeddings * method.info.dim,
        **_counts(report, store),
        "device": device,
        "seed": SEED,
        "config_sha256": sha256_json([method.info.to_json(), prompts_of(method), K, RESAMPLES, SEED]),
        "commit": _commit(),
        "versions": {name: version(name) for name in (*_PACKAGES, *getattr(method, "packages", ()))}
        | {"python": platform.python_version()},
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }
    results = []
    for each in evaluate(dataset, store, method):
        scores = {"protocol": each.rankings.protocol, "scores": each.scores, "per_category": each.per_category}
        labelling = {} if each.multilabel is None else {"multilabel": each.multilabel}
        results.append(({**common, **scores, **labelling}, each.rankings))
    return results


def _counts(report: EmbedReport, store: Store) -> dict[str, Any]:
    known = report.seconds == report.seconds  # NaN where the store doesn't know its time
    return {
        "n_images": report.n_images,
        "n_skipped": report.n_skipped,
        "skipped": [{"id": s.id, "path": s.path, "reason": s.reason} for s in store.skipped],
        "embed_seconds": report.seconds if known else None,
        "images_per_second": report.images_per_second if known else None,
    }


def _commit() -> str | None:
    """The commit that ran, with `+changes` where the tree differs from it; None outside a checkout."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "*.py", "*.json", "*.safetensors")
        changed = "\n".join(line for line in changed.splitlines() if "leaderboards/" not in line)
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def write_result(out: Path, result: dict[str, Any], rankings: Rankings) -> Path:
    """Write a row's result and its rankings under `out/results`; a later one of the same row takes its place."""
    method = result["method"]
    head = f"{method['method']}-{method['n_embeddings']}"
    if "head_sha256" in method["settings"]:  # heads trained in several ways, or from several seeds, are several rows
        head += f"-{method['settings']['head_sha256'][:8]}"
    weights = f"{method['backbone']}-{method['weights']}-{method['image_size']}px"
    protocol = [] if result["protocol"] == "all" else [result["protocol"]]
    path = out / "results" / f"{slug(result['dataset'], result['split'], *protocol, weights, head)}.json"
    sidecar = path.with_suffix(".npz")
    write_rankings(sidecar, rankings)
    write_json(path, {**result, "rankings": {"file": sidecar.name, "sha256": sha256_file(sidecar)}})
    return path


def read_results(out: Path) -> list[dict[str, Any]]:
    """All results under `out/results`, in the order of the tables. Raises DataError for a damaged file."""
    return sorted((read_result(path) for path in sorted((out / "results").glob("*.json"))), key=_order)


def read_result(path: Path) -> dict[str, Any]:
    """One result. Raises DataError when it can't be read or is of another format."""
    try:
        result = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no JSON result ({error}): delete it and run its leaderboard again") from error
    if not isinstance(result, dict) or result.get("format") != FORMAT:
        raise DataError(f"{path} is not of the format {FORMAT}: delete it and run its leaderboard again")
    return result


def _order(result: dict[str, Any]) -> tuple[Any, ...]:
    method = result["method"]
    kinds = ("clip", "dense-clip", "cluster-clip", *TRAINED)
    rank = kinds.index(method["method"]) if method["method"] in kinds else len(kinds)
    names = (
        result["dataset"],
        result["split"],
        result["protocol"],
        method["backbone"],
        method["weights"],
        method["image_size"],
    )
    return (*names, rank, method["method"], method["n_embeddings"], method["settings"].get("head_sha256", ""))


def write_tables(out: Path) -> list[Path]:
    """Write `out/DATASET.csv` for every dataset that has results, and `out/DATASET-multilabel.csv` where it has those.

    Raises UsageError when there are none.
    """
    results = read_results(out)
    if not results:
        raise UsageError(f"no results in {out / 'results'}: run `python -m for_eval leaderboard` first")
    paths = []
    for name in sorted({result["dataset"] for result in results}):
        mine = [result for result in results if result["dataset"] == name]
        paths.append(out / f"{slug(name)}.csv")
        write_bytes(paths[-1], to_csv(mine).encode())
        if any("multilabel" in result for result in mine):
            paths.append(out / f"{slug(name)}-multilabel.csv")
            write_bytes(paths[-1], to_csv(mine, MULTILABEL_COLUMNS).encode())
    return paths


def summary(results: Sequence[dict[str, Any]]) -> str:
    """A short Markdown table of results, for a terminal or a README."""
    federated = any(result["protocol"] != "all" for result in results)
    chosen = [
        *(["protocol"] if federated else []),
        "backbone",
        "weights",
        "method",
        "embeddings an image",
        "bytes an image",
        "images a second",
        "skipped",
    ]
    columns = [next(c for c in COLUMNS if c.heading == heading) for heading in chosen]
    labelling = [
        c for c in MULTILABEL_COLUMNS if c.keys[-1] in ("f1", "map") and any("multilabel" in r for r in results)
    ]
    headings = [*chosen, *(f"{group} mAP@50" for group in GROUPS), *(column.heading for column in labelling)]
    lines = ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
    for result in results:
        cells = [cell(result, column) for column in columns]
        for group in GROUPS:
            point, low, high = (
                cell(result, Column("", ("scores", group, key), 1, True)) for key in ("map", "map_low", "map_high")
            )
            cells.append(f"{point} ({low} to {high})" if point else "")
        cells += [cell(result, column) for column in labelling]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
