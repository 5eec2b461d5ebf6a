"""The settings that reach an asked recall: chosen with one half of some queries, measured with the other half.

Everything is computed from the rows, nothing from the clock, so that the same rows give the same settings.
Legend: R rows, N rows an image, M images, Q queries, Co joint width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from for_search.index.compact.codes import Codes, sample_rows
from for_search.index.compact.rows_file import ReadableRows, RowsInMemory, rows_of, values_at
from for_search.index.engine_protocol import BuildOptions, Recall

KS = (50, 1000)  # images asked for that settings are chosen for; between them they are interpolated
_N_QUERIES = {50: 128, 1000: 16}  # of each kind: texts, and the index's own embeddings
_MAX_FETCH = 50  # times k rows are read for settings
_MAX_FIRST = (20_000, 100)  # so many rows, and so many times k, are chosen by their short codes for settings
_BLOCK_ROWS = 1 << 15
_SEED = 1
ALIKE = (0.0, 0.3, 0.5)  # that are tried, see `groups`
_TRY_ABOVE = 1 << 20  # rows; to read the short codes of fewer takes less than a millisecond, and groups save only that
_TRIED_ROWS, _N_TRIED_WITH = 1 << 18, 64  # and so many queries of each kind
_TRIED_FIRST = 16  # at most one of so many groups is chosen by its short code: more would take too long anyhow
# An image whose score is so little below that of the last of the k best, in proportion, is as good as that one; so
# counts ann-benchmarks. A part of an image that is much the same in thousands, as sky is, has them all as its best.
AS_GOOD = 1e-3
_MORE = 2000  # images beyond the k best that are looked at for being as good; where all are, nothing tells them apart
# What is aimed at lies above what is asked, as other queries find a little less than those the settings are chosen
# with: a fifth of the way to 1. No text may fall short of it by more than this; for embeddings of the index, which are
# asked for more rarely, only the mean counts: for the worst one of them all queries would have to look at more rows.
_MARGIN = 0.2
_WORST = 0.09
# A text against images: a direction of its own, common to all texts and twice as long as what it says, and noise.
_GAP, _NOISE = 2.0, 0.5


@dataclass(frozen=True)
class Setting:
    """How to search for `k` images: choose `n_first` groups of rows by their short codes, and `n_rows` of their rows by
    the finer codes of these, and score them."""

    k: int
    n_rows: int
    n_first: int

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Setting":
        return cls(int(value["k"]), int(value["n_rows"]), int(value["n_first"]))


@dataclass(frozen=True)
class _Truth:
    """The exact answers for queries of one kind.

    queries: [Q, Co].
    rows: for each query [T, N], the rows of its T images that are among the k best, or as good; one that isn't as good
        itself is replaced by the best of its image.
    k: so many are asked for.
    """

    queries: NDArray[np.float32]
    rows: list[NDArray[np.int64]]
    k: int


def texts_apart(texts: NDArray[np.float32] | None) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None]:
    """Texts to train codes with, and others to choose settings with and to measure: half of them or 128."""
    if texts is None:
        return None, None
    mixed = np.random.default_rng(_SEED).permutation(len(texts))
    count = min(max(_N_QUERIES.values()), (len(texts) + 1) // 2)
    to_train, to_choose = (np.ascontiguousarray(texts[part], np.float32) for part in (mixed[count:], mixed[:count]))
    return to_train, to_choose


def choose(rows: ReadableRows, codes: Codes, most: int, options: BuildOptions) -> tuple[tuple[Setting, ...], Recall]:
    """Choose the settings for each of KS (fewer where there are few images), and measure what they reach at the first.

    most: how many rows may be read; above, the scan is faster.
    """
    n_images = rows.n_rows // options.n_embeddings
    kinds = recall_queries(rows.n_rows, rows.block, options, max(_N_QUERIES.values()))
    ks = [k for k in KS if 4 * k <= min(n_images, most)] or [max(1, min(KS[0], n_images))]
    counts = [_N_QUERIES.get(k, _N_QUERIES[KS[0]]) for k in ks]
    truths = _truths(rows, [(q[:n], k) for k, n in zip(ks, counts, strict=True) for q in kinds.values()], options)
    settings, recalls = [], []
    for number, k in enumerate(ks):
        of_k = truths[number * len(kinds) : (number + 1) * len(kinds)]
        of_rows, of_groups = min(most, _MAX_FETCH * k), min(codes.n_groups // 4, _MAX_FIRST[0] + _MAX_FIRST[1] * k)
        _, setting, found = _choose_for(k, of_k, codes, of_rows, max(of_rows, of_groups), options.recall)
        settings.append(setting)
        held_out = np.concatenate([shares[1::2] for shares in found])
        what = " and ".join(kinds)
        # The least of the kinds' means: what is promised holds for each kind.
        mean = min(float(shares[1::2].mean()) for shares in found)
        recalls.append(Recall(options.recall, mean, float(held_out.min()), k, len(held_out), what))
    return tuple(settings), recalls[0]


def alike_to_take(rows: ReadableRows, texts: NDArray[np.float32] | None, most_in: int, options: BuildOptions) -> float:
    """With which groups of rows a search takes the least time (see `groups`): tried with some of the images.

    texts: [T, Co], to make codes with, or None.
    most_in: one of so many rows may be read; with more, the scan is faster.

    As many of the best images are asked for as there would be of these among the best KS[0] of all: scores of the same
    height, which as large a share of groups reach.
    """
    N = options.n_embeddings
    n_images = rows.n_rows // N
    if N == 1 or rows.n_rows < _TRY_ABOVE:
        return 0.0
    images = sample_rows(n_images, max(1, _TRIED_ROWS // N), _SEED)
    some = RowsInMemory(rows.at(rows_of(images, N).reshape(-1)).view("<f2"))
    k = max(1, min(KS[0] * len(images) // n_images, len(images) // 4))
    kinds = recall_queries(some.n_rows, some.block, options, _N_TRIED_WITH)
    truths = _truths(some, [(queries, k) for queries in kinds.values()], options)
    times = []
    for alike in ALIKE:
        codes = Codes.train(some, texts, N, alike)
        codes.encode(some, alike, lambda _: None, f"try codes, {alike:g} alike")
        most = max(1, min(some.n_rows // most_in, _MAX_FETCH * k))
        most_first = max(most, codes.n_groups // _TRIED_FIRST)
        times.append(_choose_for(k, truths, codes, most, most_first, options.recall, below=1)[0])
    return ALIKE[times.index(min(times))]


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
    _, texts = texts_apart(options.texts())
    if texts is not None and len(texts):
        return {"texts": texts[:count], "its own embeddings": own}
    said = np.concatenate([read(int(row), 1) for row in chosen[-count:]])
    said = said - said.mean(axis=0)  # what an embedding says, beyond what all of them have in common
    length = np.linalg.norm(said, axis=1, keepdims=True)
    directions = rng.standard_normal((1 + len(said), own.shape[1])).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    moved = said + length * (_GAP * directions[:1] + _NOISE * directions[1:])
    return {"embeddings moved away as texts are": moved.astype(np.float32), "its own embeddings": own}


def _truths(rows: ReadableRows, asked: list[tuple[NDArray[np.float32], int]], options: BuildOptions) -> list[_Truth]:
    """The exact scan, for queries and a k each. Every row is read once.

    Queries of which more images are as good as the best than are looked at are left out, while two others remain.
    """
    N = options.n_embeddings
    block = max(1, _BLOCK_ROWS // N) * N
    best = [(np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)) for queries, _ in asked]
    for start in tqdm(range(0, rows.n_rows, block), "exact answers", unit="block", disable=None):
        values = rows.block(start, min(block, rows.n_rows - start))
        for number, (queries, k) in enumerate(asked):
            best[number] = _merged(best[number], queries, k + _MORE, values, start, N)
    truths = []
    for (queries, k), (scores, its_rows) in zip(asked, best, strict=True):
        last = -np.partition(-scores, k - 1, axis=1)[:, k - 1]  # of the k best
        least = last - AS_GOOD * np.abs(last)
        good = scores >= least[:, None]
        told = np.flatnonzero(~good.all(axis=1))
        if good.shape[1] < k + _MORE or len(told) < 2:
            told = np.arange(len(queries))
        of_images = [_as_good(rows, queries[i], its_rows[i, good[i]], float(least[i]), N) for i in told]
        truths.append(_Truth(queries[told], of_images, k))
    return truths


def _as_good(
    rows: ReadableRows, query: NDArray[np.float32], best: NDArray[np.int64], least: float, n_embeddings: int
) -> NDArray[np.int64]:
    """The rows of the images [T] whose best rows are given that score at least so much, [T, N], filled with `best`."""
    best = np.sort(best)
    of_images = rows_of(best // n_embeddings, n_embeddings)
    at_once = max(1, _BLOCK_ROWS // n_embeddings)
    for some, its_best in ((of_images[i : i + at_once], best[i : i + at_once]) for i in range(0, len(best), at_once)):
        scores = values_at(rows, some.reshape(-1)) @ query
        some[:] = np.where(scores.reshape(some.shape) >= least, some, its_best[:, None])
    return of_images


def _merged(
    best: tuple[NDArray[np.float32], NDArray[np.int64]],
    queries: NDArray[np.float32],
    k: int,
    values: NDArray[np.float32],
    start: int,
    n_embeddings: int,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The scores and rows of the k best images, [Q, k] each, of those so far and of the rows `values` from `start`."""
    scores = (queries @ values.T).reshape(len(queries), -1, n_embeddings)
    which = scores.argmax(axis=2)
    its_rows = start + np.arange(scores.shape[1]) * n_embeddings + which
    all_scores = np.concatenate([best[0], scores.max(axis=2)], axis=1)
    all_rows = np.concatenate([best[1], its_rows], axis=1)
    if all_scores.shape[1] <= k:
        return all_scores, all_rows
    keep = np.argpartition(-all_scores, k - 1, axis=1)[:, :k]
    return np.take_along_axis(all_scores, keep, axis=1), np.take_along_axis(all_rows, keep, axis=1)


