"""Whole answers beside the search for a text: all images of a score or more, of a linear concept and by similarity.

  python -m tests.benchmarks.whole_answers                                    # 40,000 images of 8 x 256, compact
  python -m tests.benchmarks.whole_answers --engine flat
  python -m tests.benchmarks.whole_answers --images 20000 --embeddings 50 --dim 512

For answers of several sizes: CPU milliseconds, the median over the queries, also in searches for the best 50 images,
which are timed by turns with them, and the share of the scan's answer that is found. At the end what the scan takes.
What is learnt by `similarity` is so from the ten best images of a query as right, and ten of the best 50 as wrong. The
data are those of `tests.benchmarks.scale`. `--expected` is how far off the guess of an answer's size is that comes
from a sample: 1 for one that is right.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from for_search.index.index import SearchIndex
from for_search.index.index_files import build_index
from for_search.refine.answer import refine_index
from for_search.refine.catalogue_sample import sample_catalogue
from for_search.refine.feedback import Feedback, Mark
from tests.benchmarks.scale import World, make_store

SIZES, K = (20, 50, 200, 1000, 5000), 50
MARKED, LEARNT = 10, 5  # images that are marked right, and as many wrong; queries that are learnt from


def by_similarity(index: SearchIndex, queries: NDArray[np.float32], sizes: Sequence[int]) -> Iterator[str]:
    """A line for each size, as for linear concepts."""
    sample = sample_catalogue(index)
    learnt, scores = [], []
    for query in queries:
        best = [hit.image.id for hit in index.search(query[None], K)[0]]
        wrong = best[MARKED :: (K - MARKED) // MARKED][:MARKED]
        marks = [*(Mark(image, True) for image in best[:MARKED]), *(Mark(image, False) for image in wrong)]
        learnt.append(refine_index(index, query, Feedback(tuple(marks)), "similarity", sample))
        scores.append(learnt[-1].scores())
    for size in sizes:
        searches, answers, shares, led = [], [], [], 0
        for query, each, own in zip(queries, learnt, scores, strict=True):
            bound = float(np.partition(own, -size)[-size]) - 1e-6
            searches.append(cpu_ms(lambda query=query: index.search(query[None], K)))
            answers.append(cpu_ms(lambda each=each, bound=bound: each.at_least(bound)))
            found = each.at_least(bound)
            if found is not None:
                led += 1
                shares.append(np.isin(np.flatnonzero(own >= bound), found[0]).mean())
        search, answer = statistics.median(searches), statistics.median(answers)
        said = f"{100 * float(np.mean(shares)):.1f}% found" if shares else "none found without a scan"
        yield f"{size:6d} images: {answer:7.1f} ms, {answer / search:5.2f} searches; {led} of {len(learnt)}: {said}"


def cpu_ms(call: Callable[[], object]) -> float:
    started = time.process_time()
    call()
    return 1e3 * (time.process_time() - started)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=40_000)
    parser.add_argument("--embeddings", type=int, default=8)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--engine", default="compact")
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--expected", type=float, default=1.0)
    arguments = parser.parse_args(argv)
    faiss.omp_set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        make_store(Path(folder) / "store", arguments.images, arguments.embeddings, arguments.dim)
        index = build_index(Path(folder) / "store", Path(folder) / "index", arguments.engine)
        queries = World(arguments.dim).texts(arguments.queries, seed=3)
        index.search(queries, K)  # its bytes are compared now
        every = [index.score_images(query[None])[0] for query in queries]
        print(f"{arguments.images:,} images of {arguments.embeddings} x {arguments.dim}, {index.recall or 'exact'}")
        for size in (size for size in SIZES if 2 * size <= arguments.images):
            searches, answers, shares = [], [], []
            for query, scores in zip(queries, every, strict=True):
                bound = float(np.partition(scores, -size)[-size]) - 1e-6
                guess = int(1.2 * arguments.expected * size)
                searches.append(cpu_ms(lambda query=query: index.search(query[None], K)))
                answers.append(
                    cpu_ms(lambda query=query, bound=bound, guess=guess: index.at_least(query, bound, guess))
                )
                found, _ = index.at_least(query, bound, guess)
                shares.append(np.isin(np.flatnonzero(scores >= bound), found).mean())
            search, answer = statistics.median(searches), statistics.median(answers)
            print(
                f"{size:6d} images: {answer:7.1f} ms, {answer / search:5.2f} searches; "
                f"{100 * float(np.mean(shares)):.1f}% found",
                flush=True,
            )
        scans = [cpu_ms(lambda query=query: index.score_images(query[None])) for query in queries[:5]]
        print(f"the scan: {statistics.median(scans):.0f} ms, {statistics.median(scans) / search:.1f} searches")
        print("by similarity:")
        for line in by_similarity(index, queries[:LEARNT], [size for size in SIZES if 2 * size <= arguments.images]):
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
