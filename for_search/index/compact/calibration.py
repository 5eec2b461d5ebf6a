"""The settings that reach an asked recall: chosen with one half of some queries, measured with the other half.

Everything is computed from the rows, nothing from the clock, so that the same rows give the same settings.
Legend: R rows, N rows an image, M images, Q queries, Co joint width, P partitions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from for_search.index.compact.codes import sample_rows
from for_search.index.compact.rows_file import RowsFile
from for_search.index.engine_protocol import BuildOptions, Recall

KS = (50, 1000)  # images asked for that settings are chosen for; between them they are interpolated
_N_QUERIES = {50: 128, 1000: 16}  # of each kind: texts, and the index's own embeddings
_MAX_FETCH = 100  # times k rows are looked at for settings
_BLOCK_ROWS = 1 << 15
_SEED = 1
# What is aimed at lies above what is asked, as other queries find a little less than those the settings are chosen
# with: a fifth of the way to 1. No query may fall short of it by more than this.
_MARGIN = 0.2
_WORST = 0.09
# What it takes to read a row and score it, in units of one row's code: hundreds when the row is in the page cache
# (docs/scale.md), far more when it isn't.
_ROW_COST = 2000.0
# A text against images: a direction of its own, common to all texts and twice as long as what it says, and noise.
_GAP, _NOISE = 2.0, 0.5

# queries [Q, Co], rows to find, partitions to look at -> rows [Q, F] in the order of their codes' scores
FirstPass = Callable[[NDArray[np.float32], int, int], NDArray[np.int64]]


@dataclass(frozen=True)
class Setting:
    """How to search for `k` images: choose `n_rows` by their codes from `n_probe` partitions, and score them."""

    k: int
    n_rows: int
    n_probe: int

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Setting":
        return cls(int(value["k"]), int(value["n_rows"]), int(value["n_probe"]))


@dataclass(frozen=True)
class _Truth:
    """The exact answers: the k best images' best rows [Q, k], for queries of one kind."""

    queries: NDArray[np.float32]
    rows: NDArray[np.int64]


def choose(
    rows: RowsFile, first_pass: FirstPass, partitions: int, most: int, options: BuildOptions
) -> tuple[tuple[Setting, ...], Recall]:
    """Choose the settings for each of KS (fewer where there are few images), and measure what they reach at the first.

    partitions: P.
    most: how many rows may be chosen by their codes; above, the scan is faster.
    """
    n_images = rows.n_rows // options.n_embeddings
    kinds = recall_queries(rows.n_rows, rows.block, options, max(_N_QUERIES.values()))
    settings, recalls = [], []
    for k in [k for k in KS if 4 * k <= min(n_images, most)] or [max(1, min(KS[0], n_images))]:
        count = _N_QUERIES.get(k, _N_QUERIES[KS[0]])
        truths = [_truth(rows, queries[:count], k, options.n_embeddings) for queries in kinds.values()]
        setting, found = _choose_for(
            k, truths, first_pass, rows.n_rows, partitions, min(most, _MAX_FETCH * k), options.recall
        )
        settings.append(setting)
        held_out = np.concatenate([shares[1::2] for shares in found])
        what = " and ".join(kinds)
        # The least of the kinds' means: what is promised holds for each kind.
        mean = min(float(shares[1::2].mean()) for shares in found)
        recalls.append(Recall(options.recall, mean, float(held_out.min()), k, len(held_out), what))
    return tuple(settings), recalls[0]


def interpolated(settings: tuple[Setting, ...], at: float, by: str, wanted: str) -> int:
    """The value of the field `wanted` where the field `by` is `at`: constant below the first setting, and between two
    of them, and beyond, a power of it; in proportion where there is one setting only."""
    xs, ys = ([float(getattr(setting, name)) for setting in settings] for name in (by, wanted))
    if at <= xs[0]:
        return int(ys[0])
    slope = np.log(ys[1] / ys[0]) / np.log(xs[1] / xs[0]) if len(xs) > 1 and xs[1] > xs[0] else 1.0
    return int(np.ceil(ys[0] * (at / xs[0]) ** max(0.0, slope)))


def aimed_at(asked: float) -> float:
    """The recall that settings have to reach for the queries they are chosen with, for others to find what is asked."""
    return asked + _MARGIN * (1 - asked)


