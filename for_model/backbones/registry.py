"""Backbones by name."""

import torch

from for_model.backbones.checkpoints import model_config, model_kind
from for_model.backbones.clip_resnet import load_clip_resnet
from for_model.backbones.photo_packages import NAME as PHOTO_LITE
from for_model.backbones.protocol import ImageTextBackbone
from for_model.devices import to_device


def load_backbone(
    name: str, weights: str | None = None, image_size: int | None = None, device: str | torch.device = "cpu"
) -> ImageTextBackbone:
    """Load a CLIP ResNet as `load_clip_resnet` does, a CLIP ViT as `load_vit`, or `photo-lite` as `load_photo_lite`."""
    if name == PHOTO_LITE:
        from for_model.backbones.photo_lite import load_photo_lite  # it builds on this module

        return load_photo_lite(weights, image_size, to_device(device))
    if model_kind(model_config(name)) == "vit":
        from for_model.backbones.clip_vit import load_vit  # it builds on this module

        return load_vit(name, weights, image_size, to_device(device))
    return load_clip_resnet(name, weights, image_size, device)
