"""The compact engine beside the exact scan, on data that this makes itself: time, recall, memory, build.

  python -m tests.benchmarks.scale                                             # 20,000 images of 50 x 512: 1 GB
  python -m tests.benchmarks.scale --images 120000 --check                     # 6.1 GB, twice that on disk for a while
  python -m tests.benchmarks.scale --images 2000 --queries 20                  # a minute
  python -m tests.benchmarks.scale --images 100000 --embeddings 8 --dim 256    # FOR's own size
  python -m tests.benchmarks.scale --images 120000 --folder F --keep --only search    # one part of it
  python -m tests.benchmarks.scale --store S --folder F                        # real embeddings, texts of their encoder

Makes an embedding store, builds a compact index of it with `build_index`, and asks it and its own exact scan the same
queries in turn; each part in a process of its own, so that its memory is its own. What a part finds is written to the
folder's figures.json, and a part that is there isn't done again: one that is killed goes on when it is started with the
same --folder. The folder is removed at the end, unless --keep is given.
With --check it says for each target whether it is reached, OK or FAIL, and ends with an error where one isn't.

The data: an image shows 1 to 6 of 4,000 concepts, frequent and rare ones; each of its embeddings is one of them, as it
looks there, with something of the whole image, in 128 of the dimensions, with noise in all of them, and a mean that
all embeddings share. A text says a concept, but lies far away from all images, as texts of CLIP do: 0.1 is its cosine
with a random embedding, 0.4 with a good one.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from for_model.data.dataset import ImageRecord
from for_model.files import cache_dir, write_json
from for_model.methods.protocol import MethodInfo
from for_search.index.compact.calibration import AS_GOOD
from for_search.index.index import SearchIndex
from for_search.index.index_files import build_index, open_index
from for_search.library.vocabulary_sample import texts_for
from for_search.store.shards import Shard, write_shard
from for_search.store.store import write_store

N_CONCEPTS, RANK, MAX_CONCEPTS = 4000, 128, 6
SHARD_IMAGES = 2000
MIN_SPEEDUP, MIN_RECALL, MIN_WORST, MAX_RESIDENT_GB, MAX_BUILD_GB = 30, 0.99, 0.9, 0.8, 4.0
K, LARGE_K, AT_ONCE, N_COLD, N_LARGE = 50, 1000, 8, 10, 10
N_TEXTS = 2000  # that the build is given, as many as a vocabulary has names; none of them is asked for
PARTS = ("make", "build", "search", "cold")


class World:
    """What images and texts have in common; the same for the same width.

    dim: Co.
    """

    def __init__(self, dim: int) -> None:
        rng = np.random.default_rng(0)
        self.dim = dim
        basis = rng.standard_normal((RANK, dim)) * (np.arange(1, RANK + 1) ** -0.35)[:, None]
        self.basis = (basis / np.sqrt((basis**2).sum())).astype(np.float32)
        self.concepts = rng.standard_normal((N_CONCEPTS, RANK), dtype=np.float32)
        frequencies = np.arange(1, N_CONCEPTS + 1) ** -0.7
        self.frequencies = frequencies / frequencies.sum()
        self.mean, self.gap = (self._direction(rng) for _ in range(2))
        # Noise is taken from a pool: making it anew would take minutes.
        self.noise = rng.standard_normal((1 << 15, dim), dtype=np.float32) / np.sqrt(dim)

    def images(self, number: int, count: int, n_embeddings: int) -> NDArray[np.float32]:
        """The embeddings of `count` images, [count, N, Co], unit-norm."""
        rng = np.random.default_rng((1, number))
        shown = rng.choice(N_CONCEPTS, (count, MAX_CONCEPTS), p=self.frequencies)
        which = rng.integers(0, MAX_CONCEPTS, (count, n_embeddings)) % rng.integers(1, MAX_CONCEPTS + 1, (count, 1))
        looks = rng.standard_normal((count, MAX_CONCEPTS, RANK), dtype=np.float32)
        whole = rng.standard_normal((count, 1, RANK), dtype=np.float32)
        own = rng.standard_normal((count, n_embeddings, RANK), dtype=np.float32)
        concepts = self.concepts[np.take_along_axis(shown, which, axis=1)]
        seen = concepts + 0.6 * np.take_along_axis(looks, which[..., None], axis=1) + 0.7 * whole + 0.6 * own
        embeddings = seen.reshape(-1, RANK) @ self.basis
        embeddings += 0.5 * self.noise[rng.integers(0, len(self.noise), len(embeddings))] + self.mean
        return _units(embeddings).reshape(count, n_embeddings, self.dim)

    def texts(self, count: int, seed: int) -> NDArray[np.float32]:
        """`count` texts, [count, Co], unit-norm; frequent and rare concepts alike."""
        rng = np.random.default_rng((2, seed))
        said = self.concepts[rng.integers(0, N_CONCEPTS, count)]
        said = (said + 0.5 * rng.standard_normal(said.shape, dtype=np.float32)) @ self.basis
        noise = rng.standard_normal((count, self.dim), dtype=np.float32) / np.sqrt(self.dim)
        return _units(1.3 * self.gap + 0.3 * self.mean + 0.6 * said + 0.5 * noise)

    def _direction(self, rng: np.random.Generator) -> NDArray[np.float32]:
        return _units(rng.standard_normal((1, self.dim), dtype=np.float32))[0]


def _units(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def make_store(path: Path, n_images: int, n_embeddings: int, dim: int) -> None:
    """Write a store of made images."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    world, shards = World(dim), list[Shard]()
    for number, start in enumerate(tqdm(range(0, n_images, SHARD_IMAGES), "make images", unit="shard", disable=None)):
        count = min(SHARD_IMAGES, n_images - start)
        shards.append(write_shard(path, number, world.images(number, count, n_embeddings)))
    images = tuple(ImageRecord(i, f"{i}.jpg") for i in range(n_images))
    info = MethodInfo("dense-clip", "made", "made", "0" * 64, n_embeddings, dim, 224, {})
    write_store(path, info, "made", "val", path, images, (), tuple(shards))


