"""What heads and methods need of a backbone, so that another pair of encoders can take a CLIP's place.

Shapes: B images, K cells of the feature map, N embeddings an image, Q texts, Ce backbone width, Co joint width.
"""

from collections.abc import Sequence
from typing import Literal, Protocol, overload

import torch
from PIL import Image
from torch import Tensor


class Pool(Protocol):
    """What a head needs after the trunk. Differentiable in queries, tokens and X; see `AttentionPool`, which is CLIP's.

    grid: cells a side of the feature map, so K = grid * grid.
    width: Ce, of the feature map.
    dim: Co, of the joint space.
    """

    grid: int
    width: int
    dim: int

    def cells(self, X: Tensor) -> Tensor:
        """X: [B, K, Ce] -> [B, K, Ce], without the class token that a ViT's X begins with."""
        ...

    def tokens(self, X: Tensor) -> Tensor:
        """X: [B, K, Ce] -> [B, K + 1, Ce], the mean or class token first.

        Raises UsageError when K is not the pool's.
        """
        ...

    @overload
    def attend(self, queries: Tensor, tokens: Tensor, return_weights: Literal[False] = False) -> Tensor: ...

    @overload
    def attend(self, queries: Tensor, tokens: Tensor, return_weights: Literal[True]) -> tuple[Tensor, Tensor]: ...

    def attend(self, queries: Tensor, tokens: Tensor, return_weights: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Attention of queries to tokens (eq. 1 and 3).

        queries: [B, N, Ce].
        tokens: [B, K', Ce]; K' is free.
        return_weights: whether to return the attention weights as well.

        Returns [B, N, Co], not normalised; with `return_weights` also the weights, [B, N, K'].
        """
        ...

    def project(self, X: Tensor) -> Tensor:
        """X -> [B, K, Co], each cell on its own, not normalised (eq. 2)."""
        ...

    def dense_and_whole(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """What Dense-CLIP and CLIP make of an image, together and by the fastest way there is.

        X: [B, K, Ce], a feature map.

        Returns `project(X)`, [B, K, Co], and `attend` of the first token to all, [B, 1, Co], neither normalised. Sums
        may be taken in another order than there: they agree to float32's rounding, not to the last digit.
        Differentiable in X, not in the pool's parameters, which are frozen.
        Raises UsageError when K is not the pool's.
        """
        ...


class ImageTextBackbone(Protocol):
    """What a method needs: a trunk, a pool and a text encoder with one joint space, frozen, at one image size.

    name: as `load_backbone` takes it.
    weights: where they come from, for people.
    weights_sha256: hash of all that shapes an embedding.
    image_size: pixels a side.
    n_cells: K, cells of the feature map.
    width: Ce, of the feature map.
    dim: Co, of the joint space.
    n_tokens: rows of X: K, or K + 1 for a ViT, whose X begins with its class token. Where docstrings say X: [B, K, Ce],
        such an X is meant as well.
    prompts: the templates that names are put into.
    logit_scale: the factor of a cosine in a softmax over texts.
    device: where it computes.
    """

    name: str
    weights: str
    weights_sha256: str
    image_size: int
    n_cells: int
    n_tokens: int
    width: int
    dim: int
    prompts: tuple[str, ...]
    logit_scale: float
    device: torch.device

    @property
    def pool(self) -> Pool: ...

    def preprocess(self, image: Image.Image) -> Tensor:
        """An image -> [3, image_size, image_size] float32 on the CPU. Raises ImageError when it can't be decoded."""
        ...

    def features(self, pixels: Tensor) -> Tensor:
        """The feature maps of a batch of images.

        pixels: [B, 3, image_size, image_size] float32, as `preprocess` gives them.

        Returns X, [B, n_tokens, Ce] float32, on the device.
        """
        ...

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Q texts, as they stand -> [Q, Co] float32 on the device, unit-norm."""
        ...