def recall_queries(
    n_rows: int, read: Callable[[int, int], NDArray[np.float32]], options: BuildOptions, count: int
) -> dict[str, NDArray[np.float32]]:
    """Queries of each kind to measure recall with, [Q, Co] each, in a random order; Q is at most `count`.

    read: gives so many rows from a row on, [m, Co].
    """
    rng = np.random.default_rng(_SEED)
    chosen = rng.permutation(sample_rows(n_rows, 2 * count, _SEED))
    own = np.concatenate([read(int(row), 1) for row in chosen[:count]])
    if options.texts is not None:
        picked = rng.permutation(len(options.texts))[:count]
        return {"texts": np.ascontiguousarray(options.texts[picked], dtype=np.float32), "its own embeddings": own}
    said = np.concatenate([read(int(row), 1) for row in chosen[-count:]])
    said = said - said.mean(axis=0)  # what an embedding says, beyond what all of them have in common
    length = np.linalg.norm(said, axis=1, keepdims=True)
    directions = rng.standard_normal((1 + len(said), own.shape[1])).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    texts = said + length * (_GAP * directions[:1] + _NOISE * directions[1:])
    return {"embeddings moved away as texts are": texts.astype(np.float32), "its own embeddings": own}


def _truth(rows: RowsFile, queries: NDArray[np.float32], k: int, n_embeddings: int) -> _Truth:
    """The exact scan: the best rows of the k best images of each query."""
    block = max(1, _BLOCK_ROWS // n_embeddings) * n_embeddings
    best_scores = np.empty((len(queries), 0), np.float32)
    best_rows = np.empty((len(queries), 0), np.int64)
    for start in tqdm(range(0, rows.n_rows, block), f"best {k}, exactly", unit="block", disable=None):
        count = min(block, rows.n_rows - start)
        scores = (queries @ rows.block(start, count).T).reshape(len(queries), -1, n_embeddings)
        which = scores.argmax(axis=2)
        its_rows = start + np.arange(scores.shape[1]) * n_embeddings + which
        best_scores = np.concatenate([best_scores, scores.max(axis=2)], axis=1)
        best_rows = np.concatenate([best_rows, its_rows], axis=1)
        if best_scores.shape[1] > k:
            keep = np.argpartition(-best_scores, k - 1, axis=1)[:, :k]
            best_scores = np.take_along_axis(best_scores, keep, axis=1)
            best_rows = np.take_along_axis(best_rows, keep, axis=1)
    return _Truth(queries, best_rows)


def _choose_for(
    k: int, truths: list[_Truth], first_pass: FirstPass, n_rows: int, partitions: int, most: int, asked: float
) -> tuple[Setting, list[NDArray[np.float64]]]:
    """The cheapest setting that reaches the asked recall for the even queries of each kind; the one that finds most,
    where none does. With it, the share that each query finds, one [Q] for each kind."""
    aim = aimed_at(asked)
    n_fetches = np.unique(np.geomspace(min(2 * k, most), most, 24).astype(np.int64))
    reached: list[tuple[float, Setting, list[NDArray[np.float64]]]] = []
    fallback: list[tuple[float, Setting, list[NDArray[np.float64]]]] = []
    shares_of_partitions = np.unique(np.geomspace(max(1, partitions // 32), partitions, 8).astype(np.int64))
    for n_probe in tqdm(shares_of_partitions.tolist(), f"settings for {k}", unit="setting", disable=None):
        places = [_places(truth, first_pass(truth.queries, most, n_probe)) for truth in truths]  # [Q, k] each
        for n_fetch in n_fetches.tolist():
            found = [(its_places < n_fetch).mean(axis=1) for its_places in places]
            cost = n_rows * n_probe / partitions + _ROW_COST * n_fetch
            setting = Setting(k, n_fetch, n_probe)
            chosen_with = [shares[::2] for shares in found]
            mean, worst = min(s.mean() for s in chosen_with), min(s.min() for s in chosen_with)
            if mean >= aim and worst >= asked - _WORST:
                reached.append((cost, setting, found))
                break
            fallback.append((-mean, setting, found))
    _, setting, found = min(reached or fallback, key=lambda choice: choice[0])
    return setting, found


def _places(truth: _Truth, found: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each of the true rows [Q, k] is among those found [Q, F]: F for one that isn't.

    An image counts as found when its best row is: its score is then exact, and nothing that isn't as good precedes it.
    """
    absent = found.shape[1]
    place_of = np.full(int(max(truth.rows.max(), found.max())) + 1, absent, dtype=np.int64)
    places = np.empty(truth.rows.shape, dtype=np.int64)
    for number, (rows, its_found) in enumerate(zip(truth.rows, found, strict=True)):
        its_found = its_found[its_found >= 0]
        place_of[its_found] = np.arange(len(its_found))
        places[number] = place_of[rows]
        place_of[its_found] = absent
    return places
