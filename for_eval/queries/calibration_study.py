"""Is it there at all? The rules that turn a score into a probability, fitted to one split and measured on another.

`OUT/results/calibration/*.json`, one a method, are the source of truth; `OUT/calibration.csv` is made from them alone.
Legend: M images, C names, V random names.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from for_eval.leaderboard.columns import Column
from for_eval.leaderboard.evaluate import run_facts
from for_eval.leaderboard.studies import Study
from for_eval.metrics.calibration_scores import auroc, best_cutoff, f1, reliability
from for_eval.queries.asked import Asked
from for_model.files import write_json
from for_search.query.presence import (
    BEST_IMAGES,
    FORMAT,
    NUMBERS_FILE,
    SHARE_SCALE,
    NameScores,
    PresenceNumbers,
    best_share,
    features,
    logistic,
    mean_numbers,
    numbers_of,
    read_numbers,
)
from for_search.query.ranking import top_k

HITS = 12  # of each text, the best ones, which is what people look at
TOLERATED = 1  # of the nonsense words fitted to: which happens to score highest says little of other words
ORDER_RULE = "z with level and spread"
CHOSEN_RULE = f"there, and {ORDER_RULE}"

RuleFeatures = NDArray[np.float64]  # [names, M, F]
_Rule = Callable[[Asked, NDArray[np.float32]], RuleFeatures]
# [names, M] scores -> [names, M], how probable it is that each image holds what each name says
_Probabilities = Callable[[NDArray[np.float32]], NDArray[np.float64]]


def chosen_features(asked: Asked, scores: NDArray[np.float32]) -> RuleFeatures:
    """[names, M] scores -> the features of the chosen rule, as a search has them."""
    return features(scores, asked.sample, NameScores.of(asked.random[:, asked.sample]))


def _z_per_query(asked: Asked, scores: NDArray[np.float32]) -> RuleFeatures:
    return chosen_features(asked, scores)[..., :1]


def _z_per_image(asked: Asked, scores: NDArray[np.float32]) -> RuleFeatures:
    """The score against those of the random names for the same image."""
    names = NameScores.of(asked.random)
    return ((scores - names.mean) / names.deviation)[..., None]


def _both(asked: Asked, scores: NDArray[np.float32]) -> RuleFeatures:
    return np.concatenate([_z_per_query(asked, scores), _z_per_image(asked, scores)], axis=-1)


def _softmax_share(asked: Asked, scores: NDArray[np.float32]) -> RuleFeatures:
    """The logarithm of the text's share in a softmax against the random names (eq. 4)."""
    others = np.logaddexp.reduce(SHARE_SCALE * asked.random.astype(np.float64), axis=0)  # [M]
    own = SHARE_SCALE * scores.astype(np.float64)
    return (own - np.logaddexp(own, others))[..., None]


# Candidates for what tells the images of a name apart, in the order of the table.
RULES: dict[str, _Rule] = {
    "softmax share": _softmax_share,
    "z per image": _z_per_image,
    "z per query": _z_per_query,
    "z per query and per image": _both,
    ORDER_RULE: chosen_features,
}


def fit_rule(asked: Asked, rule: _Rule) -> tuple[float, list[float], float]:
    """The bias, the weights and the cut-off of a rule's logistic, by maximum likelihood over all names and images.

    The cut-off is that of the best F1 among those that at most TOLERATED of the split's nonsense words reach.
    """
    from sklearn.linear_model import LogisticRegression

    found = [rule(asked, scores) for scores in asked.groups]
    X = np.concatenate([each.reshape(-1, each.shape[-1]) for each in found])
    y = np.concatenate([each.ravel() for each in asked.truth])
    model = LogisticRegression(C=1000, max_iter=500).fit(X, y)
    bias, weights = float(model.intercept_[0]), [float(weight) for weight in model.coef_[0]]
    probabilities = _probability(bias, weights, X)
    return bias, weights, best_cutoff(probabilities, y, _least_cutoff(_probability(bias, weights, found[2])))


def fit_presence(asked: Asked, more: Asked | None) -> PresenceNumbers:
    """The numbers of the chosen rule.

    asked: what the logistic of z, level and spread and the cut-off are fitted to.
    more: another split, of more images, that the logistic of `best_share` is fitted to; None for the same.

    The cut-off is that of the best F1 among those that at most TOLERATED nonsense words reach in either split.
    """
    from sklearn.linear_model import LogisticRegression

    bias, weights, _ = fit_rule(asked, chosen_features)
    z, level, spread = weights
    shares, there = _shares_and_truth(more or asked)
    model = LogisticRegression(C=1000, class_weight="balanced").fit(shares[:, None], there)
    fitted = PresenceNumbers(
        bias, (z, level, spread), (float(model.intercept_[0]), float(model.coef_[0, 0])), cutoff=0.5
    )
    probabilities = [present(asked, fitted)(scores) for scores in asked.groups]
    nonsense = [probabilities[2], *([] if more is None else [present(more, fitted)(more.nonsense)])]
    least = max(map(_least_cutoff, nonsense))
    return replace(fitted, cutoff=best_cutoff(_flat(probabilities), _flat(asked.truth), least))


