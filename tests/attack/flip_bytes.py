"""A bit flipped anywhere: `python -m tests.attack.flip_bytes --positions 1000`.

Of a small store, a flat and a compact index, and a trained head: every byte of each manifest, and so many positions of
every other file, or all where it has fewer. A bit of the byte is flipped, what it belongs to is opened anew and asked,
and the byte is put back. What must hold: an error of one line, or the same answer as before, never another one.
"""

import argparse
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from for_model.backbones.clip_resnet import load_clip_resnet
from for_model.errors import ForError
from for_model.methods.head_files import load_head, read_head_file
from for_search.index.compact import compact_engine
from for_search.index.index_files import build_index, open_index
from for_search.store.store import open_store
from tests.helpers.store_making import make_store, random_units
from tests.helpers.tiny_index import write_random_head

ASIDE = {"lock", "timing.json"}  # what no answer is made of


def _world(folder: Path) -> dict[Path, Callable[[Path], Any]]:
    """What is attacked, and what it is asked."""
    compact_engine.MIN_ROWS = 1  # else so few have no codes, and there would be nothing of them to damage
    make_store(folder / "store", random_units((60, 2, 8)))
    for kind in ("flat", "compact"):
        build_index(folder / "store", folder / kind, kind)
    backbone = load_clip_resnet("RN-mini", "random", 32, device="cpu")
    write_random_head(folder / "head.safetensors", backbone)
    query = random_units((1, 8), seed=1)

    def ask_store(path: Path) -> Any:
        store = open_store(path)
        images = [(image.id, image.path) for image in store.images]
        return images, store.embeddings().tobytes(), store.info.to_json(), store.dataset, store.split

    def ask_index(path: Path) -> Any:
        index = open_index(path)
        images = [(image.id, image.path) for image in index.images]
        return index.search(query, 60), images, index.info.to_json(), index.dataset, index.where("width > 1").tolist()

    def ask_head(path: Path) -> Any:
        file = read_head_file(path)
        state = load_head(file, backbone).state_dict()
        return file.method, file.config, {name: value.numpy().tobytes() for name, value in state.items()}

    return {
        folder / "store": ask_store,
        folder / "flat": ask_index,
        folder / "compact": ask_index,
        folder / "head.safetensors": ask_head,
    }


def run(positions: int, seed: int, every_byte_of_manifests: bool = True) -> str:
    """Flip. Returns a line for the report; raises AssertionError for an answer that has changed unseen."""
    chance = random.Random(seed)
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        for place, ask in _world(Path(name)).items():
            before = ask(place)
            files = [place] if place.is_file() else [p for p in sorted(place.rglob("*")) if p.is_file()]
            for file in files:
                if file.name in ASIDE:
                    continue
                size = file.stat().st_size
                whole = size <= positions or (every_byte_of_manifests and file.name == "manifest.json")
                for position in range(size) if whole else sorted(chance.sample(range(size), positions)):
                    counts[_flip(file, position, chance.randrange(8), partial(ask, place), before)] += 1
                counts["files"] += 1
            assert _equal(ask(place), before), "what was flipped wasn't put back"
    flips = counts["an error"] + counts["the same answer"]
    return (
        f"{flips:,} flips in {counts['files']} files: {counts['an error']:,} times one line that says so, "
        f"{counts['the same answer']:,} times the same answer, 0 times another one"
    )


def _flip(file: Path, position: int, bit: int, ask: Callable[[], Any], before: Any) -> str:
    with file.open("r+b") as stream:
        stream.seek(position)
        value = stream.read(1)[0]
        stream.seek(position)
        stream.write(bytes([value ^ 1 << bit]))
    try:
        after = ask()
    except ForError as error:
        if "\n" in str(error):
            raise AssertionError(f"{file.name}, byte {position}: {error}") from error
        return "an error"
    finally:
        with file.open("r+b") as stream:
            stream.seek(position)
            stream.write(bytes([value]))
    assert _equal(after, before), f"{file.name}, byte {position}, bit {bit}: another answer, and nobody says so"
    return "the same answer"


def _equal(a: Any, b: Any) -> bool:
    return bool(np.array_equal(a, b)) if isinstance(a, np.ndarray) else bool(a == b)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, default=1000, help="of each file but manifests (default 1000)")
    parser.add_argument("--sampled-manifests", action="store_true", help="so many positions of manifests too")
    parser.add_argument("--seed", type=int, default=0, help="of positions and bits")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(run(arguments.positions, arguments.seed, not arguments.sampled_manifests))


if __name__ == "__main__":
    sys.exit(main())
