"""A method made of a backbone and a head.

Shapes: B images, K cells, N embeddings an image, Q texts, Ce backbone width, Co joint width.
"""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from for_model.backbones.protocol import ImageTextBackbone
from for_model.errors import ForError
from for_model.heads.protocol import Head
from for_model.methods.protocol import MethodInfo


class ClipMethod:
    """A `Method` of a backbone and a head. See `protocol.Method` for what that promises.

    Searching needs the `Method` protocol only; training and the evidence for a match also use `backbone` and `head`.

    backbone: makes feature maps of images, and embeddings of texts.
    head: makes the N embeddings of an image of its feature map.
    """

    def __init__(self, backbone: ImageTextBackbone, head: Head) -> None:
        self.backbone = backbone
        self.head = head
        self._info = MethodInfo(
            method=head.name,
            backbone=backbone.name,
            weights=backbone.weights,
            weights_sha256=backbone.weights_sha256,
            n_embeddings=head.n_embeddings(backbone.n_cells),
            dim=backbone.dim,
            image_size=backbone.image_size,
            settings=head.settings,
        )

    @property
    def info(self) -> MethodInfo:
        return self._info

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    @property
    def prompts(self) -> tuple[str, ...]:
        """The templates that names are put into, see `text.TextEncoder`."""
        return self.backbone.prompts

    def preprocess(self, image: Image.Image) -> Tensor:
        """An image -> [3, H, W] float32 on the CPU. Raises ImageError when it can't be decoded."""
        return self.backbone.preprocess(image)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """pixels: [B, 3, H, W] as `preprocess` gives -> [B, N, Co] float32 on the CPU, unit-norm.

        Raises UsageError for another shape, ForError for embeddings that are not finite.
        """
        return self.encode_features(self.backbone.features(pixels))

    @torch.no_grad()
    def encode_features(self, X: Tensor) -> Tensor:
        """The second half of `encode_images`, from feature maps on.

        X: [B, K, Ce] float32, the backbone's feature maps, just made or kept on disk since.

        Returns [B, N, Co] float32 on the CPU, unit-norm.
        Raises ForError for feature maps that are not finite.
        """
        X = X.to(self.backbone.device, torch.float32)
        if not torch.isfinite(X).all():
            raise ForError(
                f"{self.info.backbone} {self.info.weights}: the feature map of at least one image is not finite; "
                "check the weights, or run on the CPU, where nothing is computed in float16"
            )
        return self.head(X, self.backbone.pool).float().cpu()

    @torch.no_grad()
    def explain_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The embeddings, and where each comes from: the cells' shares in it, see `Head.evidence`.

        pixels: [B, 3, H, W] float32, as `preprocess` gives them.

        Returns [B, N, Co], the embeddings that `encode_images` gives, and [B, N, K], both float32 on the CPU.
        """
        X = self.backbone.features(pixels)
        return self.encode_features(X), self.head.evidence(X, self.backbone.pool).float().cpu()

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Q texts, as they stand -> [Q, Co] float32 on the CPU, unit-norm."""
        return self.backbone.encode_texts(texts).cpu()
