"""The text encoder of the weights that come with FOR, in NumPy: importing torch takes longer than a whole search.

The same numbers as open_clip's model gives, to float tolerance, from the same file; its tokenizer is open_clip's own.
Shapes: Q texts, L tokens, W the text tower's width, Co joint width.
"""

import builtins
import functools
import importlib.util
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from for_model.files import CONFIG_DIR, WEIGHTS_DIR, sha256_arrays
from for_model.prompts import PROMPTS, fill_prompts, prompted_name

log = logging.getLogger(__name__)

_ROWS, _VALUES = "text.token_embedding.rows", "text.token_embedding.values"  # see `tensor_files`, the compact form
_TOKEN_EMBEDDING = "token_embedding.weight"
_BATCH = 32  # texts at a time, so that what is computed of them fits a processor's cache
_LAYER_NORM_EPSILON = 1e-5
_ERF = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)  # Abramowitz and Stegun, 7.1.26


class NumpyText:
    """A text tower. Made by `numpy_text`. Threads may share one.

    config: the model's, as open_clip writes it, with `quick_gelu`.
    state: its tensors by name, float32.
    """

    prompts = PROMPTS

    def __init__(self, config: Mapping[str, Any], state: Mapping[str, NDArray[np.float32]]) -> None:
        self._heads, self._layers = int(config["text_cfg"]["heads"]), int(config["text_cfg"]["layers"])
        self._context_length = int(config["text_cfg"]["context_length"])
        self._activation = _quick_gelu if config["quick_gelu"] else _gelu
        self._state = {name: value for name, value in state.items() if not name.startswith("visual.")}
        self.dim = int(config["embed_dim"])

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Q texts, as they stand -> [Q, Co], unit-norm; [0, Co] for none."""
        parts = [np.empty((0, self.dim), np.float32)]
        parts += [self._encode(texts[start : start + _BATCH]) for start in range(0, len(texts), _BATCH)]
        return np.concatenate(parts)

    def embed_names(self, names: Sequence[str]) -> NDArray[np.float32]:
        """[C, Co] of C names, as `for_model.text.embed_categories` gives them."""
        rows = self.encode_texts([text for name in names for text in fill_prompts(name, self.prompts)])
        return _unit(rows.reshape(len(names), len(self.prompts), self.dim).mean(axis=1))

    def embed_query(self, text: str) -> NDArray[np.float32]:
        """[Co] of a free text that isn't empty, as `for_model.text.embed_queries` gives it."""
        name = prompted_name(text)
        return self.embed_names([name])[0] if name is not None else self.encode_texts([text.strip()])[0]

    def _encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        tokens = [self._tokens(text) for text in texts]
        ends = np.array([len(each) for each in tokens]) - 1  # [Q]
        length = int(ends.max()) + 1
        ids = np.array([[*each, *[0] * (length - len(each))] for each in tokens])  # [Q, L]; nothing attends to padding
        state = self._state
        x = state[_TOKEN_EMBEDDING][ids] + state["positional_embedding"][:length]  # [Q, L, W]
        for layer in range(self._layers):
            block = f"transformer.resblocks.{layer}"
            x = x + self._attention(self._norm(x, f"{block}.ln_1"), f"{block}.attn")
            hidden = self._activation(self._linear(self._norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc"))
            x = x + self._linear(hidden, f"{block}.mlp.c_proj")
        last = self._norm(x[np.arange(len(x)), ends], "ln_final")  # [Q, W]
        return _unit(last @ state["text_projection"])  # [Q, Co]

    def _tokens(self, text: str) -> list[int]:
        """A text's token ids from the start to the first end; one of more tokens than the model takes is cut."""
        tokenizer = _tokenizer()
        start, end = tokenizer.sot_token_id, tokenizer.eot_token_id
        tokens: list[int] = [start, *tokenizer.encode(text)[: self._context_length - 2], end]
        return tokens[: tokens.index(end) + 1]  # a text may hold the end as a word, and open_clip then stops there

    def _linear(self, x: NDArray[np.float32], name: str) -> NDArray[np.float32]:
        return x @ self._state[f"{name}.weight"].T + self._state[f"{name}.bias"]

    def _norm(self, x: NDArray[np.float32], name: str) -> NDArray[np.float32]:
        """Layer normalisation over the last axis."""
        centred = x - x.mean(axis=-1, keepdims=True)
        deviation = np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + _LAYER_NORM_EPSILON)
        return centred / deviation * self._state[f"{name}.weight"] + self._state[f"{name}.bias"]

    def _attention(self, x: NDArray[np.float32], name: str) -> NDArray[np.float32]:
        """Each token sees itself and what comes before it: [Q, L, W] -> [Q, L, W]."""
        n_texts, length, width = x.shape
        packed = x @ self._state[f"{name}.in_proj_weight"].T + self._state[f"{name}.in_proj_bias"]
        # Each of q, k and v is [Q, heads, L, W / heads].
        q, k, v = packed.reshape(n_texts, length, 3, self._heads, -1).transpose(2, 0, 3, 1, 4)
        logits = q @ k.transpose(0, 1, 3, 2) / np.float32((width // self._heads) ** 0.5)
        logits += np.triu(np.full((length, length), -np.inf, np.float32), 1)
        shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        return self._linear((shares @ v).transpose(0, 2, 1, 3).reshape(x.shape), f"{name}.out_proj")


@functools.cache
def numpy_text(backbone: str, weights_sha256: str, dim: int) -> NumpyText | None:
    """The text encoder of a text space, see `MethodInfo.text_space`.

    None unless it is that of weights that come with FOR, by their hash: other weights need torch.
    """
    config_path, weights_path = CONFIG_DIR / f"{backbone}.json", WEIGHTS_DIR / f"{backbone.lower()}.safetensors"
    if backbone not in (path.stem for path in CONFIG_DIR.glob("*.json")) or not weights_path.is_file():
        return None
    try:
        config = {"quick_gelu": False, **json.loads(config_path.read_bytes())}
        state, metadata = _read(weights_path, config["text_cfg"]["vocab_size"])
        config["quick_gelu"] = metadata.get("quick_gelu", str(config["quick_gelu"])).lower() == "true"
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        log.debug("%s can't be read without torch: %s", weights_path, error)
        return None
    arrays = ((name, "torch.float32", value.shape, value.data) for name, value in sorted(state.items()))
    same = dim == config["embed_dim"] and weights_sha256 == sha256_arrays(arrays, config)
    return NumpyText(config, state) if same else None


def _read(path: Path, vocab_size: int) -> tuple[dict[str, NDArray[np.float32]], dict[str, str]]:
    """The state of a file in the compact form, and the file's metadata."""
    with safe_open(path, framework="np") as file:
        state = {name: np.asarray(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
        metadata = dict(file.metadata() or {})
    rows, values = state.pop(_ROWS), state.pop(_VALUES)
    embedding = np.zeros((vocab_size, values.shape[1]), np.float32)
    embedding[rows] = values
    floats = {name: np.asarray(value, np.float32) for name, value in state.items()}
    return {**floats, _TOKEN_EMBEDDING: embedding}, metadata


def _unit(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), np.float32(1e-12))


def _quick_gelu(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return x / (1 + np.exp(np.float32(-1.702) * x))


def _gelu(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """x times the normal distribution's share below it.

    NumPy has no error function, and SciPy takes longer to import than a text to encode: a polynomial stands for it that
    is right to 1.5e-7.
    """
    z = np.abs(x) * np.float32(0.5**0.5)
    t = 1 / (1 + np.float32(0.3275911) * z)
    polynomial = np.float32(_ERF[-1]) * t
    for coefficient in _ERF[-2::-1]:
        polynomial += np.float32(coefficient)
        polynomial *= t
    z *= -z
    polynomial *= np.exp(z, out=z)
    error_function = np.copysign(1 - polynomial, x)
    error_function += 1
    error_function *= x
    error_function *= np.float32(0.5)
    return error_function


class _NoTorch(ModuleType):
    """Stands for torch in the tokenizer's module, which needs it for the type of a batch alone."""

    def __getattr__(self, name: str) -> Any:
        return None


@functools.cache
def _tokenizer() -> Any:
    """open_clip's tokenizer of CLIP, from its own file, without importing torch or the rest of open_clip."""
    found = importlib.util.find_spec("open_clip")
    assert found is not None
    assert found.submodule_search_locations is not None
    path = Path(found.submodule_search_locations[0]) / "tokenizer.py"
    module = ModuleType("open_clip_tokenizer")
    module.__file__ = str(path)

    def import_but_torch(name: str, *arguments: Any) -> Any:
        return _NoTorch(name) if name == "torch" else builtins.__import__(name, *arguments)

    module.__dict__["__builtins__"] = {**vars(builtins), "__import__": import_but_torch}
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), module.__dict__)
    return module.__dict__["SimpleTokenizer"]()
