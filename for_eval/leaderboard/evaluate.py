"""A dataset and a method -> one JSON result a protocol, with the rankings that it was made from."""

import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from for_eval.leaderboard.columns import LABELS, RECALL_KS
from for_eval.leaderboard.results import FORMAT
from for_eval.metrics.bootstrap import bootstrap_interval
from for_eval.metrics.kept_rankings import Rankings, rankings_of
from for_eval.metrics.multi_label import zero_shot_scores
from for_eval.metrics.retrieval import GROUPS, RetrievalScores, recall_at_k, retrieval_scores
from for_eval.metrics.score_matrix import score_matrix
from for_model.data.dataset import Dataset
from for_model.errors import DataError
from for_model.files import sha256_json
from for_model.methods.protocol import Method
from for_model.prompts import prompts_of
from for_model.text import cached_category_embeddings
from for_model.training.features import Kept
from for_search.query.ranking import BoolArray, Scores
from for_search.store.embed import EmbedReport, embed
from for_search.store.store import Store, open_store, store_path

K = 50  # images that mAP@50 looks at
RESAMPLES = 1000
SEED = 0
MULTILABEL = ("coco2014",)  # datasets whose labelling of images is scored too (the paper's Table 10)
# `all` ranks every image for every category; `federated`, for a federated dataset (LVIS), only the images that are
# judged for the category.
RankingProtocol = Literal["all", "federated"]
_PACKAGES = ("torch", "open_clip_torch", "numpy", "faiss-cpu", "pillow")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A store's scores.

    scores: {group: {"map", "map_low", "map_high", "map_over_p", "map_over_hits", "precision", "recall@k",
        "n_categories"}} for base, novel and all (base and novel together), each in 0..1 or None where no category of
        the group is present. The interval is the 95% bootstrap over images, centred (`bootstrap.Interval.shifted`).
    per_category: {"name", "group", "n_relevant", "ap"} of every scored category; ap is None where P = 0.
    rankings: what the scores were made from.
    multilabel: `gzsl` and `zsl` -> the fields of `MultiLabelScores`; None for a dataset not in MULTILABEL.
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
    protocols: dict[RankingProtocol, BoolArray | None] = {"all": None}
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
    order = rankings.order  # ranked once, deep enough for all of these
    retrieval = retrieval_scores(scores, relevance, K, known, order)
    recalls = recall_at_k(scores, relevance, RECALL_KS, known, order)
    intervals = bootstrap_interval(scores, relevance, masks, K, RESAMPLES, SEED, known=known, order=order)
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
    dataset: Dataset, method: Method, device: str, stores: Path | None = None, features: Kept | None = None
) -> list[tuple[dict[str, Any], Rankings]]:
    """Embed a dataset, unless that is done already, and score the embeddings.

    dataset: with labels.
    method: embeds it.
    device: where it computes, as the result records it.
    stores: the folder of the embeddings; None for the one in FOR's cache.
    features: the kept feature maps of the dataset, see `embed`; None to embed its images.

    Returns a result for each protocol, as JSON values, with its rankings.
    """
    report = embed(dataset, method, store_path(dataset, method.info, stores), features=features)
    store = open_store(report.store)
    common = {
        "format": FORMAT,
        "dataset": dataset.name,
        "split": dataset.split,
        "method": method.info.to_json(),
        "bytes_per_image": 2 * method.info.n_embeddings * method.info.dim,
        **_counts(report, store, timed=features is None),
        "device": device,
        "seed": SEED,
        "config_sha256": sha256_json([method.info.to_json(), prompts_of(method), K, RESAMPLES, SEED]),
        **run_facts(getattr(method, "packages", ())),
    }
    results = []
    for each in evaluate(dataset, store, method):
        scores = {"protocol": each.rankings.protocol, "scores": each.scores, "per_category": each.per_category}
        labelling = {} if each.multilabel is None else {"multilabel": each.multilabel}
        results.append(({**common, **scores, **labelling}, each.rankings))
    return results


def _counts(report: EmbedReport, store: Store, timed: bool) -> dict[str, Any]:
    """How many images were embedded and skipped, and how long that took.

    timed: whether images were embedded. Embedding kept feature maps is so much faster that its time says nothing.
    """
    known = timed and report.seconds == report.seconds  # NaN where the store doesn't know its time
    return {
        "n_images": report.n_images,
        "n_skipped": report.n_skipped,
        "skipped": [{"id": s.id, "path": s.path, "reason": s.reason} for s in store.skipped],
        "embed_seconds": report.seconds if known else None,
        "images_per_second": report.images_per_second if known else None,
    }


def run_facts(packages: Sequence[str] = ()) -> dict[str, Any]:
    """What a result says of its run: the commit, the versions of what computed (`packages` among them), and the day."""
    return {
        "commit": commit_of(Path(__file__)),
        "versions": {name: version(name) for name in (*_PACKAGES, *packages)} | {"python": platform.python_version()},
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }


def commit_of(module: Path) -> str | None:
    """The commit that ran, with `+changes` where the tree differs from it.

    module: a source file of FOR.
    Returns None outside a checkout of FOR. An installed FOR may lie within the repository of something else, but isn't
    tracked there.
    """

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=module.parent, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", module.name)
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/*.py", ":/*.json", ":/*.safetensors")
        changed = "\n".join(line for line in changed.splitlines() if "leaderboards/" not in line)
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
