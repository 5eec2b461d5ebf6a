"""Other dual encoders as methods: published models that compare images and texts, taken whole, without a head of ours.

    coca            CoCa (open_clip)                     1 embedding an image
    owlvit, owlv2   OWL-ViT and OWLv2 (transformers)     one a patch
    blip2           BLIP-2 (transformers)                32, without its re-ranking stage

The baselines of the paper's Tables 1 and 9. Where the weights come from, and what each takes: docs/encoders.md.
Shapes: B images, N embeddings an image, Q texts, Co joint width.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from for_model.backbones.clip_vit import fit_positions
from for_model.backbones.model_weights import ModelWeights, build_model, load_model_weights, model_config
from for_model.backbones.pixels import CLIP_MEAN, CLIP_STD, Channels, check_image_size, check_pixels, resize_to_square
from for_model.errors import ForError
from for_model.methods.protocol import MethodInfo
from for_model.methods.registry import MethodRequest
from for_model.open_clip_import import import_open_clip
from for_model.tensor_files import sha256_state

COCA = "coca_ViT-L-14"
COCA_WEIGHTS = "mscoco_finetuned_laion2b_s13b_b90k"  # the paper's is fine-tuned on COCO's captions as well


class DualEncoder(ABC):
    """What these methods share. Each is a `Method`, see `protocol.Method` for what that promises; all run in float32.

    info: what stores and indexes record of it.
    model: the library's own, moved to the device, frozen.
    device: where it computes.
    mean, std: of the RGB channels, for images in 0..1.
    packages: whose versions a result names, beside those that every result names.
    """

    packages: tuple[str, ...] = ()

    def __init__(
        self, info: MethodInfo, model: Any, device: torch.device, mean: Channels = CLIP_MEAN, std: Channels = CLIP_STD
    ) -> None:
        self._info = info
        self.mean, self.std = mean, std
        self.device = device
        self.model = model.to(device).eval().requires_grad_(False)

    @property
    def info(self) -> MethodInfo:
        return self._info

    def preprocess(self, image: Image.Image) -> Tensor:
        """An image -> [3, H, W] float32 on the CPU; see `resize_to_square`.

        Raises ImageError when it can't be decoded.
        """
        return resize_to_square(image, self.info.image_size, self.mean, self.std)

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """pixels: [B, 3, H, W] as `preprocess` gives -> [B, N, Co] float32 on the CPU, unit-norm.

        Raises UsageError for another shape, ForError for embeddings that are not finite.
        """
        check_pixels(pixels, self.info.image_size)
        if not len(pixels):
            return torch.zeros(0, self.info.n_embeddings, self.info.dim)
        Y = self._images(pixels.to(self.device, torch.float32))
        if not torch.isfinite(Y).all():
            raise ForError(
                f"{self.info.backbone} {self.info.weights}: an image's embedding is not finite; check the weights"
            )
        return F.normalize(Y, dim=-1).cpu()

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Q texts, as they stand -> [Q, Co] float32 on the CPU, unit-norm."""
        if not len(texts):
            return torch.zeros(0, self.info.dim)
        return F.normalize(self._texts(list(texts)), dim=-1).cpu()

    @abstractmethod
    def _images(self, pixels: Tensor) -> Tensor:
        """pixels: [B, 3, H, W] float32 on the device, B > 0 -> [B, N, Co] float32, of any length."""

    @abstractmethod
    def _texts(self, texts: list[str]) -> Tensor:
        """Q > 0 texts -> [Q, Co] float32 on the device, of any length."""


class Coca(DualEncoder):
    """CoCa (Yu et al. 2022) as a dual encoder: the contrastive embedding of an image, as `model.encode_image`.

    The captioning decoder and the 255 further tokens that it reads take no part.
    """

    def __init__(self, loaded: ModelWeights, image_size: int, device: torch.device) -> None:
        info = MethodInfo(
            method="coca",
            backbone=loaded.name,
            weights=loaded.label,
            weights_sha256=sha256_state(loaded.state, loaded.config),
            n_embeddings=1,
            dim=int(loaded.config["embed_dim"]),
            image_size=image_size,
            settings={},
        )
        model = build_model(loaded.config, loaded.state)
        fit_positions(model.visual, image_size // loaded.config["vision_cfg"]["patch_size"])
        super().__init__(info, model, device, loaded.mean, loaded.std)

    def _images(self, pixels: Tensor) -> Tensor:
        embeddings: Tensor = self.model.encode_image(pixels, normalize=False)
        return embeddings[:, None]

    def _texts(self, texts: list[str]) -> Tensor:
        tokens = import_open_clip().tokenize(texts, context_length=self.model.text.context_length)  # [Q, L]
        embeddings: Tensor = self.model.encode_text(tokens.to(self.device), normalize=False)
        return embeddings


def build_coca(request: MethodRequest) -> Coca:
    """Load a CoCa of open_clip.

    request.backbone: `coca_ViT-B-32` or `coca_ViT-L-14`, None for the latter, the paper's.
    request.weights: as `load_model_weights` takes them, None for those fine-tuned on COCO's captions.
    request.image_size: pixels a side, a multiple of the patch size; None for the model's own.

    Raises UsageError for an unknown name or size, WeightsError when the weights can't be had or don't fit.
    """
    name = COCA if request.backbone is None else request.backbone
    vision = model_config(name, ("coca",))["vision_cfg"]
    size = check_image_size(request.image_size, vision["image_size"], vision["patch_size"])
    return Coca(load_model_weights(name, request.weights, ("coca",), COCA_WEIGHTS), size, request.device)
