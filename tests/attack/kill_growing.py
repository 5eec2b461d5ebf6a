"""kill -9 at random moments while a library grows: `python -m tests.attack.kill_growing --kills 30`.

A folder of small images changes at random; a process brings its store and its index up to date, and is killed while it
does, again and again. Meanwhile the index is opened and searched without a pause. What must hold each time: the index
is that of the folder before the change or after it, to the bit; no byte of store or index differs from what was
written; and at last both hold exactly the folder's images, and nothing is left over. The method is a fixed projection,
so that a process starts by a fork in milliseconds, and most kills hit what matters.
"""

import argparse
import mmap
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from for_model.data.folder import load_folder
from for_search.index.index_files import build_index, open_index
from for_search.index.verify import verify
from for_search.store.embed import embed
from for_search.store.store import open_store
from tests.helpers.fake_method import FakeMethod

PHASES = ("embedding", "indexing", "done")
LASTS_S = (0.3, 0.05, 0)  # about as long as each phase
State = dict[object, bytes]  # image id -> its embeddings

# What a sound store and index consist of, beside what their manifests list.
ALWAYS = {"manifest.json", "timing.json", "lock"}


class Library:
    """A folder that changes, and what its index should hold."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.images, self.store, self.index = folder / "images", folder / "store", folder / "index"
        self.images.mkdir()
        self.random = random.Random(seed)
        self._pixels = np.random.default_rng(seed)
        self.method = FakeMethod(delay_s=0.002)
        self.state: State = {}
        self._made = 0
        self.add(30)

    def add(self, count: int) -> None:
        for _ in range(count):
            name = f"{self.random.randrange(10**6):06d}-{self._made}.png"
            self._made += 1
            image = Image.fromarray(self._pixels.integers(0, 256, (12, 10, 3), dtype=np.uint8))
            image.save(self.images / name)
            rows = self.method.encode_images(self.method.preprocess(image)[None])[0]
            self.state[name] = rows.numpy().astype(np.float16).tobytes()

    def change(self) -> None:
        """Images come, go, change and are renamed; now and then a third goes, so that what is left is merged."""
        self.add(self.random.randint(1, 6))
        names = sorted(map(str, self.state))
        for name in self.random.sample(names, len(names) // 3 if self.random.random() < 0.2 else 3):
            (self.images / name).unlink()
            del self.state[name]
        old = self.random.choice(sorted(map(str, self.state)))
        (self.images / old).rename(self.images / f"renamed-{old}")
        self.state[f"renamed-{old}"] = self.state.pop(old)

    def update(self, phase: mmap.mmap, rebuild: bool) -> None:
        """What the process that is killed does."""
        embed(load_folder(self.images), self.method, self.store, batch_size=1, shard_size=8, workers=1)
        phase[0] = 1
        build_index(self.store, self.index, rebuild=rebuild)
        phase[0] = 2

    def found(self) -> State:
        """What the index holds now; searched once on the way, which compares every byte."""
        index = open_index(self.index)
        query = np.eye(1, index.info.dim, dtype=np.float32)
        hits = index.search(query, len(index.images) + 1)[0]
        state: State = {i.id: index.embeddings(i.id).astype(np.float16).tobytes() for i in index.images}
        assert sorted(map(str, state)) == sorted(str(hit.image.id) for hit in hits), "an image is missing, or twice"
        return state


def in_child(library: Library, phase: mmap.mmap, rebuild: bool) -> int:
    """Start an update in a process of its own. Returns its id."""
    phase[0] = 0
    child = os.fork()
    if child:
        return child
    try:
        library.update(phase, rebuild)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def run(folder: Path, kills: int, seed: int) -> str:
    """Kill so many updates. Returns a line for the report; raises AssertionError for the first promise broken."""
    library = Library(folder, seed)
    phase = mmap.mmap(-1, 1)
    os.waitpid(in_child(library, phase, False), 0)
    before = library.found()
    assert before == library.state
    hit: Counter[str] = Counter()
    opened = 0
    while sum(hit.values()) < kills:
        library.change()
        child = in_child(library, phase, rebuild=library.random.random() < 0.2)
        wanted = library.random.randrange(len(PHASES))
        while phase[0] < wanted and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            assert library.found() in (before, library.state), "neither the state before nor the one after"
            opened += 1
        time.sleep(library.random.uniform(0, LASTS_S[wanted]))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the update failed by itself"
        hit[PHASES[phase[0]]] += 1
        now = library.found()
        assert now in (before, library.state), "neither the state before nor the one after"
        for place in (library.store, library.index):
            problems = [str(error) for _, error in verify(place) if error]
            assert not problems, problems
        before = now
    os.waitpid(in_child(library, phase, False), 0)
    assert library.found() == library.state
    store = open_store(library.store)
    assert {image.id for image in store.images} == set(library.state)
    listed = {name for place in (library.store, library.index) for name, _ in verify(place)} | ALWAYS
    there = {
        str(p.relative_to(place)) for place in (library.store, library.index) for p in place.rglob("*") if p.is_file()
    }
    assert there <= listed, f"left over: {there - listed}"
    moments = ", ".join(f"{hit[name]} {'after it was done' if name == 'done' else 'while ' + name}" for name in PHASES)
    return (
        f"{kills} kills ({moments}), {opened} openings and searches meanwhile: each time the index before or after the "
        f"change; at last exactly the folder's {len(library.state)} images, no byte damaged, nothing left over"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="how many (default 30)")
    parser.add_argument("--seed", type=int, default=0, help="of what comes and goes; moments differ in any case")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        print(run(Path(folder), arguments.kills, arguments.seed))


if __name__ == "__main__":
    sys.exit(main())
