"""Two results of one dataset, compared image by image and category by category: is B better than A, and where?

Both come with their rankings (`kept_rankings`), and are resampled together: a resample is the same for A and for B, so
that what is hard for both cancels. A positive difference is one in favour of B.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from for_eval.metrics.bootstrap import Resampler, group_means, resample_counts
from for_eval.metrics.kept_rankings import Rankings
from for_eval.metrics.retrieval import GROUPS
from for_model.errors import UsageError
from for_search.query.ranking import UNRANKED, FloatArray, divide

Over = Literal["images", "categories", "both"]


@dataclass(frozen=True)
class Spread:
    """How a difference varies over resamples, moved by the bootstrap's own bias so that it lies around the difference.

    low, high: its interval.
    share_better: of the resamples, those in which B is better (not those that are equal).
    n_resamples: the resamples behind it; fewer than were asked for when some held no relevant image.
    """

    low: float
    high: float
    share_better: float
    n_resamples: int


@dataclass(frozen=True)
class GroupDifference:
    """How A and B differ on a group of categories.

    n_categories: those with P > 0.
    a, b: mAP@k over these, in 0..1.
    difference: b - a.
    spreads: by what was drawn again; None where no resample held a relevant image.
    """

    n_categories: int
    a: float
    b: float
    difference: float
    spreads: Mapping[Over, Spread | None]


@dataclass(frozen=True)
class CategoryDifference:
    """How A and B differ on one category.

    name, group: of the category.
    n_relevant: P, its relevant images.
    a, b: AP@k, in 0..1.
    difference: b - a.
    spread: how the difference varies with other images; None where no resample held a relevant image.
    """

    name: str
    group: str
    n_relevant: int
    a: float
    b: float
    difference: float
    spread: Spread | None


@dataclass(frozen=True)
class PairedComparison:
    """What comparing two results gives.

    n_images: those that both rank.
    only_a, only_b: how many images only one of them ranks; they are left out.
    groups: base, novel and all; None for one without a category that has a relevant image.
    categories: those with P > 0, from the best for B to the worst, ties by name.
    """

    dataset: str
    split: str
    protocol: str
    k: int
    n_images: int
    only_a: int
    only_b: int
    n_resamples: int
    seed: int
    level: float
    groups: Mapping[str, GroupDifference | None]
    categories: tuple[CategoryDifference, ...]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def compare_results(
    a: Rankings, b: Rankings, n_resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> PairedComparison:
    """The paired bootstrap of mAP@k, over images, over categories, and over both at once.

    Images are drawn as in `bootstrap_interval`, with the same seed the same ones, for A and B alike. Categories are
    drawn with replacement from those of the group with P > 0 in the collection: `rng.integers(n, size=n)`, one call a
    resample, of the same generator, group after group, once the images are drawn. `both` puts the r-th draw of the
    categories on the r-th of the images.
    Images that only one side could read are left out, and counted.
    Raises UsageError for results of different datasets, splits, protocols, depths, categories or labels, without a
    common image, for n_resamples < 1 and for a level outside (0, 1).
    """
    if n_resamples < 1 or not 0 < level < 1:
        raise UsageError(f"got n_resamples={n_resamples}, level={level}; give n_resamples >= 1 and 0 < level < 1")
    _check_same_task(a, b)
    n_a, n_b = len(a.image_ids), len(b.image_ids)
    a, b = _on_common_images(a, b)
    used = np.flatnonzero(a.relevant.any(axis=1))
    resamplers = _resampler(a, used), _resampler(b, used)
    n_images = len(a.image_ids)
    own_a, own_b = (r.average_precision(np.ones((n_images, 1), dtype=np.int32))[:, 0] for r in resamplers)  # [used]
    rng = np.random.default_rng(seed)
    differences = np.hstack(  # [used, R], NaN where P = 0 in a resample
        [
            resamplers[1].average_precision(counts) - resamplers[0].average_precision(counts)
            for counts in resample_counts(rng, n_images, n_resamples)
        ]
    )
    own = own_b - own_a
    groups: dict[str, GroupDifference | None] = {}
    for name in GROUPS:
        members = np.array([name in ("all", a.groups[i]) for i in used], dtype=bool)
        if not members.any():
            groups[name] = None
            continue
        mean_a, mean_b = float(own_a[members].mean()), float(own_b[members].mean())
        spreads = _group_spreads(own[members], differences[members], rng, level)
        groups[name] = GroupDifference(int(members.sum()), mean_a, mean_b, mean_b - mean_a, spreads)
    n_relevant = a.relevant.sum(axis=1)
    categories = [
        CategoryDifference(
            name=a.categories[i],
            group=a.groups[i],
            n_relevant=int(n_relevant[i]),
            a=float(own_a[row]),
            b=float(own_b[row]),
            difference=float(own[row]),
            spread=_spread(differences[row], own[row], level),
        )
        for row, i in enumerate(used)
    ]
    return PairedComparison(
        dataset=a.dataset,
        split=a.split,
        protocol=a.protocol,
        k=a.k,
        n_images=n_images,
        only_a=n_a - n_images,
        only_b=n_b - n_images,
        n_resamples=n_resamples,
        seed=seed,
        level=level,
        groups=groups,
        categories=tuple(sorted(categories, key=lambda c: (-c.difference, c.name))),
    )


def _check_same_task(a: Rankings, b: Rankings) -> None:
    tasks = [f"{r.dataset} {r.split}, protocol {r.protocol}, k = {r.k}" for r in (a, b)]
    if tasks[0] != tasks[1]:
        raise UsageError(f"A is of {tasks[0]}, B of {tasks[1]}: only results of one and the same can be compared")
    if (a.categories, a.groups) != (b.categories, b.groups):
        raise UsageError(
            f"A and B score other categories of {a.dataset} {a.split} ({len(a.categories)} and {len(b.categories)}) "
            "or other groups of them: run both leaderboards on the same annotations"
        )


def _on_common_images(a: Rankings, b: Rankings) -> tuple[Rankings, Rankings]:
    """Both without the images that only one of them ranks, their labels checked to agree."""
    common = set(a.image_ids) & set(b.image_ids)
    if not common:
        raise UsageError(f"A and B rank no common image of {a.dataset} {a.split}: run both leaderboards on one copy")
    a, b = (_only(rankings, common) for rankings in (a, b))
    if not np.array_equal(a.relevant, b.relevant) or not np.array_equal(a.n_known, b.n_known):
        raise UsageError(
            f"A and B were scored with different labels of {a.dataset} {a.split}: "
            "run both leaderboards on the same annotations"
        )
    return a, b


def _only(rankings: Rankings, kept: set[Any]) -> Rankings:
    """Rankings of some of the images: what is left keeps its order, and so is a ranking again, if a shorter one."""
    if len(kept) == len(rankings.image_ids):
        return rankings
    columns = np.array([image_id in kept for image_id in rankings.image_ids], dtype=bool)
    position = np.where(columns, columns.cumsum() - 1, UNRANKED)
    order = np.where(rankings.order == UNRANKED, UNRANKED, position[rankings.order])
    last = np.argsort(order == UNRANKED, axis=1, kind="stable")  # the gaps to the end
    return Rankings(
        dataset=rankings.dataset,
        split=rankings.split,
        protocol=rankings.protocol,
        k=rankings.k,
        categories=rankings.categories,
        groups=rankings.groups,
        image_ids=tuple(image_id for image_id in rankings.image_ids if image_id in kept),
        relevance=rankings.relevance[:, columns],
        known=None if rankings.known is None else rankings.known[:, columns],
        order=np.take_along_axis(order, last, axis=1).astype(np.int32),
    )


def _resampler(rankings: Rankings, used: NDArray[np.intp]) -> Resampler:
    return Resampler(
        rankings.order[used], rankings.relevant[used], rankings.n_known[used], rankings.k, _no_deeper(rankings)
    )


def _no_deeper(rankings: Rankings) -> Callable[[int, int], NDArray[np.int32]]:
    def deeper(position: int, depth: int) -> NDArray[np.int32]:
        raise UsageError(
            f"the stored rankings, {rankings.order.shape[1]} deep, don't fill {rankings.k} ranks of every resample: "
            "choose another --seed, or fewer --resamples"
        )

    return deeper


def _group_spreads(
    own: FloatArray, differences: FloatArray, rng: np.random.Generator, level: float
) -> dict[Over, Spread | None]:
    """How a group's difference varies over resamples of the images, of the categories, and of both.

    own: [C], the differences of the group's categories.
    differences: [C, R], those in resamples of the images; NaN where P = 0.
    rng: draws the categories.
    level: the interval's coverage, between 0 and 1.
    """
    n, n_resamples = differences.shape
    drawn = np.array([np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(n_resamples)]).T  # [C, R]
    exists = ~np.isnan(differences)
    both = divide((drawn * np.where(exists, differences, 0.0)).sum(axis=0), (drawn * exists).sum(axis=0))
    point = float(own.mean())
    return {
        "images": _spread(group_means(np.ones((1, n)), differences)[0], point, level),
        "categories": _spread(own @ drawn / n, point, level),
        "both": _spread(both, point, level),
    }


def _spread(resampled: FloatArray, own: float, level: float) -> Spread | None:
    """[R] differences, NaN where there is none -> how they lie around `own`; None when there is none at all."""
    existing = resampled[~np.isnan(resampled)]
    if len(existing) == 0:
        return None
    centred = existing - (existing.mean() - own)
    low, high = np.quantile(centred, [(1 - level) / 2, (1 + level) / 2])
    return Spread(float(low), float(high), float((centred > 0).mean()), len(existing))