def _least_cutoff(nonsense: NDArray[np.float64]) -> float:
    """What no more than TOLERATED nonsense words reach, of which these are the probabilities, [words, M]."""
    return float(np.sort(nonsense.max(axis=1))[-1 - TOLERATED])


def _shares_and_truth(asked: Asked) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Of all names and words of a split, [names] each: their best share, and whether what they name is anywhere."""
    shares = np.concatenate([_best_shares(asked, scores) for scores in asked.groups])
    return shares, np.concatenate([each.any(axis=1) for each in asked.truth])


def _best_shares(asked: Asked, scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """[names, M] scores -> [names], as a search has them."""
    best = top_k(scores, BEST_IMAGES)  # [names, n]
    return best_share(np.take_along_axis(scores, best, 1), asked.random[:, best])


def present(asked: Asked, numbers: PresenceNumbers) -> _Probabilities:
    """The chosen rule."""
    return lambda scores: (
        numbers.probability_there(_best_shares(asked, scores))[:, None]
        * numbers.probability(chosen_features(asked, scores))
    )


def _logistic_of(asked: Asked, rule: _Rule, bias: float, weights: Sequence[float]) -> _Probabilities:
    """A candidate."""
    return lambda scores: _probability(bias, weights, rule(asked, scores))


def _probability(bias: float, weights: Sequence[float], found: RuleFeatures) -> NDArray[np.float64]:
    return logistic(found @ np.array(weights) + bias)


def measure_rule(asked: Asked, probable: _Probabilities, cutoff: float) -> dict[str, Any]:
    """How good a rule's probabilities are on a split, as JSON values.

    auroc_pairs: of all pairs of an image and a category. auroc_within: the mean over the categories of their own.
    auroc_names: of the best probability over all images, categories that are there against names and words that aren't.
    ece: over all pairs. ece_hits, f1_hits: over the HITS best images of each name. f1: over all pairs, at the cut-off.
    nonsense_good, absent_good: the share of these that have a good match. none_good: of the categories that have none.
    """
    probabilities = [probable(scores) for scores in asked.groups]
    pairs, truth = _flat(probabilities), _flat(asked.truth)
    best = [top_k(scores, HITS) for scores in asked.groups]
    hits = _flat([np.take_along_axis(each, order, 1) for each, order in zip(probabilities, best, strict=True)])
    hit_truth = _flat([np.take_along_axis(each, order, 1) for each, order in zip(asked.truth, best, strict=True)])
    there = asked.relevance.any(axis=1)
    tops = [each.max(axis=1) if len(each) else np.empty(0) for each in probabilities]
    known = np.concatenate([there, np.zeros(len(tops[1]) + len(tops[2]), dtype=bool)])
    within = [auroc(row, true) for row, true in zip(probabilities[0], asked.relevance, strict=True)]
    in_some = [value for value in within if value is not None]
    of_hits = reliability(hits, hit_truth)
    return {
        "auroc_pairs": auroc(probabilities[0], asked.relevance),
        "auroc_all": auroc(pairs, truth),
        "auroc_within": float(np.mean(in_some)) if in_some else None,
        "auroc_names": auroc(np.concatenate(tops), known),
        "ece": reliability(pairs, truth).error,
        "ece_hits": of_hits.error,
        "cutoff": cutoff,
        "f1": f1(pairs, truth, cutoff),
        "f1_hits": f1(hits, hit_truth, cutoff),
        "precision_good": _precision(pairs, truth, cutoff),
        "nonsense_good": _share(tops[2], cutoff),
        "absent_good": _share(tops[1], cutoff),
        "none_good": 1 - share if (share := _share(tops[0][there], cutoff)) is not None else None,
        "reliability_hits": {
            "count": of_hits.count.tolist(),
            "said": [None if np.isnan(each) else float(each) for each in of_hits.said],
            "true": [None if np.isnan(each) else float(each) for each in of_hits.true],
        },
    }


def _flat(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate([each.ravel() for each in parts])


def _share(tops: NDArray[np.float64], cutoff: float) -> float | None:
    return float((tops >= cutoff).mean()) if len(tops) else None


def _precision(probabilities: NDArray[np.float64], truth: NDArray[np.bool_], cutoff: float) -> float | None:
    found = probabilities >= cutoff
    return float(truth[found].mean()) if found.any() else None


def study_calibration(to_fit: Asked | None, to_measure: Asked, more: Asked | None = None) -> dict[str, Any]:
    """One method's result: every rule fitted to one split and measured on the other; see `measure_rule`.

    to_fit: None to measure the numbers that come with FOR, those of the method and those of other backbones.
    more: see `fit_presence`.
    """
    rules: dict[str, Any] = {}
    if to_fit is None:
        rules[f"{CHOSEN_RULE} as packaged"] = _measured(to_measure, numbers_of(to_measure.info))
    else:
        for name, rule in RULES.items():
            bias, weights, cutoff = fit_rule(to_fit, rule)
            probable = _logistic_of(to_measure, rule, bias, weights)
            rules[name] = {"bias": bias, "weights": weights, **measure_rule(to_measure, probable, cutoff)}
        rules[CHOSEN_RULE] = _measured(to_measure, fit_presence(to_fit, more))
    others = other_backbones(to_measure.info.backbone)
    if others is not None:
        rules[f"{CHOSEN_RULE} fitted to other backbones"] = _measured(to_measure, others)
    return {
        "format": CALIBRATION.format,
        "dataset": to_measure.dataset,
        "split": to_measure.split,
        "fitted_to": None if to_fit is None else _named(to_fit) + ("" if more is None else f", {_named(more)}"),
        "method": to_measure.info.to_json(),
        "n_images": int(to_measure.present.shape[1]),
        "n_names": len(to_measure.names),
        "n_absent": len(to_measure.absent),
        "n_nonsense": len(to_measure.nonsense),
        "rules": rules,
        **run_facts(),
    }


def _named(asked: Asked) -> str:
    return f"{asked.dataset} {asked.split}"


def _measured(asked: Asked, numbers: PresenceNumbers) -> dict[str, Any]:
    scores = measure_rule(asked, present(asked, numbers), numbers.cutoff)
    return {"bias": numbers.bias, "weights": list(numbers.weights), "there": list(numbers.there), **scores}


def other_backbones(backbone: str) -> PresenceNumbers | None:
    """What a backbone would get if it were unknown: the mean of all others' numbers; None where there are none."""
    others = [each for name, each in read_numbers().items() if name.split("/")[0] != backbone]
    return mean_numbers(others) if others else None