def _choose_for(
    k: int, truths: list[_Truth], codes: Codes, most: int, most_first: int, asked: float, below: float = _WORST
) -> tuple[tuple[int, float], Setting, list[NDArray[np.float64]]]:
    """The fastest setting that reaches the asked recall for the even queries of each kind, with none of the first kind
    more than `below` that; the fastest that reaches it, where some always are; the one that finds most, where none
    does. Before it, which of these it is and about how long it takes, and after it, the share that each query finds,
    one [Q] for each kind. most, most_first: at most so many rows are read, and groups chosen by their short codes."""
    aim, most_first = aimed_at(asked), min(codes.n_groups, most_first)
    places = [_places(truth, codes, most_first, codes.n_second(most_first, most)) for truth in truths]
    choices: list[tuple[tuple[int, float], Setting, list[NDArray[np.float64]]]] = []
    for n_first in np.unique(np.geomspace(min(2 * k, most_first), most_first, 40).astype(np.int64)).tolist():
        largest = min(most, n_first)
        for n_rows in np.unique(np.geomspace(min(2 * k, largest), largest, 40).astype(np.int64)).tolist():
            most_of = np.array([n_first, codes.n_second(n_first, n_rows), n_rows])[:, None, None]
            found = [(of_kind < most_of).all(axis=0).sum(axis=1).clip(max=k) / k for of_kind in places]
            chosen_with = [shares[::2] for shares in found]
            mean, worst = min(s.mean() for s in chosen_with), chosen_with[0].min()
            rank = 2 if mean < aim else 1 if worst < asked - below else 0
            cost = codes.nanoseconds(n_first, n_rows) if rank < 2 else -mean
            choices.append(((rank, cost), Setting(k, n_rows, n_first), found))
            if not rank:
                break
    return min(choices, key=lambda choice: choice[0])


