"""What the frozen CLIPs of open_clip share, whatever their image encoder: names, pixels and the text encoder.

Shapes: Q texts, L tokens, Co joint width.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from for_model.backbones.model_weights import ModelWeights, build_model
from for_model.backbones.pixels import resize_to_square
from for_model.open_clip_import import import_open_clip
from for_model.prompts import PROMPTS
from for_model.tensor_files import sha256_state


class OpenClipBackbone:
    """What `ClipResnet` and `VitBackbone` share: names, pixels and the text encoder of a frozen CLIP, at one size.

    name: `RN-mini`, `RN50`, ...
    weights: where they come from (`openai`, `random`, a file's name), for people.
    weights_sha256: hash of all parameters, positions at the model's own size, and of the architecture.
    image_size: pixels a side.
    n_cells: K, cells of the feature map.
    dim: Co, of the joint space.
    logit_scale: the factor of a cosine in the contrastive softmax (100 for OpenAI's models).
    mean, std: of the RGB channels, for images in 0..1.
    prompts: the templates that names are put into, `prompts.PROMPTS`.
    device: where it computes.
    model: open_clip's own.
    """

    def __init__(self, loaded: ModelWeights, image_size: int, stride: int, device: torch.device) -> None:
        self.name = loaded.name
        self.weights = loaded.label
        self.weights_sha256 = sha256_state(loaded.state, loaded.config)
        self.model = build_model(loaded.config, loaded.state).to(device).requires_grad_(False)
        self.image_size = image_size
        self.device = device
        self.mean, self.std = loaded.mean, loaded.std
        self.prompts: tuple[str, ...] = PROMPTS
        self.n_cells = (image_size // stride) ** 2
        self.dim = int(loaded.config["embed_dim"])
        self.logit_scale = float(self.model.logit_scale.exp())

    def preprocess(self, image: Image.Image) -> Tensor:
        """An image -> [3, image_size, image_size] float32 on the CPU, normalised; see `resize_to_square`."""
        return resize_to_square(image, self.image_size, self.mean, self.std)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Q texts -> [Q, L] int64 on the CPU, L the model's context length; a text of more tokens is cut at the end."""
        return import_open_clip().tokenize(list(texts), context_length=self.model.context_length)

    @torch.no_grad()
    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """tokens: [Q, L] int64 as `tokenize` gives -> [Q, Co] float32 on the backbone's device, unit-norm."""
        if not len(tokens):
            return torch.zeros(0, self.dim, device=self.device)
        return text_embeddings(self.model, tokens.to(self.device))

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Q texts, as they stand -> [Q, Co] float32 on the backbone's device, unit-norm."""
        return self.encode_tokens(self.tokenize(texts)) if len(texts) else torch.zeros(0, self.dim, device=self.device)


def text_embeddings(model: Any, tokens: Tensor) -> Tensor:
    """An open_clip model's text tower: the same numbers as its `encode_text`, without computing the padding, which
    nothing attends to. Differentiable.

    model: open_clip's, of a text encoder of its own.
    tokens: [Q, L] int64, at least one text.

    Returns [Q, Co] float32, unit-norm.
    """
    end = tokens.argmax(dim=-1)  # the end-of-text token has the highest id
    # The attention is causal, so what follows the last text's end can be cut: of 77 tokens about 12 are left.
    length = int(end.max()) + 1
    x = model.token_embedding(tokens[:, :length]) + model.positional_embedding[:length]  # [Q, L, width]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    x = x[torch.arange(len(x), device=x.device), end] @ model.text_projection  # [Q, Co]
    return F.normalize(x.float(), dim=-1)
