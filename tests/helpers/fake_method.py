"""A method that needs no network, and folders of images for it, for the tests of what embeds."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from for_model.data.dataset import Dataset
from for_model.data.folder import load_folder
from for_model.methods.protocol import MethodInfo

SIZE = 8


class FakeMethod:
    """A fixed random projection, which depends on the batch as a real network's rounding does."""

    def __init__(self, delay_s: float = 0, **info: object) -> None:
        fields = {"method": "fake", "backbone": "none", "weights": "random", "weights_sha256": "ab" * 32}
        sizes = {"n_embeddings": 2, "dim": 6, "image_size": SIZE, "settings": {"pair": (1, 2)}}
        self.info = MethodInfo(**{**fields, **sizes, **info})  # type: ignore[arg-type]
        self.device = torch.device("cpu")
        self.batches: list[int] = []
        self._delay_s = delay_s
        self._weight = torch.randn((3 * SIZE * SIZE, 12), generator=torch.Generator().manual_seed(0))

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        pixels = np.array(image.resize((SIZE, SIZE)), dtype=np.float32) / 255
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        time.sleep(self._delay_s)
        self.batches.append(len(pixels))
        joint = (pixels.flatten(1) @ self._weight).view(-1, 2, 6) + len(pixels) / 100
        return torch.nn.functional.normalize(joint, dim=-1)

    def encode_texts(self, texts: Sequence[str]) -> torch.Tensor:
        return torch.zeros(len(texts), 6)


def noise(generator: np.random.Generator, width: int = 10, height: int = 12) -> Image.Image:
    """An RGB image whose pixels are drawn one by one."""
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def make_images(root: Path, n: int, broken: Sequence[int] = ()) -> Dataset:
    """A folder of n images 00.png, 01.png, ..., of which `broken` can't be decoded."""
    root.mkdir()
    rng = np.random.default_rng(0)
    for i in range(n):
        path = root / f"{i:02d}.png"
        if i in broken:
            path.write_bytes(b"" if i % 2 else b"no image")
        else:
            noise(rng).save(path)
    return load_folder(root)


def contents(store: Path) -> dict[str, bytes]:
    """Every file of a store but its timing."""
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted(store.rglob("*"))
        if path.is_file() and path.name != "timing.json"
    }
