"""A method: how images and texts become embeddings that can be compared.

The harness and the app know only the `Method` protocol; another dual encoder is one more class behind it.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from PIL import Image

from for_model.errors import WeightsError
from for_model.numpy_text import NumpyText, numpy_text

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class MethodInfo:
    """What a store and an index record of the method that made them; two equal infos make comparable embeddings.

    method: `clip`, `dense-clip`, `cluster-clip`, `for`, ...
    backbone: `RN-mini`, `RN50`, ...
    weights: where the weights come from (`openai`, `rn-mini`, `random`, a file's name), for people.
    weights_sha256: hash of every parameter that shapes an image or text embedding, for machines.
    n_embeddings: N, embeddings an image.
    dim: Co, width of the joint space.
    image_size: pixels a side.
    settings: of the head, what changes its embeddings (the number of K-means iterations, say).
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
    def recorded_weights(self) -> str | None:
        """What to load the weights by; None for those that come with FOR, whose label isn't a name to load them by: it
        is their model's name in lower case."""
        return None if self.weights == self.backbone.lower() else self.weights

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
    def device(self) -> "torch.device":
        """Where it computes."""
        ...

    def preprocess(self, image: Image.Image) -> "torch.Tensor":
        """An RGB image -> [3, H, W] float32 on the CPU, resized and normalised as the backbone expects."""
        ...

    def encode_images(self, pixels: "torch.Tensor") -> "torch.Tensor":
        """pixels: [B, 3, H, W] as `preprocess` gives -> [B, N, Co] float32 on the CPU, unit-norm."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> "torch.Tensor":
        """Q texts, encoded as they stand -> [Q, Co] float32 on the CPU, unit-norm.

        Names are put into prompts before, by `for_model.text.embed_categories`.
        """
        ...


@runtime_checkable
class ExplainingMethod(Method, Protocol):
    """A method that can tell where in an image its embeddings come from."""

    def explain_images(self, pixels: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
        """The embeddings, and where each comes from.

        pixels: [B, 3, H, W] as `preprocess` gives.

        Returns [B, N, Co] as `encode_images` does, and the cells' shares in each embedding, [B, N, K] float32 from 0
        on, where K = g * g cells cover the image row by row. What a share is, the method's entry in the registry says.
        """
        ...


class LazyMethod:
    """A method that is described already and loaded when it is first needed.

    Whichever thread needs it first loads it, and the others wait.

    info: what the method will be.
    load: loads it.
    """

    def __init__(self, info: MethodInfo, load: Callable[[], Method]) -> None:
        self.info = info
        self._load = load
        self._method: Method | None = None
        self._lock = threading.Lock()

    @classmethod
    def of(cls, method: Method) -> "LazyMethod":
        """One that is loaded already."""
        lazy = cls(method.info, lambda: method)
        lazy._method = method
        return lazy

    @property
    def loaded(self) -> bool:
        return self._method is not None

    @cached_property
    def numpy_text(self) -> NumpyText | None:
        """Its text encoder without the method and without torch; None unless the weights come with FOR."""
        return numpy_text(*self.info.text_space)

    @property
    def reads_texts(self) -> bool:
        """Whether a text can be encoded now, without loading the method."""
        return self.loaded or self.numpy_text is not None

    def get(self) -> Method:
        """The method. Raises what loading it raises, and then the next call tries again; WeightsError when another
        method comes out than was described."""
        with self._lock:
            if self._method is None:
                method = self._load()
                if method.info != self.info:
                    raise WeightsError(f"{self.info} was described, {method.info} was loaded: start again")
                self._method = method
            return self._method
