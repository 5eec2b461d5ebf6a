"""Backbones by name."""

import torch

from for_model.backbones.checkpoints import model_config, model_kind
from for_model.backbones.clip_resnet import load_backbone
from for_model.backbones.photo_packages import NAME as PHOTO_LITE
from for_model.backbones.protocol import ImageTextBackbone
from for_model.errors import UsageError


def load_any_backbone(
    name: str, weights: str | None = None, image_size: int | None = None, device: str | torch.device = "cpu"
) -> ImageTextBackbone:
    """Load a CLIP ResNet as `load_backbone` does, a CLIP ViT in the same way, see `vit.load_vit`, or `photo-lite`, see
    `photo_lite.load_photo_lite`."""
    if name == PHOTO_LITE:
        from for_model.backbones.photo_lite import load_photo_lite  # it builds on this module

        return load_photo_lite(weights, image_size, to_device(device))
    if model_kind(model_config(name)) == "vit":
        from for_model.backbones.clip_vit import load_vit  # it builds on this module

        return load_vit(name, weights, image_size, to_device(device))
    return load_backbone(name, weights, image_size, device)


def to_device(device: str | torch.device) -> torch.device:
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"unknown device {device!r}; expected `cpu`, `cuda` or `cuda:<number>`") from error
    if target.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device {device!r} was asked for, but no CUDA device is available; use `cpu`")
    return target
