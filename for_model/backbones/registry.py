"""Backbones by name: the one place where a kind of backbone is added.

Entries name functions as `"module:function"`, so that only the module of the backbone that is loaded is imported.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from for_model.backbones import photo_packages
from for_model.backbones.protocol import ImageTextBackbone
from for_model.devices import to_device
from for_model.errors import UsageError
from for_model.lazy_import import imported


@dataclass(frozen=True)
class BackboneEntry:
    """One kind of backbone.

    kind: for people.
    names: the function that lists the names of its backbones, itself or as `"module:function"`.
    load: the function that loads one from its name, weights, image size and device, which are those of
        `load_backbone`, itself or as `"module:function"`.
    """

    kind: str
    names: str | Callable[[], Sequence[str]]
    load: str | Callable[[str, str | None, int | None, torch.device], ImageTextBackbone]


BACKBONES: dict[str, BackboneEntry] = {
    entry.kind: entry
    for entry in (
        BackboneEntry(
            "CLIP ResNet",
            names="for_model.backbones.model_weights:resnet_names",
            load="for_model.backbones.clip_resnet:load_clip_resnet",
        ),
        BackboneEntry(
            "CLIP ViT",
            names="for_model.backbones.model_weights:vit_names",
            load="for_model.backbones.clip_vit:load_vit",
        ),
        BackboneEntry(
            "photo-lite",
            names=lambda: [photo_packages.NAME],
            load="for_model.backbones.photo_lite:load_photo_lite",
        ),
    )
}


def load_backbone(
    name: str,
    weights: str | None = None,
    image_size: int | None = None,
    device: str | torch.device = "cpu",
) -> ImageTextBackbone:
    """Load the backbone of a name.

    name: `RN-mini`, `photo-lite`, or a CLIP ResNet or ViT of open_clip (`RN50`, `ViT-B-32`, ...).
    weights: a pretrained tag of open_clip, `random`, or the path of a file; None for the backbone's own.
    image_size: pixels a side, a multiple of the trunk's stride; None for the backbone's own.
    device: where it computes.

    Raises UsageError for an unknown name, image size or device, WeightsError when the weights can't be had or don't
    fit.
    """
    known: list[str] = []
    for entry in BACKBONES.values():
        names = imported(entry.names)()
        if name in names:
            backbone: ImageTextBackbone = imported(entry.load)(name, weights, image_size, to_device(device))
            return backbone
        known += names
    raise UsageError(f"unknown backbone {name!r}; expected one of {', '.join(known)}")