def _places(truth: _Truth, codes: Codes, most_first: int, most_second: int) -> NDArray[np.int64]:
    """Where the groups of the true images' rows are by the short codes, and by their finer codes, and where the rows
    are by theirs, [3, Q, T]; what isn't among so many is at their end, what isn't there at all beyond.

    An image counts as found when one of its rows is that is as good: its score is then exact, and nothing that isn't as
    good precedes it. Of these rows, the one that the finer codes put first is taken. Among fewer groups, and among the
    rows of fewer, a place is the same or better.
    """
    places = np.full((3, len(truth.queries), max(map(len, truth.rows))), np.iinfo(np.int64).max)
    for number, (query, rows) in enumerate(zip(truth.queries, truth.rows, strict=True)):
        groups = codes.group_of(rows.reshape(-1)).reshape(rows.shape)
        found = codes.by_short_codes(query[None], most_first)[0]
        if found.min() < 0:  # so many groups have equal codes that these choose nothing
            continue
        second = codes.by_group_codes(query, found)[:most_second]
        fine = _places_among(codes.by_row_codes(query, np.sort(second)), rows)
        first_of_image = np.arange(len(rows)), fine.argmin(axis=1)
        its_groups = groups[first_of_image]
        of_images = [_places_among(found, its_groups), _places_among(second, its_groups), fine[first_of_image]]
        places[:, number, : len(rows)] = of_images
    return places


def _places_among(found: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The place of each of some rows, or groups, among those found [F]; F for one that isn't there."""
    order = np.argsort(found)
    places = np.searchsorted(found, rows, sorter=order).clip(max=len(found) - 1)
    return np.where(found[order[places]] == rows, order[places], len(found))
