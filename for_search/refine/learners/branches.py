"""Decision branches: a union of boxes on few dimensions, grown from what is right (CLIP-Branches, Lülf et al. 2024).

The dimensions are the numbers of the index's sketches where it has any, so that the whole index is asked by a scan of
these; else the catalogue's first 32 principal axes, scaled to unit variance. A box bounds a few of them, drawn
at random, and so is a range query. It is grown from a right part: the nearest right part that it doesn't hold is taken
in as long as the weighted Gini impurity of inside and outside falls; its sides are then moved half way to the nearest
example outside. The best box of several draws is kept, the right parts in it are done with, and so on until all are. An
ensemble of such unions, each of a bootstrap sample, is averaged. Boxes give few different scores; the text orders the
images of one score, by less than a box counts.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from for_search.index.sketches.box_scan import BoxBounds, box_bounds, count_members
from for_search.index.sketches.sketch_files import Sketches
from for_search.refine.catalogue_sample import CatalogueSample
from for_search.refine.feedback import Examples
from for_search.refine.learners.refiner_protocol import LinearScorer, best_parts

_AXES = 32
_DIMENSIONS = (4, 6, 8)
_DRAWS = 6  # subsets of dimensions that are tried for a box
_MEMBERS = 25
_MAX_BOXES = 30  # of a member
_SAMPLE = 500  # embeddings of the catalogue, as wrong
_SAMPLE_WEIGHT = 0.5  # of the whole sample, in marks of each mark
_SEED = 0
_BLOCK = 8192  # rows scored at once
_ROUNDING = 1e-4  # of a point: its numbers end a little differently among other rows


@dataclass(frozen=True, eq=False)
class Box:
    """Bounds on some axes: what lies within all of them is inside."""

    axes: NDArray[np.intp]
    low: NDArray[np.float32]
    high: NDArray[np.float32]

    def holds(self, points: NDArray[np.float32]) -> NDArray[np.bool_]:
        """[R, axes] -> [R], whether each lies inside."""
        chosen = points[:, self.axes]
        return np.asarray(((chosen >= self.low) & (chosen <= self.high)).all(axis=1))


@dataclass(frozen=True, eq=False)
class BranchesScorer:
    """The share of the ensemble's members one of whose boxes holds an embedding, ties ordered by the text.

    members: each a union of boxes.
    mean, axes: [Co] and [Co, axes], into the coordinates of the boxes.
    text: [Co] float32, whose inner products, in -1..1, order ties; None for no order.
    """

    members: tuple[tuple[Box, ...], ...]
    mean: NDArray[np.float32]
    axes: NDArray[np.float32]
    text: NDArray[np.float32] | None

    def score(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        scores = np.zeros(len(rows), np.float32)
        for start in range(0, len(rows), _BLOCK):
            part = rows[start : start + _BLOCK]
            points = (part - self.mean) @ self.axes
            hits = np.zeros(len(part), np.float32)
            for boxes in self.members:
                hits += np.any([box.holds(points) for box in boxes], axis=0)
            scores[start : start + _BLOCK] = hits / len(self.members)
            if self.text is not None:
                scores[start : start + _BLOCK] += (part @ self.text) / (2 * len(self.members))
        return scores


@dataclass(frozen=True, eq=False)
class SketchScorer:
    """The same score by the sketches of an index: boxes bound their numbers, and a sketch's own score is the text's.

    members: each a union of boxes.
    sketches: of the index.
    text: as in `BranchesScorer`.
    """

    members: tuple[tuple[Box, ...], ...]
    sketches: Sketches
    text: NDArray[np.float32] | None

    @cached_property
    def bounds(self) -> BoxBounds:
        return box_bounds([(box.axes, box.low, box.high) for box in boxes] for boxes in self.members)

    @cached_property
    def counts(self) -> NDArray[np.uint8]:
        """How many members hold each row of the index: the scan, made once."""
        return self.sketches.counts(self.bounds)

    def score(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        levels = self.sketches.encoder.sketches(rows)
        [counts] = count_members([np.ascontiguousarray(levels.T)], self.bounds)
        return self._scores(levels, counts)

    def images(self, least: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Places [F] and scores [F] of the images of which `least` members hold an embedding, by ascending place."""
        places, scores = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
        for images, levels, counts in self.sketches.held(self.counts, least):
            found = self._scores(levels, counts)
            order = np.lexsort((-found, images))
            order = order[np.append(True, np.diff(images[order]) > 0)] if len(order) else order
            places.append(images[order])
            scores.append(found[order])
        all_places, all_scores = np.concatenate(places), np.concatenate(scores)
        order = np.lexsort((-all_scores, all_places))  # an image's rows may lie in two blocks
        all_places, first = np.unique(all_places[order], return_index=True)
        return all_places, all_scores[order][first]

    def least(self, score: float) -> int:
        """How many members hold an embedding at least whose score is this or more."""
        return max(0, int(np.ceil(score * len(self.members) - 0.5 - 1e-4)))

    def enough(self, n_images: int) -> int:
        """A number of members so that so many images are held by as many: the largest one, or 1 if there is none."""
        rows = np.cumsum(np.bincount(self.counts, minlength=2)[::-1])[::-1]  # held by as many members or more
        reached = np.flatnonzero(rows >= n_images * self.sketches.n_embeddings)
        return max(1, int(reached[-1]) if len(reached) else 1)

    def _scores(self, levels: NDArray[np.uint8], counts: NDArray[np.uint8]) -> NDArray[np.float32]:
        scores = counts.astype(np.float32) / len(self.members)
        if self.text is not None:
            said = np.clip(self.sketches.encoder.scores(levels, self.text), -1, 1)
            scores += said / np.float32(2 * len(self.members))
        return scores