def memory_gb() -> tuple[float, float]:
    """The process's resident memory in GB, now and at its highest."""
    with open("/proc/self/status", encoding="ascii") as stream:  # noqa: PTH123
        fields = dict(line.split(":", 1) for line in stream)
    now = int(fields["VmRSS"].split()[0]) * 1024 / 1e9
    return now, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def measure_build(store: Path, out: Path, recall: float, texts: NDArray[np.float32] | None) -> dict[str, Any]:
    base, started, cpu_started = memory_gb()[0], time.perf_counter(), time.process_time()
    index = build_index(store, out, "compact", recall=recall, texts=texts)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu_started
    said = index.recall.to_json() if index.recall else None
    return {
        "images": len(index.images),
        "embeddings": index.info.n_embeddings,
        "dim": index.info.dim,
        "build_seconds": seconds,
        "build_cpu_seconds": cpu,
        "peak_gb_above_base": memory_gb()[1] - base,
        "index_gb": index.n_bytes / 1e9,
        "recall_by_the_build": said,
        "settings": [json.loads(path.read_bytes())["settings"] for path in out.glob("*/compact.json")],
    }


def measure_search(out: Path, queries: NDArray[np.float32]) -> dict[str, Any]:
    """Time and recall; the queries are asked by turns, one of them exactly, so that both see the same machine; and once
    more by the compact engine alone, as it is used, when no scan has emptied the processor's caches."""
    faiss.omp_set_num_threads(1)  # two threads wait for each other where others are at work
    base = memory_gb()[0]
    index = open_index(out)
    for segment in index.segments:
        segment.check(whole=True)  # now, not beside what is measured
    for query in queries:
        index.search(query[None], K)
    resident = memory_gb()[0] - base
    in_turn = np.array([_timed(lambda query=query: index.search(query[None], K))[0] for query in queries])  # type: ignore[misc]
    wall, cpu = np.median(in_turn, axis=0)
    results = {"resident_gb": resident, "alone_compact_ms": 1e3 * float(wall), "alone_compact_cpu_ms": 1e3 * float(cpu)}
    batches = [queries[i : i + AT_ONCE] for i in range(0, len(queries) - AT_ONCE + 1, AT_ONCE)][: N_LARGE // 2]
    for name, asked, k in (
        ("one", [query[None] for query in queries], K),
        ("large_k", [query[None] for query in queries[:N_LARGE]], LARGE_K),
        ("at_once", batches, K),
    ):
        results |= {f"{name}_{what}": value for what, value in _side_by_side(index, asked, k).items()}
    results["alone_cpu_speedup"] = results["one_scan_cpu_ms"] / results["alone_compact_cpu_ms"]
    return results


def _side_by_side(index: SearchIndex, asked: list[NDArray[np.float32]], k: int) -> dict[str, float]:
    compact_s, scan_s, shares, same = [], [], [], []
    index.search(asked[0], k, exact=True)  # maps the rows
    for queries in tqdm(asked, f"{len(asked[0])} at once, k = {k}", disable=None):
        seconds, found = _timed(lambda queries=queries: index.search(queries, k))  # type: ignore[misc]
        compact_s.append(seconds)
        seconds, expected = _timed(lambda queries=queries: index.search(queries, k, exact=True))  # type: ignore[misc]
        scan_s.append(seconds)
        for ours, exact in zip(found, expected, strict=True):
            best, last = {hit.image.id for hit in exact}, exact[-1].score
            same.append(sum(hit.image.id in best for hit in ours) / len(best))
            shares.append(sum(hit.score >= last - AS_GOOD * abs(last) for hit in ours) / len(best))
    compact, scan = np.array(compact_s), np.array(scan_s)  # [number asked, 2]
    (wall, cpu), (scan_wall, scan_cpu) = np.median(compact, axis=0), np.median(scan, axis=0)
    return {
        "compact_ms": 1e3 * float(wall),
        "compact_p95_ms": 1e3 * float(np.percentile(compact[:, 0], 95)),
        "compact_cpu_ms": 1e3 * float(cpu),
        "scan_ms": 1e3 * float(scan_wall),
        "scan_cpu_ms": 1e3 * float(scan_cpu),
        "speedup": float(scan_wall / wall),
        "cpu_speedup": float(scan_cpu / cpu),
        "recall": float(np.mean(shares)),
        "worst": min(shares),
        "recall_of_the_very_same": float(np.mean(same)),
    }


def measure_cold(out: Path, queries: NDArray[np.float32]) -> dict[str, float]:
    """The same with the rows out of the page cache, before each query of the compact engine and before one scan."""
    faiss.omp_set_num_threads(1)
    index = open_index(out)
    compact_s = []
    for query in queries[:N_COLD]:
        _drop(out)
        compact_s.append(_timed(lambda query=query: index.search(query[None], K))[0][0])  # type: ignore[misc]
    _drop(out)
    scan_s = _timed(lambda: index.search(queries[:1], K, exact=True))[0][0]
    median = statistics.median(compact_s)
    return {"cold_compact_ms": 1e3 * median, "cold_scan_ms": 1e3 * scan_s, "cold_speedup": scan_s / median}


def _drop(out: Path) -> None:
    for path in out.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _timed(call: Callable[[], Any]) -> tuple[tuple[float, float], Any]:
    """Seconds that pass, and those of this thread on a processor, which others at work change less; and the answer."""
    started, cpu_started = time.perf_counter(), time.thread_time()
    answer = call()
    return (time.perf_counter() - started, time.thread_time() - cpu_started), answer


def in_its_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


@contextlib.contextmanager
def _folder(folder: Path, keep: bool) -> Iterator[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    if not keep:  # nor after an error: the next run goes on
        shutil.rmtree(folder, ignore_errors=True)


def check(results: dict[str, Any]) -> Iterator[tuple[bool, str]]:
    """For each target whether it is reached, and what was reached."""
    targets = (
        ("one_speedup", MIN_SPEEDUP, True),
        ("one_cpu_speedup", MIN_SPEEDUP, True),
        ("one_recall", MIN_RECALL, True),
        ("one_worst", MIN_WORST, True),
        ("resident_gb", MAX_RESIDENT_GB, False),
        ("peak_gb_above_base", MAX_BUILD_GB, False),
    )
    for name, target, at_least in targets:
        reached = name in results and (results[name] >= target if at_least else results[name] <= target)
        found = f"{results[name]:.3f}" if name in results else "not measured"
        yield reached, f"{name} is {found}, expected {'at least' if at_least else 'at most'} {target}"


def run(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Do the parts that aren't done yet; the figures of all."""
    path = folder / "figures.json"
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    store, index = arguments.store or folder / "store", folder / "index"
    if arguments.store is None:
        world = World(arguments.dim)
        texts, queries = world.texts(N_TEXTS, seed=1), world.texts(arguments.queries, seed=0)
    else:
        given = texts_for(arguments.store)
        assert given is not None, "the text encoder of the store isn't at hand"
        texts, queries = given[::2], given[1::2][: arguments.queries]
    shape = (arguments.images, arguments.embeddings, arguments.dim)
    for part in PARTS if arguments.only is None else (arguments.only,):
        if part in results.get("done", ()) or (part == "make" and arguments.store is not None):
            continue
        if part == "make":
            found = in_its_own_process(make_store, store, *shape) or {}
        elif part == "build":
            given_texts = None if arguments.without_texts else texts
            found = in_its_own_process(measure_build, store, index, arguments.recall, given_texts)
        else:
            os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # before the process starts
            found = in_its_own_process(measure_search if part == "search" else measure_cold, index, queries)
        results |= {**found, "done": [*results.get("done", ()), part]}
        print(json.dumps(results), file=sys.stderr, flush=True)
        write_json(path, results)
        if part == "build" and arguments.store is None and not arguments.keep:
            shutil.rmtree(store)
    return results


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--embeddings", type=int, default=50, help="per image")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--recall", type=float, default=0.99, help="to ask the build for")
    parser.add_argument(
        "--store",
        type=Path,
        help="a store that is there, instead of making one; of a vocabulary's names every other one is for the build, "
        "the others are queries",
    )
    parser.add_argument("--without-texts", action="store_true", help="the build isn't given any")
    parser.add_argument("--folder", type=Path, help="for all files, instead of one in FOR's cache")
    parser.add_argument("--keep", action="store_true", help="leave the folder and the store, for other runs")
    parser.add_argument("--only", choices=PARTS, help="do one part only")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--check", action="store_true", help="say what is reached; an error where a target isn't")
    arguments = parser.parse_args(argv)
    name = f"scale-{arguments.images}x{arguments.embeddings}x{arguments.dim}"
    with _folder(arguments.folder or cache_dir() / "benchmarks" / name, arguments.keep) as folder:
        results = run(arguments, folder)
    print(json.dumps(results, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    verdicts = list(check(results)) if arguments.check else []
    for reached, line in verdicts:
        print(f"{'OK' if reached else 'FAIL'}: {line}")
    return 0 if all(reached for reached, _ in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
