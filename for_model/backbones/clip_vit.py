"""A CLIP ViT of open_clip cut in two before its last block, so that every head of a CLIP ResNet runs on it.

    trunk   pixels -> patches, positions, all blocks but the last -> X, the class token and then the cells
    pool    the last block (its attention is q, k, v and c), the last LayerNorm, and the projection into the joint space

Shapes: B images, K cells, N embeddings an image, Ce width, Co joint width. X: [B, K + 1, Ce].
"""

from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from for_model.backbones.attention_pool import attend_tokens, check_tokens, interpolate_positions, packed_projections
from for_model.backbones.model_weights import ModelWeights, load_model_weights, model_config
from for_model.backbones.open_clip_parts import OpenClipBackbone
from for_model.backbones.pixels import check_image_size, check_pixels


class VitPool(nn.Module):
    """The last block of a CLIP ViT and what follows it, in the form of an attention pool; see `protocol.Pool`.

    The modules are the model's own, shared, not copied.

    visual: open_clip's `VisionTransformer`.
    grid: cells a side of the feature map, so K = grid * grid.
    """

    def __init__(self, visual: Any, grid: int) -> None:
        super().__init__()
        self.block = visual.transformer.resblocks[-1]
        self.ln_post = visual.ln_post
        self.proj: Tensor = visual.proj  # [Ce, Co]
        self.grid = grid
        self.width, self.dim = (int(n) for n in self.proj.shape)

    def cells(self, X: Tensor) -> Tensor:
        """X: [B, K + 1, Ce] -> [B, K, Ce], without the class token."""
        return X[:, 1:]

    def tokens(self, X: Tensor) -> Tensor:
        """X: [B, K + 1, Ce], returned as it is.

        The class token stands where a ResNet's mean token does, and the positions were added before the first block.
        Raises UsageError when K is not the pool's.
        """
        check_tokens(X, self.grid, extra=1)
        return X

    @overload
    def attend(self, queries: Tensor, tokens: Tensor, return_weights: Literal[False] = False) -> Tensor: ...

    @overload
    def attend(self, queries: Tensor, tokens: Tensor, return_weights: Literal[True]) -> tuple[Tensor, Tensor]: ...

    def attend(self, queries: Tensor, tokens: Tensor, return_weights: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """The last block for queries of one's own: they attend to the tokens, not to one another.

        queries: [B, N, Ce]; the class token among them gives CLIP's embedding.
        tokens: [B, K', Ce]; K' is free.
        return_weights: whether to return the attention weights as well.

        Returns Y [B, N, Co], not normalised; with `return_weights` also the attention weights [B, N, K'], averaged over
        the heads, each row summing to 1. Differentiable in both arguments.
        """
        asking, shown = self.block.ln_1(queries), self.block.ln_1(tokens)
        q, k, v = packed_projections(self.block.attn)
        Z, weights = attend_tokens(F.linear(asking, *q), shown, shown, k, v, self.block.attn.num_heads)
        x = queries + self.block.attn.out_proj(Z)  # [B, N, Ce]
        x = x + self.block.mlp(self.block.ln_2(x))
        Y = self._project_out(x)
        return (Y, weights.mean(dim=1)) if return_weights else Y

    def project(self, X: Tensor) -> Tensor:
        """Dense-CLIP: the value path of the last block for every cell.

        X: [B, K + 1, Ce], the class token and the cells.

        Returns [B, K, Co], not normalised.

        This is eq. 2's c(v(x)), and also MaskCLIP (Zhou et al. 2022, "Extract free dense labels from CLIP", [78] in the
        paper): the block's first LayerNorm, v, the attention's output projection, the last LayerNorm, the projection
        into the joint space. Left out are q and k, and with them the attention, the residual around it, and the MLP.
        (MaskCLIP's published code for ViTs adds the residual and the MLP again; eq. 2 has neither.)
        """
        _, _, v = packed_projections(self.block.attn)
        return self._project_out(self.block.attn.out_proj(F.linear(self.block.ln_1(self.cells(X)), *v)))

    def dense_and_whole(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """See `protocol.Pool`."""
        tokens = self.tokens(X)
        return self.project(X), self.attend(tokens[:, :1], tokens)

    def _project_out(self, x: Tensor) -> Tensor:
        projected: Tensor = self.ln_post(x) @ self.proj
        return projected


def fit_positions(visual: Any, grid: int) -> None:
    """Interpolate the positional embedding of open_clip's `VisionTransformer` for `grid` cells a side, in place."""
    positions = interpolate_positions(visual.positional_embedding.detach(), grid)  # [K + 1, Ce]
    visual.positional_embedding = nn.Parameter(positions, requires_grad=False)


class VitBackbone(OpenClipBackbone):
    """A frozen CLIP ViT with its text encoder, at one image size. Made by `load_vit`.

    pool: the last block.
    width: Ce, of the feature map.
    n_tokens: rows of X, K + 1: the class token and the cells.
    """

    def __init__(self, loaded: ModelWeights, image_size: int, device: torch.device) -> None:
        patch_size = int(loaded.config["vision_cfg"]["patch_size"])
        super().__init__(loaded, image_size, patch_size, device)
        visual, grid = self.model.visual, image_size // patch_size
        fit_positions(visual, grid)
        self.pool = VitPool(visual, grid)
        self.width = self.pool.width
        self.n_tokens = self.n_cells + 1

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        """The trunk: on CUDA in float16, elsewhere in float32.

        pixels: [B, 3, image_size, image_size] float32, as `preprocess` gives them.

        Returns X, [B, K + 1, Ce] float32 on the backbone's device, which is what goes into the last block: the class
        token, then the cells row by row.
        Raises UsageError for another shape.
        """
        check_pixels(pixels, self.image_size)
        if not len(pixels):
            return torch.zeros(0, self.n_tokens, self.width, device=self.device)
        visual = self.model.visual
        with torch.autocast(self.device.type, dtype=torch.float16, enabled=self.device.type == "cuda"):
            x = visual.conv1(pixels.to(self.device, torch.float32)).flatten(2).transpose(1, 2)  # [B, K, Ce]
            x = torch.cat([visual.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], dim=1)  # [B, K + 1, Ce]
            x = visual.ln_pre(x + visual.positional_embedding.to(x.dtype))
            for block in visual.transformer.resblocks[:-1]:
                x = block(x)
        features: Tensor = x.float()
        return features


def load_vit(name: str, weights: str | None, image_size: int | None, device: torch.device) -> VitBackbone:
    """Load a CLIP ViT of open_clip.

    name: `ViT-B-32`, `ViT-B-16`, `ViT-L-14`, ...: see `model_weights.model_names(("vit",))`. With a file as weights the
        name says which activation it was trained with: OpenAI's are `ViT-B-32-quickgelu` and so on.
    weights: None for OpenAI's, a pretrained tag of open_clip, `random`, or the path of a file.
    image_size: pixels a side, a multiple of the patch size; None for the model's own. At another size the positional
        embedding is interpolated.
    device: where it computes.

    Raises UsageError for an unknown name or size, WeightsError when the weights can't be had or don't fit.
    """
    vision = model_config(name, ("vit",))["vision_cfg"]
    size = check_image_size(image_size, vision["image_size"], vision["patch_size"])
    return VitBackbone(load_model_weights(name, weights), size, device)