class BranchesRefiner:
    """An ensemble of decision branches."""

    name: ClassVar[str] = "branches"
    title: ClassVar[str] = "Decision branches"

    def fit(
        self, text: NDArray[np.float32] | None, examples: Examples, sample: CatalogueSample
    ) -> BranchesScorer | SketchScorer | LinearScorer:
        dim = len(sample.mean)
        guide = text if text is not None else np.concatenate(examples.right or (sample.mean[None],)).mean(axis=0)
        if not examples.right:  # a box is grown from something right
            return LinearScorer(guide)
        sketches = sample.sketches()
        count = min(_AXES, dim)
        axes = sample.axes[:, :count] / np.sqrt(sample.variances[:count] + np.float32(1e-12))

        def points(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
            if sketches is None:
                return np.asarray((embeddings - sample.mean) @ axes)
            return sketches.encoder.sketches(embeddings).astype(np.float32)

        right = points(best_parts(examples.right, LinearScorer(guide), dim))
        rows = sample.images.reshape(-1, dim)
        some = rows[:: max(1, len(rows) // _SAMPLE)][:_SAMPLE]
        wrong = points(np.concatenate([*examples.wrong, some]))
        n_parts = len(wrong) - len(some)
        weights = np.full(len(wrong), _SAMPLE_WEIGHT * (len(right) + len(examples.wrong)) / len(some), np.float32)
        # a wrong image counts once, whatever its parts
        weights[:n_parts] = [1 / len(parts) for parts in examples.wrong for _ in parts]
        generator = np.random.default_rng(_SEED)
        members = []
        for member in range(_MEMBERS):
            drawn = generator.integers(len(right), size=len(right)) if member else np.arange(len(right))
            members.append(_grow_union(right[np.unique(drawn)], wrong, weights, generator))
        if sketches is not None:
            return SketchScorer(tuple(members), sketches, text)
        return BranchesScorer(tuple(members), sample.mean, axes, text)


def _grow_union(
    right: NDArray[np.float32],
    wrong: NDArray[np.float32],
    weights: NDArray[np.float32],
    generator: np.random.Generator,
) -> tuple[Box, ...]:
    """Boxes that together hold all right points, [P, axes]; `weights` of the wrong ones, [Q, axes]."""
    boxes: list[Box] = []
    left = np.ones(len(right), bool)
    while left.any() and len(boxes) < _MAX_BOXES:
        seed = right[generator.choice(np.flatnonzero(left))]
        grown = []
        for _ in range(_DRAWS):
            size = min(int(generator.choice(_DIMENSIONS)), right.shape[1])
            axes = generator.choice(right.shape[1], size, replace=False)
            grown.append(_grow(seed[axes], right[left][:, axes], wrong[:, axes], weights, axes))
        box = min(grown, key=lambda each: each[1])[0]
        boxes.append(box)
        left &= ~box.holds(right)
    return tuple(boxes)


def _grow(
    seed: NDArray[np.float32],
    right: NDArray[np.float32],
    wrong: NDArray[np.float32],
    weights: NDArray[np.float32],
    axes: NDArray[np.intp],
) -> tuple[Box, float]:
    """A box grown from a seed, in its own axes, and its impurity."""
    low = high = seed
    impurity = _impurity(low, high, right, wrong, weights)
    for point in right[np.argsort(np.abs(right - seed).max(axis=1), kind="stable")]:
        wider = np.minimum(low, point), np.maximum(high, point)
        if (wider[0] == low).all() and (wider[1] == high).all():
            continue
        found = _impurity(*wider, right, wrong, weights)
        if found > impurity:
            break
        (low, high), impurity = wider, found
    others = np.concatenate([right, wrong])
    below = np.where(others < low, others, -np.inf).max(axis=0)  # the nearest example beyond each side
    above = np.where(others > high, others, np.inf).min(axis=0)
    low = np.where(np.isfinite(below), (low + below) / 2, low - _ROUNDING)
    high = np.where(np.isfinite(above), (high + above) / 2, high + _ROUNDING)
    return Box(axes, low.astype(np.float32), high.astype(np.float32)), impurity


def _impurity(
    low: NDArray[np.float32],
    high: NDArray[np.float32],
    right: NDArray[np.float32],
    wrong: NDArray[np.float32],
    weights: NDArray[np.float32],
) -> float:
    """The weighted Gini impurity of inside and outside; 0 where both hold one class only."""
    right_in = float(((right >= low) & (right <= high)).all(axis=1).sum())
    wrong_in = float(weights[((wrong >= low) & (wrong <= high)).all(axis=1)].sum())
    right_out, wrong_out = len(right) - right_in, float(weights.sum()) - wrong_in
    return sum(2 * p * q / (p + q) for p, q in ((right_in, wrong_in), (right_out, wrong_out)) if p + q > 0)
