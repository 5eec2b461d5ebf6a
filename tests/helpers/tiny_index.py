"""A small real index for tests: drawn scenes, RN-mini with random weights."""

from pathlib import Path

import torch

from for_model.backbones.clip_resnet import ClipResnet
from for_model.data.miniscenes.scenes import write_scenes
from for_model.data.registry import load_dataset
from for_model.methods.build import build_method
from for_model.methods.clip_method import ClipMethod
from for_model.methods.head_config import HeadConfig
from for_model.methods.head_files import make_head, write_head
from for_search.index.index_files import build_index
from for_search.library.library import Library
from for_search.query.searcher import Searcher, load_searcher
from for_search.store.embed import embed


def random_method() -> ClipMethod:
    return build_method("cluster-clip", "RN-mini", "random", device="cpu")


def make_searcher(folder: Path, n_scenes: int = 30) -> Searcher:
    """A searcher over `folder/index`, whose scenes lie in `folder/scenes/val`."""
    write_scenes(folder / "scenes", {"val": n_scenes})
    method = random_method()
    embed(load_dataset("miniscenes", folder / "scenes"), method, folder / "store")
    build_index(folder / "store", folder / "index")
    return load_searcher(folder / "index", method=method)


def write_random_head(path: Path, backbone: ClipResnet, seed: int = 0) -> Path:
    """An untrained FOR head of 3 queries, as training would write it."""
    config = HeadConfig(queries=3, layers=1, feedforward=32)
    torch.manual_seed(seed)
    write_head(path, make_head(config, backbone.pool), config, "for", backbone, {})
    return path


def make_library(folder: Path, n_scenes: int = 30) -> Library:
    """Indexes of the same scenes by Cluster-CLIP, CLIP, Dense-CLIP and FOR, with random weights, all open.

    Their folders are `folder/index`, `clip`, `dense-clip` and `for`; FOR's head is `folder/head.safetensors`.
    """
    first = make_searcher(folder, n_scenes)
    library = Library(weights="random", heads=[write_random_head(folder / "head.safetensors", first.method.backbone)])
    library.add_opened(first)
    for name, spec in (("clip", "clip"), ("dense-clip", "dense-clip"), ("for", str(folder / "head.safetensors"))):
        method = build_method(spec, loaded=first.method.backbone)
        embed(load_dataset("miniscenes", folder / "scenes"), method, folder / f"{name}-store")
        build_index(folder / f"{name}-store", folder / name)
        library.add_opened(load_searcher(folder / name, method=method))
    return library