def write_numbers(results: Sequence[dict[str, Any]], path: Path = NUMBERS_FILE) -> None:
    """Put the chosen rule's numbers of some results into the file that comes with FOR; the others there stay."""
    content: dict[str, Any] = {"methods": {}}
    if path.exists():
        content = json.loads(path.read_bytes())
    for result in results:
        numbers = result["rules"][CHOSEN_RULE]
        method = result["method"]
        content["methods"][f"{method['backbone']}/{method['method']}"] = {
            "bias": round(numbers["bias"], 3),
            "weights": [round(weight, 3) for weight in numbers["weights"]],
            "there": [round(number, 3) for number in numbers["there"]],
            "cutoff": round(numbers["cutoff"], 3),
            "fitted_to": result["fitted_to"],
        }
    write_json(path, {"format": FORMAT, "methods": dict(sorted(content["methods"].items()))})
    read_numbers.cache_clear()


_COLUMNS: tuple[Column, ...] = (
    Column("dataset", ("dataset",)),
    Column("split", ("split",)),
    Column("fitted to", ("fitted_to",)),
    Column("backbone", ("method", "backbone")),
    Column("method", ("method", "method")),
    Column("embeddings an image", ("method", "n_embeddings")),
    Column("rule", ("rule",)),
    *(
        Column(heading, (key,), 4 if "AUROC" in heading else 2, "AUROC" not in heading)
        for heading, key in (
            ("AUROC of categories", "auroc_pairs"),
            ("AUROC with absent names", "auroc_all"),
            ("AUROC within a query", "auroc_within"),
            ("AUROC of names", "auroc_names"),
            ("ECE of pairs", "ece"),
            ("ECE of hits", "ece_hits"),
            ("cut-off", "cutoff"),
            ("F1 of pairs", "f1"),
            ("F1 of hits", "f1_hits"),
            ("precision of good matches", "precision_good"),
            ("nonsense with good matches", "nonsense_good"),
            ("absent names with good matches", "absent_good"),
            ("categories without good matches", "none_good"),
        )
    ),
)


def _lines(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**result, "rule": rule, **scores} for rule, scores in result["rules"].items()]


CALIBRATION = Study("calibration", "for-calibration-result/1", "calibration", _COLUMNS, _lines)
