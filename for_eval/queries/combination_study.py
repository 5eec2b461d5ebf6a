"""Several things at once: the rules that combine them, chosen on one split, measured on another, against a sentence.

`OUT/results/combinations/*.json`, one a method and split, are the source of truth; `OUT/combinations.csv` is made from
them alone. Legend: M images, C names.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from for_eval.leaderboard.columns import Column
from for_eval.leaderboard.evaluate import SEED, K, run_facts
from for_eval.leaderboard.studies import Study
from for_eval.metrics.retrieval import retrieval_scores
from for_eval.queries.asked import Asked
from for_eval.queries.calibration_study import chosen_features, present
from for_model.errors import DataError
from for_search.query.presence import numbers_of
from for_search.query.ranking import top_k

N_PAIRS, N_WITHOUT = 200, 100
LEAST_TOGETHER = 2  # images that hold both names of a pair, at least
FIRST = 10  # images that are looked at for what was asked to be absent
CHOSEN_COMBINATION = "product of probabilities"
SENTENCE = "one embedding of the sentence"


@dataclass(frozen=True, eq=False)
class _Things:
    """What is known of every name in every image, [C, M] each.

    scores: the cosines.  z: how far an image stands out.  p: the probabilities.
    """

    scores: NDArray[np.float64]
    z: NDArray[np.float64]
    p: NDArray[np.float64]


# A rule for two things that must be there, and one for the first without the second; [M] each, the higher the better.
_Rule = Callable[[_Things, int, int], NDArray[np.float64]]


def _soft_min(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return -np.logaddexp(-a, -b)


TOGETHER: dict[str, _Rule] = {
    "smaller probability": lambda t, a, b: np.minimum(t.p[a], t.p[b]),
    CHOSEN_COMBINATION: lambda t, a, b: t.p[a] * t.p[b],
    "soft minimum of log probabilities": lambda t, a, b: _soft_min(np.log(t.p[a]), np.log(t.p[b])),
    "smaller z": lambda t, a, b: np.minimum(t.z[a], t.z[b]),
    "soft minimum of z": lambda t, a, b: _soft_min(t.z[a], t.z[b]),
    "sum of z": lambda t, a, b: t.z[a] + t.z[b],
    "sum of cosines": lambda t, a, b: t.scores[a] + t.scores[b],
}
WITHOUT: dict[str, _Rule] = {
    "smaller probability": lambda t, a, b: np.minimum(t.p[a], 1 - t.p[b]),
    CHOSEN_COMBINATION: lambda t, a, b: t.p[a] * (1 - t.p[b]),
    "soft minimum of log probabilities": lambda t, a, b: _soft_min(np.log(t.p[a]), np.log1p(-t.p[b])),
    "smaller z": lambda t, a, b: np.minimum(t.z[a], -t.z[b]),
    "soft minimum of z": lambda t, a, b: _soft_min(t.z[a], -t.z[b]),
    "sum of z": lambda t, a, b: t.z[a] - t.z[b],
    "sum of cosines": lambda t, a, b: t.scores[a] - t.scores[b],
    "the first thing alone": lambda t, a, b: t.p[a],
}


def draw_pairs(relevance: NDArray[np.bool_], seed: int = SEED) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """N_PAIRS pairs of names that are to be found together, and N_WITHOUT to be found one without the other.

    relevance: [C, M] bool.
    Both are drawn from the pairs that LEAST_TOGETHER images hold: where two things never meet, asking for both finds
    nothing, and asking for one without the other is asking for the one. The first of the second kind is in some image
    alone. Fewer where there are too few. Raises DataError where there is none.
    """
    counts = relevance.astype(np.int64)
    together = counts @ counts.T  # [C, C]
    pairs = [(int(a), int(b)) for a, b in np.argwhere(np.triu(together, 1) >= LEAST_TOGETHER)]
    if not pairs:
        raise DataError(f"no two names are in {LEAST_TOGETHER} images together: take a larger split")
    rng = np.random.default_rng(seed)
    both = [pairs[i] for i in rng.permutation(len(pairs))[:N_PAIRS]]
    ordered = [(a, b) if flip else (b, a) for (a, b), flip in zip(pairs, rng.random(len(pairs)) < 0.5, strict=True)]
    alone = [(a, b) for a, b in ordered if together[a, a] > together[a, b]]
    return both, [alone[i] for i in rng.permutation(len(alone))[:N_WITHOUT]]


def study_combinations(asked: Asked) -> dict[str, Any]:
    """One method's result on a split, as JSON values: mAP@50 of every rule, and of the sentence's one embedding.

    together: of pairs of names.  without: of one name without another; `unwanted` is the share of the FIRST images that
    hold the unwanted one.
    """
    numbers = numbers_of(asked.info)
    found = chosen_features(asked, asked.present)
    things = _Things(asked.present.astype(np.float64), found[..., 0], present(asked, numbers)(asked.present))
    both, alone = draw_pairs(asked.relevance)
    relevance = asked.relevance
    holds_both = np.stack([relevance[a] & relevance[b] for a, b in both])
    holds_one = np.stack([relevance[a] & ~relevance[b] for a, b in alone])
    unwanted = np.stack([relevance[b] for _, b in alone])
    names = asked.names
    together = {rule: np.stack([score(things, a, b) for a, b in both]) for rule, score in TOGETHER.items()}
    together[SENTENCE] = asked.score([f"{names[a]} and {names[b]}" for a, b in both]).astype(np.float64)
    without = {rule: np.stack([score(things, a, b) for a, b in alone]) for rule, score in WITHOUT.items()}
    without[SENTENCE] = asked.score([f"{names[a]} without {names[b]}" for a, b in alone]).astype(np.float64)
    return {
        "format": COMBINATIONS.format,
        "dataset": asked.dataset,
        "split": asked.split,
        "method": asked.info.to_json(),
        "n_images": int(relevance.shape[1]),
        "seed": SEED,
        "pairs": [[names[a], names[b]] for a, b in both],
        "pairs_without": [[names[a], names[b]] for a, b in alone],
        "together": {rule: _scores(scores, holds_both) for rule, scores in together.items()},
        "without": {
            rule: {**_scores(scores, holds_one), "unwanted": _share_of_first(scores, unwanted)}
            for rule, scores in without.items()
        },
        **run_facts(),
    }


def _scores(scores: NDArray[np.float64], relevance: NDArray[np.bool_]) -> dict[str, Any]:
    of_each = retrieval_scores(scores, relevance, K).ap
    return {"map": float(of_each.mean()), "ap": [round(float(ap), 6) for ap in of_each]}


def _share_of_first(scores: NDArray[np.float64], holds: NDArray[np.bool_]) -> float:
    return float(np.take_along_axis(holds, top_k(scores, FIRST), axis=1).mean())


_COLUMNS: tuple[Column, ...] = (
    Column("dataset", ("dataset",)),
    Column("split", ("split",)),
    Column("backbone", ("method", "backbone")),
    Column("method", ("method", "method")),
    Column("embeddings an image", ("method", "n_embeddings")),
    Column("rule", ("rule",)),
    Column("A and B mAP@50", ("both", "map"), 2, True),
    Column("A without B mAP@50", ("one", "map"), 2, True),
    Column(f"B in the first {FIRST}", ("one", "unwanted"), 2, True),
)


def _lines(result: dict[str, Any]) -> list[dict[str, Any]]:
    together, without = result["together"], result["without"]
    rules = dict.fromkeys([*together, *without])
    return [{**result, "rule": rule, "both": together.get(rule), "one": without.get(rule)} for rule in rules]


COMBINATIONS = Study("combinations", "for-combination-result/1", "combinations", _COLUMNS, _lines)
