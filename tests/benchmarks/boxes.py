"""Boxes over sketches: a scan of the columns, in numpy and compiled, beside k-d trees over subsets of the columns.

  python -m tests.benchmarks.boxes                          # 1 million embeddings
  python -m tests.benchmarks.boxes --millions 10 --trees 4
  python -m tests.benchmarks.boxes --millions 50 --trees 0  # 1.6 GB of sketches

Prints, for decision branches learnt from 5, 20 and 60 right images, the milliseconds until it is known how many members
hold each of the embeddings, by all threads, and the CPU milliseconds; for the trees, the CPU milliseconds of one box.
With --check it ends with an error where the compiled scan of 10 million takes more than 300 ms.

The embeddings are those of `tests.benchmarks.scale`, 256 wide, of which a million are made; more are the same ones with
other values in their three lowest bits. A tree halves its points at the median of the column that varies most until a
leaf has 512; a query compares the leaves' bounds with the box, and the points of those that it may cut. It keeps its
own copy of its columns and 4 bytes a point for whose they are, and serves boxes on these columns only.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from for_search.index.sketches.box_scan import BoxBounds, box_bounds, count_members
from for_search.index.sketches.sketch_encoder import SketchEncoder, principal_encoder
from for_search.index.sketches.sketch_files import Sketches
from for_search.refine.catalogue_sample import catalogue_sample
from for_search.refine.feedback import Examples, Mark
from for_search.refine.learners.branches import BranchesRefiner, SketchScorer
from tests.benchmarks.scale import World

DIM, N_EMBEDDINGS, LEAF, BLOCK = 256, 8, 512, 1 << 16
RIGHT, REPEATS, TARGET_MS = (5, 20, 60), 3, 300
Bytes = NDArray[np.uint8]


def make_points(encoder: SketchEncoder, world: World, millions: int) -> Iterator[Bytes]:
    """Blocks of sketches, [D, m] each."""
    rng = np.random.default_rng(0)
    made = [encoder.sketches(world.images(n, 1250, N_EMBEDDINGS).reshape(-1, DIM)) for n in range(100)]
    for million in range(millions):
        values = np.concatenate(made)
        if million:
            values ^= rng.integers(0, 8, values.shape, dtype=np.uint8)
        for start in range(0, len(values), BLOCK):
            yield np.ascontiguousarray(values[start : start + BLOCK].T)


def learn(encoder: SketchEncoder, world: World, n_right: int, seed: int) -> BoxBounds:
    """The boxes of branches that are grown from a text's best images, and twice as many others as wrong ones."""
    images = world.images(10**6, 4000, N_EMBEDDINGS)
    sketches = Sketches(encoder, (), np.empty(0, np.int64), N_EMBEDDINGS, 0)
    sample = catalogue_sample(world.images(10**6 + 1, 512, N_EMBEDDINGS), lambda: sketches)
    text = world.texts(10, 0)[seed]
    scores = images @ text
    order = np.argsort(-scores.max(axis=1))
    right = tuple(images[i][scores[i].argmax()][None] for i in order[:n_right])
    wrong = images[order[n_right + 50 : 3 * n_right + 50]]
    marks = (
        tuple(Mark(i, True, None) for i in range(n_right)),
        tuple(Mark(-1 - i, False, None) for i in range(len(wrong))),
    )
    scorer = BranchesRefiner().fit(text, Examples(right, tuple(wrong), *marks, ()), sample)
    assert isinstance(scorer, SketchScorer)
    return scorer.bounds


