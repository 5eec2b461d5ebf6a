"""A world of vectors in which what an image holds is known, and a text encoder without a network."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from for_model.methods.protocol import MethodInfo
from for_search.index.index_files import build_index
from for_search.query.searcher import Searcher, load_searcher
from tests.helpers.store_making import make_store, method_info

DIM = 64
THINGS = ("dog", "umbrella", "person", "bus")
NONSENSE = ("asdfgh", "quantum bureaucracy", "lorem ipsum")


class NamedDirections:
    """Each thing has a direction of its own; any other word a direction that comes from its letters."""

    def __init__(self, info: MethodInfo) -> None:
        self.info = info
        self.device = torch.device("cpu")
        self.prompts = ("{}",)

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        raise NotImplementedError

    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def encode_texts(self, texts: Sequence[str]) -> torch.Tensor:
        rows = [direction(text) for text in texts]
        return torch.from_numpy(np.array(rows, dtype=np.float32).reshape(len(texts), DIM))


def direction(text: str) -> NDArray[np.float32]:
    """[DIM], unit-norm, the same for the same text in every process."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    row = np.random.default_rng(seed).standard_normal(DIM)
    return (row / np.linalg.norm(row)).astype(np.float32)


def holds(image: int, thing: str) -> bool:
    """Whether the image of that number, 0 to 119, holds a thing: every 12th a dog, every 8th an umbrella, ..."""
    return image % {"dog": 12, "umbrella": 8, "person": 9, "bus": 10}[thing] == 0


def make_world(folder: Path, n_images: int = 120) -> Searcher:
    """A searcher over images of four embeddings: of each thing that an image holds, and of nothing in particular."""
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((n_images, len(THINGS), DIM)).astype(np.float32) / np.sqrt(DIM)
    for image in range(n_images):
        for number, thing in enumerate(THINGS):
            if holds(image, thing):
                rows[image, number] = direction(thing) + 0.5 * rows[image, number]
    rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
    make_store(folder / "store", rows)
    build_index(folder / "store", folder / "index")
    return load_searcher(folder / "index", method=NamedDirections(method_info(len(THINGS), DIM)))
