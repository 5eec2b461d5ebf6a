"""An open_clip model cut in two: the trunk (pixels -> feature map X) and the attention pool (q, k, v, c); and its text
encoder. What heads and methods need of these, so that another pair of encoders can take their place: `Pool` and
`ImageTextBackbone`.

Shapes: B images, K cells of the feature map, N embeddings an image, Q texts, Ce backbone width, Co joint width.
Everything is frozen and in eval mode. A trainable head that reads X runs its queries through `AttentionPool.attend`,
which is differentiable with respect to them.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, overload

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from for_model.checkpoints import Checkpoint, build_model, load_checkpoint, model_config, model_kind
from for_model.errors import UsageError
from for_model.photo_packages import NAME as PHOTO_LITE
from for_model.pixels import check_image_size, check_pixels, squash
from for_model.prompts import PROMPTS
from for_model.weights_io import sha256_state

STRIDE = 32  # pixels a cell and side, of every CLIP ResNet


class Pool(Protocol):
    """What a head needs after the trunk. Differentiable in queries, tokens and X; see `AttentionPool`, which is CLIP's.

    grid: cells a side, so K = grid * grid.  width: Ce.
    """

    grid: int
    width: int

    def cells(self, X: Tensor) -> Tensor:
        """X -> [B, K, Ce], without the class token that a ViT's X begins with."""
        ...

    def tokens(self, X: Tensor) -> Tensor:
        """X -> [B, K + 1, Ce], the mean or class token first. Raises UsageError when K is not the pool's."""
        ...

    @overload
    def attend(self, queries: Tensor, tokens: Tensor, return_weights: Literal[False] = False) -> Tensor: ...

    @overload
    def attend(self, queries: Tensor, tokens: Tensor, return_weights: Literal[True]) -> tuple[Tensor, Tensor]: ...

    def attend(self, queries: Tensor, tokens: Tensor, return_weights: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """queries: [B, N, Ce], tokens: [B, K', Ce] -> [B, N, Co], not normalised; and the weights [B, N, K']."""
        ...

    def project(self, X: Tensor) -> Tensor:
        """X -> [B, K, Co], each cell on its own, not normalised (eq. 2)."""
        ...


class ImageTextBackbone(Protocol):
    """What a method needs: a trunk, a pool and a text encoder with one joint space, frozen, at one image size.

    name: as `load_backbone` takes it.  weights: where they come from, for people.
    weights_sha256: hash of all that shapes an embedding.  image_size: pixels a side.  n_cells: K.  width: Ce.  dim: Co.
    n_tokens: rows of X: K, or K + 1 for a ViT, whose X begins with its class token. Where docstrings say X: [B, K, Ce],
        such an X is meant as well.
    prompts: the templates that names are put into.  logit_scale: the factor of a cosine in a softmax over texts.
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
        """pixels: [B, 3, image_size, image_size] as `preprocess` gives -> X: [B, n_tokens, Ce] float32, on the
        device."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Q texts, as they stand -> [Q, Co] float32 on the device, unit-norm."""
        ...


class AttentionPool(nn.Module):
    """The last layer of a CLIP ResNet, taken apart: q, k, v, c and the positional embedding of `AttentionPool2d`.

    The projections are the model's own modules, shared, not copied. grid: cells a side, so K = grid * grid.
    """

    positional_embedding: Tensor

    def __init__(self, attnpool: Any, grid: int) -> None:
        super().__init__()
        self.q_proj: nn.Linear = attnpool.q_proj
        self.k_proj: nn.Linear = attnpool.k_proj
        self.v_proj: nn.Linear = attnpool.v_proj
        self.c_proj: nn.Linear = attnpool.c_proj
        self.num_heads = int(attnpool.num_heads)
        self.grid = grid
        self.width = self.v_proj.in_features
        embedding = interpolate_positions(attnpool.positional_embedding.detach(), grid)
        self.register_buffer("positional_embedding", embedding, persistent=False)  # [K + 1, Ce]

    def with_projections(self, own: Mapping[str, nn.Module]) -> "AttentionPool":
        """The same pool with other modules in place of some projections, `{"v_proj": module}`; all else is shared."""
        mixed = copy.copy(self)
        mixed._modules = {**self._modules, **own}
        return mixed

    def cells(self, X: Tensor) -> Tensor:
        """X itself: a ResNet has no class token."""
        return X

    def tokens(self, X: Tensor) -> Tensor:
        """X: [B, K, Ce], a feature map -> [B, K + 1, Ce]: the mean of its cells, then the cells, positions added.

        Raises UsageError when K is not the pool's.
        """
        check_tokens(X, self.grid)
        X = torch.cat([X.mean(dim=1, keepdim=True), X], dim=1)  # [B, K + 1, Ce]
        return X + self.positional_embedding.to(X.dtype)

    @overload
    def attend(self, queries: Tensor, tokens: Tensor, return_weights: Literal[False] = False) -> Tensor: ...

    @overload
    def attend(self, queries: Tensor, tokens: Tensor, return_weights: Literal[True]) -> tuple[Tensor, Tensor]: ...

    def attend(self, queries: Tensor, tokens: Tensor, return_weights: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Multi-head attention: Y = c(Z), Z = softmax(q(queries) k(tokens)^T) v(tokens) (eq. 1 and 3).

        queries: [B, N, Ce], what goes into q.  tokens: [B, K', Ce], what goes into k and v; K' is free.
        Returns Y [B, N, Co], not normalised; with `return_weights` also the attention weights [B, N, K'], averaged
        over the heads, each row summing to 1. Differentiable in both arguments.
        """
        Z, weights = attention(self.q_proj(queries), self.k_proj(tokens), self.v_proj(tokens), self.num_heads)
        Y: Tensor = self.c_proj(Z)  # [B, N, Co]
        return (Y, weights.mean(dim=1)) if return_weights else Y

    def project(self, X: Tensor) -> Tensor:
        """y_i = c(v(x_i)) for every cell (eq. 2). X: [B, K, Ce] -> [B, K, Co], not normalised; no positions, no
        attention."""
        return self.c_proj(self.v_proj(X))


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Multi-head attention, its projections made: Z = softmax(q k^T) v (eq. 1 and 3).

    q: [B, N, Ce].  k, v: [B, K', Ce]. Returns Z [B, N, Ce] and the weights [B, heads, N, K'], rows summing to 1.
    """
    # Written out: on a CPU in bfloat16 the fused kernel takes longer, and a few queries need little memory.
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))  # [B, heads, N or K', Ce / heads]
    weights = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(dim=-1)
    return (weights.to(v.dtype) @ v).transpose(1, 2).flatten(2), weights


def check_tokens(X: Tensor, grid: int, extra: int = 0) -> None:
    """Raise UsageError when X isn't a feature map [B, grid * grid + extra, Ce].

    extra: class tokens, before the cells.
    """
    if X.ndim != 3 or X.shape[1] != grid * grid + extra:
        raise UsageError(
            f"got features {list(X.shape)}, expected [B, {grid * grid + extra}, Ce]; "
            f"load the backbone with the image size that the features were made at"
        )


def interpolate_positions(embedding: Tensor, grid: int) -> Tensor:
    """Fit a positional embedding to another grid.

    embedding: [G * G + 1, Ce], the mean token's first, then the cells row by row.  grid: cells a side wanted.
    Returns [grid * grid + 1, Ce], the cells' part interpolated bicubically, the mean token's kept. At the embedding's
    own grid it is returned as it is.
    """
    own = math.isqrt(len(embedding) - 1)
    if own == grid:
        return embedding
    cells = embedding[1:].reshape(1, own, own, -1).permute(0, 3, 1, 2)  # [1, Ce, G, G]
    # antialias matters below the own grid only: plain bicubic would skip cells there
    cells = F.interpolate(cells.float(), size=(grid, grid), mode="bicubic", align_corners=False, antialias=grid < own)
    cells = cells.permute(0, 2, 3, 1).reshape(grid * grid, -1).to(embedding.dtype)
    return torch.cat([embedding[:1], cells])


class OpenClipBackbone:
    """What `Backbone` and `vit.VitBackbone` share: names, pixels and the text encoder of a frozen CLIP of open_clip's,
    at one image size.

    name: `RN-mini`, `RN50`, ...  weights: where they come from (`openai`, `random`, a file's name), for people.
    weights_sha256: hash of all parameters, positions at the model's own size, and of the architecture.
    image_size: pixels a side.  n_cells: K.  dim: Co.
    logit_scale: the factor of a cosine in the contrastive softmax (100 for OpenAI's models).
    mean, std: of the RGB channels, for images in 0..1.  prompts: prompts.PROMPTS.  device.  model: open_clip's own.
    """

    def __init__(self, checkpoint: Checkpoint, image_size: int, stride: int, device: torch.device) -> None:
        self.name = checkpoint.name
        self.weights = checkpoint.label
        self.weights_sha256 = sha256_state(checkpoint.state, checkpoint.config)
        self.model = build_model(checkpoint.config, checkpoint.state).to(device).requires_grad_(False)
        self.image_size = image_size
        self.device = device
        self.mean, self.std = checkpoint.mean, checkpoint.std
        self.prompts: tuple[str, ...] = PROMPTS
        self.n_cells = (image_size // stride) ** 2
        self.dim = int(checkpoint.config["embed_dim"])
        self.logit_scale = float(self.model.logit_scale.exp())

    def preprocess(self, image: Image.Image) -> Tensor:
        """An image -> [3, image_size, image_size] float32 on the CPU, normalised; see `squash`."""
        return squash(image, self.image_size, self.mean, self.std)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Q texts -> [Q, L] int64 on the CPU, L the model's context length; a text of more tokens is cut at the end."""
        from open_clip.tokenizer import tokenize

        return tokenize(list(texts), context_length=self.model.context_length)

    @torch.no_grad()
    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """tokens: [Q, L] int64 as `tokenize` gives -> [Q, Co] float32 on the backbone's device, unit-norm."""
        if not len(tokens):
            return torch.zeros(0, self.dim, device=self.device)
        return text_embeddings(self.model, tokens.to(self.device))

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Q texts, as they stand -> [Q, Co] float32 on the backbone's device, unit-norm."""
        return self.encode_tokens(self.tokenize(texts)) if len(texts) else torch.zeros(0, self.dim, device=self.device)


class Backbone(OpenClipBackbone):
    """A frozen CLIP ResNet with its text encoder, at one image size. Made by `load_backbone`.

    pool: the attention pool.  width: Ce.  n_tokens: K.
    """

    def __init__(self, checkpoint: Checkpoint, image_size: int, device: torch.device) -> None:
        super().__init__(checkpoint, image_size, STRIDE, device)
        self.pool = AttentionPool(self.model.visual.attnpool, image_size // STRIDE).to(device).eval()
        self.width = self.pool.width
        self.n_tokens = self.n_cells

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        """The trunk. pixels: [B, 3, image_size, image_size] as `preprocess` gives -> X: [B, K, Ce] float32 on the
        backbone's device, cells row by row.

        On CUDA the trunk runs in float16 (what CLIP's ResNets were trained in), elsewhere in float32.
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


def text_embeddings(model: Any, tokens: Tensor) -> Tensor:
    """An open_clip model's text tower. tokens: [Q, L] int64, at least one text -> [Q, Co] float32, unit-norm.

    Differentiable. As `encode_text`, without the padding, which nothing attends to.
    """
    end = tokens.argmax(dim=-1)  # the end-of-text token has the highest id
    # The attention is causal, so what follows the last text's end can be cut: of 77 tokens about 12 are left.
    length = int(end.max()) + 1
    x = model.token_embedding(tokens[:, :length]) + model.positional_embedding[:length]  # [Q, L, width]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    x = x[torch.arange(len(x), device=x.device), end] @ model.text_projection  # [Q, Co]
    return F.normalize(x.float(), dim=-1)


def load_backbone(
    name: str, weights: str | None = None, image_size: int | None = None, device: str | torch.device = "cpu"
) -> Backbone:
    """Load a CLIP ResNet. See `load_any_backbone` for every backbone that can be named.

    name: `RN-mini`, or any open_clip model with a ResNet (`RN50`, `RN101`, `RN50x4`, `RN50x16`, `RN50x64`).
    weights: None for the model's default (`rn-mini`, the packaged file of RN-mini; `openai` for the others), a
        pretrained tag of open_clip, `random` (the same on every machine), or the path of a local file, see
        `weights_io.read_weights`.
    image_size: pixels a side, a multiple of 32; None for the model's own. At another size the positional embedding is
        interpolated.
    Raises UsageError for an unknown name, image size or device, WeightsError when the weights can't be had or don't
    fit.
    """
    config = model_config(name, ("resnet",))
    size = check_image_size(image_size, config["vision_cfg"]["image_size"], STRIDE)
    target = to_device(device)
    return Backbone(load_checkpoint(name, weights), size, target)


def load_any_backbone(
    name: str, weights: str | None = None, image_size: int | None = None, device: str | torch.device = "cpu"
) -> ImageTextBackbone:
    """Load a CLIP ResNet as `load_backbone` does, a CLIP ViT in the same way, see `vit.load_vit`, or `photo-lite`, see
    `photo_lite.load_photo_lite`."""
    if name == PHOTO_LITE:
        from for_model.photo_lite import load_photo_lite  # it builds on this module

        return load_photo_lite(weights, image_size, to_device(device))
    if model_kind(model_config(name)) == "vit":
        from for_model.vit import load_vit  # it builds on this module

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
