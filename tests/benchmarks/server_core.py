"""What an image costs a Qdrant server, measured on the server's core in this process (`qdrant-edge-py`), no network.

  python -m tests.benchmarks.server_core                    # 20,000 images of 8 x 256
  python -m tests.benchmarks.server_core --exact            # without the quantised one, whose graph takes minutes

Makes an index exactly, and one quantised with a graph, and asks both and the flat engine the same made texts. Seconds
are of the processor, all threads together, as a shared machine's clock says little. The core is one shard without HTTP;
what a server adds is the network, the requests' JSON, and the merging of shards.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from for_search.index.index import SearchIndex
from for_search.index.index_files import build_index
from for_search.index.qdrant import connection
from tests.benchmarks.scale import World, make_store
from tests.helpers.qdrant_core import CoreClient

K = 50
URL = "http://localhost:6333"  # nobody is asked


def folder_bytes(path: Path) -> int:
    """What the files of a folder take on disk."""
    return sum(file.stat().st_blocks * 512 for file in path.rglob("*") if file.is_file())


def measured(title: str, n_images: int, run: Callable[[], SearchIndex]) -> SearchIndex:
    started, cpu = time.perf_counter(), time.process_time()
    index = run()
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    print(f"{title}: built in {cpu:.1f} s of the processor, {1e3 * cpu / n_images:.2f} ms an image ({wall:.0f} s)")
    return index


def ask(
    title: str, index: SearchIndex, texts: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None = None
) -> list[list[object]]:
    """The answers' ids, one list for each text; prints what a text takes."""
    index.search(texts[:1], k, allowed)  # what is checked before the first search
    started, cpu = time.perf_counter(), time.process_time()
    found = [[hit.image.id for hit in index.search(text[None], k, allowed)[0]] for text in texts]
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    print(f"{title}: {1e3 * cpu / len(texts):.1f} ms of the processor a text ({1e3 * wall / len(texts):.1f} ms)")
    return found


def scan(index: SearchIndex, texts: NDArray[np.float32], n_images: int) -> None:
    """What the core's own search for 50 images takes, without the rows that are fetched to score them again."""
    (segment,) = index.segments
    collection = segment.engine._collection  # type: ignore[attr-defined]
    ef = segment.engine._note.ef  # type: ignore[attr-defined]
    cpu = time.process_time()
    for text in texts:
        collection.best([(text, None)], K, ef)
    each = (time.process_time() - cpu) / len(texts)
    print(f"  the core alone: {1e3 * each:.2f} ms of the processor a text, {1e9 * each / n_images:.0f} ns an image")


def share(found: list[list[object]], truth: list[list[object]]) -> str:
    shares = [len(set(one) & set(other)) / len(other) for one, other in zip(found, truth, strict=True)]
    same = sum(one == other for one, other in zip(found, truth, strict=True))
    return (
        f"  finds {np.mean(shares):.4f} (worst {min(shares):.2f}) of what flat finds; {same} of {len(truth)} the same"
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--embeddings", type=int, default=8)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--texts", type=int, default=40)
    parser.add_argument("--recall", type=float, default=0.99)
    parser.add_argument("--exact", action="store_true", help="leave the quantised index out")
    arguments = parser.parse_args(argv)
    texts = World(arguments.dim).texts(arguments.texts, seed=7)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_store(folder / "store", arguments.images, arguments.embeddings, arguments.dim)
        core = CoreClient(folder / "core")
        connection._client = lambda url, key: core  # type: ignore[assignment]
        narrow = np.random.default_rng(0).random(arguments.images) < 0.01
        flat = measured("flat", arguments.images, lambda: build_index(folder / "store", folder / "flat"))
        truth = ask("  50 images", flat, texts, K)
        of_few = ask("  50 of the hundredth part", flat, texts, K, narrow)
        for quantised in (False,) if arguments.exact else (False, True):
            title = "qdrant, quantised" if quantised else "qdrant, exact"
            before = folder_bytes(folder / "core")
            index = measured(
                title,
                arguments.images,
                lambda name=title, quantised=quantised: build_index(  # type: ignore[misc]
                    folder / "store", folder / name, "qdrant", url=URL, quantised=quantised, recall=arguments.recall
                ),
            )
            on_disk = folder_bytes(folder / "core") - before
            print(f"  {on_disk / arguments.images:.0f} bytes an image on the core's disk; {index.recall or 'exact'}")
            scan(index, texts, arguments.images)
            print(share(ask("  50 images", index, texts, K), truth))
            print(share(ask("  50 of the hundredth part", index, texts, K, narrow), of_few))
            print(share(ask("  1,000 images", index, texts[:5], 1000), ask("  flat's", flat, texts[:5], 1000)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
