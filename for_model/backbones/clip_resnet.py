"""An open_clip model cut in two: the trunk (pixels -> feature map X) and the attention pool (q, k, v, c); and its text
encoder. What heads and methods need of these, so that another pair of encoders can take their place, is in
`protocol.py`: `Pool` and `ImageTextBackbone`.

Shapes: B images, K cells of the feature map, N embeddings an image, Q texts, Ce backbone width, Co joint width.
Everything is frozen and in eval mode. A trainable head that reads X runs its queries through `AttentionPool.attend`,
which is differentiable with respect to them.
"""

import torch
from torch import Tensor

from for_model.backbones.attention_pool import AttentionPool
from for_model.backbones.model_weights import ModelWeights, load_model_weights, model_config
from for_model.backbones.open_clip_parts import OpenClipBackbone
from for_model.backbones.pixels import check_image_size, check_pixels
from for_model.devices import to_device

STRIDE = 32  # pixels a cell and side, of every CLIP ResNet


class ClipResnet(OpenClipBackbone):
    """A frozen CLIP ResNet with its text encoder, at one image size. Made by `load_clip_resnet`.

    pool: the attention pool.
    width: Ce, of the feature map.
    n_tokens: rows of X, which are its K cells.
    """

    def __init__(self, loaded: ModelWeights, image_size: int, device: torch.device) -> None:
        super().__init__(loaded, image_size, STRIDE, device)
        self.pool = AttentionPool(self.model.visual.attnpool, image_size // STRIDE).to(device).eval()
        self.width = self.pool.width
        self.n_tokens = self.n_cells

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        """The trunk: on CUDA in float16 (what CLIP's ResNets were trained in), elsewhere in float32.

        pixels: [B, 3, image_size, image_size] float32, as `preprocess` gives them.

        Returns X, [B, K, Ce] float32 on the backbone's device, cells row by row.
        Raises UsageError for another shape.
        """
        check_pixels(pixels, self.image_size)
        if not len(pixels):
            return torch.zeros(0, self.n_cells, self.width, device=self.device)
        visual = self.model.visual
        with torch.autocast(self.device.type, dtype=torch.float16, enabled=self.device.type == "cuda"):
            x = visual.stem(pixels.to(self.device, torch.float32))
            for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
                x = layer(x)  # [B, Ce, H / 32, W / 32] after the last
        return x.float().flatten(2).transpose(1, 2).contiguous()  # [B, K, Ce]


def load_clip_resnet(
    name: str, weights: str | None = None, image_size: int | None = None, device: str | torch.device = "cpu"
) -> ClipResnet:
    """Load a CLIP ResNet. See `load_backbone` for every backbone that can be named.

    name: `RN-mini`, or any open_clip model with a ResNet (`RN50`, `RN101`, `RN50x4`, `RN50x16`, `RN50x64`).
    weights: None for the model's default (`rn-mini`, the packaged file of RN-mini; `openai` for the others), a
        pretrained tag of open_clip, `random` (the same on every machine), or the path of a local file, see
        `tensor_files.read_weights`.
    image_size: pixels a side, a multiple of 32; None for the model's own. At another size the positional embedding is
        interpolated.
    device: where it computes.

    Raises UsageError for an unknown name, image size or device, WeightsError when the weights can't be had or don't
    fit.
    """
    config = model_config(name, ("resnet",))
    size = check_image_size(image_size, config["vision_cfg"]["image_size"], STRIDE)
    target = to_device(device)
    return ClipResnet(load_model_weights(name, weights), size, target)
