"""What finds the rows to score: the compact engine's codes beside others of FAISS.

  python -m tests.benchmarks.first_pass                  # 2,000 images of 50 x 512: 100,000 rows
  python -m tests.benchmarks.first_pass --images 20000

For each, the share of the best 50 images whose best row is among the F rows that it puts first: what remains once these
are scored exactly. FAISS's take 64 bytes a row; ours 20, and 80 of the rows that those choose, or as many of a group of
rows that are alike, and 48 of its rows. One thread, the median of the queries one by one, in milliseconds of its
processor. Whole engines are compared by `rivals`.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from for_search.index.compact.codes import Codes
from for_search.index.compact.rows_file import RowsFile
from for_search.index.engine_protocol import BuildOptions
from for_search.index.flat_engine import FlatEngine
from tests.benchmarks.scale import N_TEXTS, World

K, FETCHES = 50, (250, 500, 1000, 2000)
DIM, N_EMBEDDINGS, N_QUERIES = 512, 50, 60
N_FIRST = (2000, 5000)
Search = Callable[[NDArray[np.float32], int], NDArray[np.int64]]  # queries [Q, Co], F -> rows [Q, F]


def codes_alone(
    rows: RowsFile, values: NDArray[np.float32], texts: NDArray[np.float32]
) -> Iterable[tuple[str, Search]]:
    """Codes of 64 bytes a row, then those of the compact engine, made with texts and without."""
    for factory, title in (
        ("PQ128x4fs", "product quantisation alone"),
        ("PCAR256,PQ128x4fs", "after FAISS's PCA, which shifts queries too"),
        ("RaBitQfs", "RaBitQ"),
    ):
        yield f"{title} ({factory})", searching(trained(factory, values))
    for given, title in ((None, "made without texts"), (texts, "made with texts")):
        for alike in (0.0, 0.5):
            ours = Codes.train(rows, given, N_EMBEDDINGS, alike)
            ours.encode(rows, alike, lambda _: None)
            what = f"{ours.n_rows / ours.n_groups:.1f} rows a group" if alike else "no groups"
            if not alike:
                yield f"ours, {what}, the first code, {title}", ours.by_short_codes
            for n_first in N_FIRST:
                yield f"ours, {what}, {n_first} by the first code, {title}", chosen_by_all(ours, n_first)


def chosen_by_all(codes: Codes, n_first: int) -> Search:
    def search(queries: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        found = codes.best(queries, n_first, min(n_first, count))
        assert found is not None, "the codes of these rows differ"
        return found

    return search


def trained(factory: str, values: NDArray[np.float32]) -> faiss.Index:
    index = faiss.index_factory(values.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    index.train(values[:: max(1, len(values) // (1 << 15))])
    index.add(values)
    return index


def searching(index: faiss.Index) -> Search:
    return lambda queries, count: index.search(queries, count)[1]


def measure(search: Search, queries: NDArray[np.float32], best: list[set[int]], count: int) -> tuple[float, float]:
    """The recall and the milliseconds a query."""
    shares, seconds = [], []
    for query, rows in zip(queries, best, strict=True):
        started = time.thread_time()
        found = search(query[None], count)[0]
        seconds.append(time.thread_time() - started)
        shares.append(len(rows & set(found.tolist())) / len(rows))
    return float(np.mean(shares)), 1e3 * statistics.median(seconds)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    arguments = parser.parse_args(argv)
    faiss.omp_set_num_threads(1)
    world = World(DIM)
    starts = range(0, arguments.images, 1000)
    parts = [world.images(n, min(1000, arguments.images - start), N_EMBEDDINGS) for n, start in enumerate(starts)]
    halves = np.concatenate(parts).astype(np.float16).reshape(-1, DIM)
    values = halves.astype(np.float32)
    queries = world.texts(N_QUERIES, seed=0)
    scores = (queries @ values.T).reshape(N_QUERIES, -1, N_EMBEDDINGS)
    images = np.argsort(-scores.max(axis=2), axis=1)[:, :K]
    rows_of = images * N_EMBEDDINGS + np.take_along_axis(scores.argmax(axis=2), images, axis=1)
    best = [set(rows.tolist()) for rows in rows_of]
    with tempfile.TemporaryDirectory() as folder:
        FlatEngine.build([halves], len(halves), DIM, Path(folder), BuildOptions())
        rows = RowsFile(Path(folder) / FlatEngine.file_names[0], len(halves), DIM)
        print(f"{'F':66}" + "".join(f"{count:>16}" for count in FETCHES))
        for title, search in codes_alone(rows, values, world.texts(N_TEXTS, seed=1)):
            measured = [measure(search, queries, best, count) for count in FETCHES]
            print(f"{title:66}" + "".join(f"{recall:8.4f} {ms:4.1f} ms" for recall, ms in measured), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
