"""kill -9 at random moments of a command that makes something new: `python -m tests.attack.kill_fresh --what train`.

    embed   a store of 40 small images
    index   an index of that store, flat and compact in turn
    train   a head on 8 drawn scenes, RN-mini at 96 pixels, two epochs, with a checkpoint after each step

It runs in a process of its own, is killed at a random moment, and is started again, until it has ended by itself; then
the next one begins. What must hold: an index that was killed is there whole, or not there; and what comes out at last
is the same to the byte as without kills, with nothing beside it.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import torch

from for_model.data.folder import load_folder
from for_model.data.miniscenes.scenes import write_scenes
from for_model.errors import StoreError
from for_search.index.index_files import build_index, open_index
from for_search.index.verify import verify
from for_search.store.embed import embed
from tests.helpers.fake_method import FakeMethod, noise

WHATS = ("embed", "index", "train")
MOST_KILLS_A_RUN = 8  # then it may end: a process that is killed before it has begun anything never does
_TIMED = {"lock", "timing.json", "log.jsonl", "log.csv"}  # what isn't the same from run to run, or empty


def _images(folder: Path) -> Path:
    folder.mkdir()
    generator = np.random.default_rng(0)
    for i in range(40):
        noise(generator).save(folder / f"{i:02d}.png")
    return folder


def _embedding(folder: Path) -> Callable[[Path, int], None]:
    dataset, method = load_folder(_images(folder / "images")), FakeMethod(delay_s=0.002)
    return lambda out, _: embed(dataset, method, out, batch_size=1, shard_size=8, workers=1) and None


def _indexing(folder: Path) -> Callable[[Path, int], None]:
    store = folder / "store"
    dataset = load_folder(_images(folder / "images"))
    _without_threads(lambda: embed(dataset, FakeMethod(), store, shard_size=8, workers=1))
    return lambda out, turn: build_index(store, out, ("flat", "compact")[turn % 2]) and None


def _training(folder: Path) -> Callable[[Path, int], None]:
    import for_model.training.train as training
    from for_model.open_clip_import import import_open_clip
    from for_model.training.config import config_from

    # What a training imports takes longer than this one: it would leave few kills for what comes then.
    import_open_clip()
    import_module("torch._dynamo")  # by an optimiser
    training.CHECKPOINT_SECONDS = 0.0
    _without_threads(lambda: write_scenes(folder / "scenes", {"train": 8}, size=96))
    settings = config_from(
        {
            "precision": "float32",
            "image_size": 96,
            "data": {"dataset": "coco", "root": str(folder / "scenes"), "split": "train"},
            "head": {"queries": 4, "feedforward": 64, "layers": 1},
            "pseudo_labels": {"vocabulary": "miniscenes", "clusters": 4, "threshold": 0.2},
            "optimizer": {"epochs": 2, "batch_size": 4, "learning_rate": 1e-3, "drop_epoch": 1},
        }
    )
    return lambda out, _: list(training.train(settings, out)) and None


def _without_threads(prepare: Callable[[], object]) -> None:
    """Do something in a process of its own: threads that it starts would hold locks while this process forks."""
    _, status = os.waitpid(_in_child(lambda *_: prepare() and None, Path(), 0), 0)
    assert status == 0, "it can't be prepared"


def _content(out: Path) -> dict[str, bytes]:
    files = [path for path in sorted(out.rglob("*")) if path.is_file() and path.name not in _TIMED]
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def _in_child(job: Callable[[Path, int], None], out: Path, turn: int) -> int:
    child = os.fork()
    if child:
        return child
    try:
        job(out, turn)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _check_index(out: Path) -> None:
    """An index that was killed is there whole, or not there."""
    if (out / "manifest.json").exists():
        open_index(out, verify="full")
        return
    try:
        open_index(out)
    except StoreError as error:
        if "no search index" not in str(error):
            raise AssertionError(f"an index that isn't there yet: {error}") from error
    else:
        raise AssertionError("an index without a manifest opens")


def _check_bytes(made: Path) -> None:
    problems = [str(error) for _, error in verify(made) if error]
    assert not problems, problems


def run(what: str, kills: int, seed: int) -> str:
    """Kill so often. Returns a line for the report; raises AssertionError for the first promise that is broken."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["FOR_CACHE"] = str(folder / "cache")
        job = {"embed": _embedding, "index": _indexing, "train": _training}[what](folder)
        expected, last_s = {}, {}
        turns = (0, 1) if what == "index" else (0,)
        for turn in turns:
            started = time.monotonic()
            _, status = os.waitpid(_in_child(job, folder / f"whole-{turn}", turn), 0)
            assert status == 0, "it failed without a kill"
            last_s[turn] = time.monotonic() - started
            expected[turn] = _content(folder / f"whole-{turn}")
        done, runs = 0, 0
        while done < kills:
            out, turn, killed = folder / "out", turns[runs % len(turns)], 0
            while True:
                child = _in_child(job, out, turn)
                if killed < MOST_KILLS_A_RUN and done < kills:
                    time.sleep(chance.uniform(0, last_s[turn]))
                    os.kill(child, signal.SIGKILL)
                _, status = os.waitpid(child, 0)
                if not os.WIFSIGNALED(status):
                    assert status == 0, "it failed by itself"
                    break
                killed, done = killed + 1, done + 1
                if what == "index":
                    _without_threads(partial(_check_index, out))
            assert _content(out) == expected[turn], {
                n for n, data in _content(out).items() if expected[turn].get(n) != data
            }
            problems = [
                str(error) for _, error in verify(out / "head.safetensors" if what == "train" else out) if error
            ]
            assert not problems, problems
            shutil.rmtree(out)
            runs += 1
    return f"{what}: {done} kills of {runs} runs, each of which ended with the same bytes as without a kill"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=WHATS, required=True)
    parser.add_argument("--kills", type=int, default=100, help="how many (default 100)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(run(arguments.what, arguments.kills, arguments.seed))


if __name__ == "__main__":
    sys.exit(main())
