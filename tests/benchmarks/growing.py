"""What it costs to bring the index of a folder up to date, and to compare an index's bytes.

  python -m tests.benchmarks.growing --images ../shared/data/coco-tiny/val2017    (photo-lite: make install-photos)
  python -m tests.benchmarks.growing --checks 10000

The first takes a copy of the folder's images, indexes all but one as `app --images` does, and prints the seconds that
each change takes from then on; the encoder is loaded once, and its start is printed apart. The second makes an index
of so many images of 25 random embeddings of 512 numbers, and prints how long it takes to open it, to search it first,
which compares every byte, and to search it again.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def seconds_of(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def changes(images: Path) -> None:
    """Print the seconds of each change of a folder."""
    from for_model.backbones import photo_packages
    from for_model.methods.build import build_method
    from for_search.library.folder_index import PHOTO_METHOD, folder_index

    with tempfile.TemporaryDirectory() as folder:
        os.environ["FOR_CACHE"] = f"{folder}/cache"
        root = Path(folder) / "images"
        shutil.copytree(images, root)
        first, second, third, *_ = sorted(path for path in root.rglob("*") if path.is_file())
        aside = first.rename(Path(folder) / first.name)
        start = time.perf_counter()
        method = build_method(PHOTO_METHOD, photo_packages.NAME, device="cpu")
        print(f"the encoder's start: {time.perf_counter() - start:.2f} s")
        number = len(list(root.rglob("*.*")))

        def update() -> object:
            return folder_index(root, method, progress=False)

        for what, change in (
            (f"the first {number} images", lambda: None),
            ("nothing has changed", lambda: None),
            ("one image more", lambda: aside.rename(first)),
            ("one renamed", lambda: second.rename(root / "renamed.jpg")),
            ("one removed", lambda: third.unlink()),
        ):
            change()
            print(f"{what}: {seconds_of(update):.2f} s", flush=True)


def checks(n_images: int) -> None:
    """Print what comparing bytes costs."""
    from for_search.index.index_files import build_index
    from tests.helpers.store_making import make_store, random_units

    with tempfile.TemporaryDirectory() as folder:
        store, index = Path(folder) / "store", Path(folder) / "index"
        make_store(store, random_units((n_images, 25, 512)), shard_size=512)
        made = build_index(store, index)
        query = random_units((1, 512), seed=1)
        rounds = [_one_round(index, query) for _ in range(5)]
        print(f"{n_images} images, {made.n_bytes / 1e6:.0f} MB, medians of 5, all bytes in the page cache:")
        for what in rounds[0]:
            print(f"{what}: {1e3 * statistics.median(each[what] for each in rounds):.0f} ms")


def _one_round(path: Path, query: NDArray[np.float32]) -> dict[str, float]:
    """Seconds of what is done with an index."""
    from for_search.index.index_files import open_index

    opening = seconds_of(lambda: open_index(path))
    index = open_index(path)
    return {
        "open it": opening,
        "first search": seconds_of(lambda: index.search(query, 10)),
        "each later search": statistics.median(seconds_of(lambda: index.search(query, 10)) for _ in range(5)),
        "open it and compare all": seconds_of(lambda: open_index(path, "full")),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="a folder of photographs; it isn't changed")
    parser.add_argument("--checks", type=int, metavar="N", help="compare the bytes of an index of N images")
    arguments = parser.parse_args(argv)
    if arguments.images is not None:
        changes(arguments.images)
    if arguments.checks is not None:
        checks(arguments.checks)
    return 0


if __name__ == "__main__":
    sys.exit(main())
