"""A method: how images and texts become embeddings that can be compared.

The harness and the app know only the `Method` protocol; another dual encoder is one more class behind it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from PIL import Image


@dataclass(frozen=True)
class MethodInfo:
    """What a store and an index record of the method that made them; two equal infos make comparable embeddings.

    method: `clip`, `dense-clip`, `cluster-clip`, `for`, ...  backbone: `RN-mini`, `RN50`, ...
    weights: where the weights come from (`openai`, `rn-mini`, `random`, a file's name), for people.
    weights_sha256: hash of every parameter that shapes an image or text embedding, for machines.
    n_embeddings: N, embeddings an image.  dim: Co, width of the joint space.  image_size: pixels a side.
    settings: the head's own settings (number of K-means iterations, say).
    """

    method: str
    backbone: str
    weights: str
    weights_sha256: str
    n_embeddings: int
    dim: int
    image_size: int
    settings: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def text_space(self) -> tuple[str, str, int]:
        """What a query's embedding depends on: an index answers only queries of its own text space."""
        return (self.backbone, self.weights_sha256, self.dim)


@runtime_checkable
class Method(Protocol):
    """Images to N embeddings each, texts to one each, all unit-norm in one joint space of width Co."""

    @property
    def info(self) -> MethodInfo: ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        """An RGB image -> [3, H, W] float32 on the CPU, resized and normalised as the backbone expects."""
        ...

    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        """pixels: [B, 3, H, W] as `preprocess` gives -> [B, N, Co] float32 on the CPU, unit-norm."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Q texts, encoded as they stand (prompts are text.py's affair) -> [Q, Co] float32 on the CPU, unit-norm."""
        ...
