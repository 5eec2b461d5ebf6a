"""A small real index for tests: drawn scenes, RN-mini with random weights."""

from pathlib import Path

import torch

from for_eval.embed import embed
from for_eval.index import build_index
from for_eval.search import Searcher, load_searcher
from for_model.clip_method import ClipMethod, build_method
from for_model.data.miniscenes import write_scenes
from for_model.data.registry import load_dataset


def random_method() -> ClipMethod:
    torch.set_num_threads(2)
    return build_method("cluster-clip", "RN-mini", "random", device="cpu")


def make_searcher(folder: Path, n_scenes: int = 30) -> Searcher:
    """A searcher over `folder/index`, whose scenes lie in `folder/scenes/val`."""
    write_scenes(folder / "scenes", {"val": n_scenes})
    method = random_method()
    embed(load_dataset("miniscenes", folder / "scenes"), method, folder / "store")
    build_index(folder / "store", folder / "index")
    return load_searcher(folder / "index", method=method)