@dataclass(frozen=True, eq=False)
class Tree:
    """A k-d tree's leaves: the points [d, L, LEAF], which they are [L * LEAF], and each leaf's bounds [d, L]."""

    points: Bytes
    order: NDArray[np.int32]
    low: Bytes
    high: Bytes

    @classmethod
    def build(cls, columns: Bytes) -> "Tree":
        """Of points [d, R]."""
        points, order = np.ascontiguousarray(columns.T), np.arange(columns.shape[1], dtype=np.int32)
        todo = [(0, len(points))]
        while todo:
            start, end = todo.pop()
            if end - start <= LEAF:
                continue
            some = points[start : end : max(1, (end - start) // 10_000)].astype(np.float32)
            half = (-(-(end - start) // LEAF) // 2) * LEAF
            chosen = np.argpartition(points[start:end, some.var(axis=0).argmax()], half)
            points[start:end], order[start:end] = points[start:end][chosen], order[start:end][chosen]
            todo += [(start, start + half), (start + half, end)]
        missing = -len(points) % LEAF  # the last leaf is filled with its last point
        padded = np.concatenate([points, np.repeat(points[-1:], missing, axis=0)]).T
        leaves = np.ascontiguousarray(padded).reshape(len(columns), -1, LEAF)
        return cls(leaves, order, leaves.min(axis=2), leaves.max(axis=2))

    def held(self, low: Bytes, width: Bytes) -> NDArray[np.int32]:
        """The points in a box."""
        high = low + width
        leaves = np.flatnonzero(((self.low <= high[:, None]) & (self.high >= low[:, None])).all(axis=0))
        found = []
        for part in np.array_split(leaves, max(1, len(leaves) // 128)):
            inside = (self.points[0][part] - low[0]) <= width[0]
            for column in range(1, len(low)):
                inside &= (self.points[column][part] - low[column]) <= width[column]
            leaf, place = np.nonzero(inside)
            rows = part[leaf] * LEAF + place
            found.append(self.order[rows[rows < len(self.order)]])
        return np.concatenate(found)

    @property
    def n_bytes(self) -> int:
        return self.points.nbytes + self.order.nbytes + self.low.nbytes + self.high.nbytes


def timed(call: Callable[[], object], repeats: int = REPEATS) -> tuple[float, float]:
    """Milliseconds, and CPU milliseconds, the median of each."""
    walls, cpus = [], []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        walls.append(1e3 * (time.perf_counter() - wall))
        cpus.append(1e3 * (time.process_time() - cpu))
    return statistics.median(walls), statistics.median(cpus)


def measure_scans(blocks: list[Bytes], boxes: dict[int, BoxBounds]) -> float:
    """Prints them; the compiled scan's milliseconds with the most boxes, or numpy's where there is none."""
    last = 0.0
    for n_right, bounds in boxes.items():
        for name, compiled in (("numpy", False), ("numba", True)):
            try:
                count_members(blocks[:1], bounds, compiled)
            except ImportError:
                print("numba isn't installed: make install-compiled")
                continue
            wall, cpu = timed(lambda bounds=bounds, compiled=compiled: count_members(blocks, bounds, compiled))
            print(
                f"{n_right:4d} right, {len(bounds.member):4d} boxes, {name}: {wall:7.0f} ms, {cpu:7.0f} ms of CPU",
                flush=True,
            )
            last = wall
    return last


def measure_trees(blocks: list[Bytes], bounds: BoxBounds, count: int) -> None:
    """Of some boxes, spread over all: a tree over the columns of each, beside the scan for that box alone."""
    for box in np.linspace(0, len(bounds.member) - 1, count).astype(int).tolist():
        own = slice(bounds.first[box], bounds.first[box + 1])
        columns, low, width = bounds.column[own], bounds.low[own], bounds.width[own]
        started = time.process_time()
        tree = Tree.build(np.concatenate([block[columns] for block in blocks], axis=1))
        build = time.process_time() - started
        found = tree.held(low, width)
        one = box_bounds([[(columns, low.astype(float), (low + width).astype(float))]])
        counts = np.concatenate(count_members(blocks, one))
        assert np.array_equal(np.sort(found), np.flatnonzero(counts)), "the tree and the scan differ"
        _, by_tree = timed(lambda tree=tree, low=low, width=width: tree.held(low, width))
        print(
            f"a box of {len(columns)} columns that holds {100 * len(found) / len(tree.order):.3f}%: tree "
            f"{by_tree:.1f} ms of CPU, numpy {timed(lambda one=one: count_members(blocks, one, False))[1]:.1f}; "
            f"built in {build:.1f} s of CPU, {tree.n_bytes / len(tree.order):.0f} bytes a point",
            flush=True,
        )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=int, default=1, help="of embeddings (default 1)")
    parser.add_argument("--trees", type=int, default=4, help="of how many boxes trees are built (default 4)")
    parser.add_argument("--check", action="store_true", help=f"end with an error above {TARGET_MS} ms")
    arguments = parser.parse_args(argv)
    world = World(DIM)
    encoder = principal_encoder(world.images(10**6 + 1, 512, N_EMBEDDINGS).reshape(-1, DIM), ("made", "0" * 64, DIM))
    boxes = {n_right: learn(encoder, world, n_right, seed) for seed, n_right in enumerate(RIGHT)}
    blocks = list(make_points(encoder, world, arguments.millions))
    total = sum(block.shape[1] for block in blocks)
    print(f"{total:,} embeddings, {sum(block.nbytes for block in blocks) / total:.0f} bytes each", flush=True)
    slowest = measure_scans(blocks, boxes)
    if arguments.trees:
        measure_trees(blocks, boxes[RIGHT[1]], arguments.trees)
    return int(arguments.check and slowest > TARGET_MS)


if __name__ == "__main__":
    sys.exit(main())
