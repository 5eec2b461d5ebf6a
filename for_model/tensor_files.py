"""Weights on disk: reading them without ever running code from the file, the compact form of RN-mini, and hashes.

The compact form (RN-mini's packaged file) is a state dict as safetensors with two changes: floating tensors are
float16, and the token embedding [V, width] is stored as only the rows that pretraining has trained,
`text.token_embedding.rows` int32 [V'] and `text.token_embedding.values` float16 [V', width]. All other rows are zeros.
"""

import json
import logging
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from for_model.errors import WeightsError
from for_model.files import atomic_path, sha256_arrays

log = logging.getLogger(__name__)

TOKEN_EMBEDDING = "token_embedding.weight"
PACKED_ROWS = "text.token_embedding.rows"
PACKED_VALUES = "text.token_embedding.values"

# BatchNorm's step counters: they shape no embedding, and files may leave them out.
_COUNTER = "num_batches_tracked"
# What OpenAI's archives hold beside parameters.
_NOT_PARAMETERS = ("input_resolution", "context_length", "vocab_size")

_CONVERT = (
    'python -c "import torch, safetensors.torch as s; s.save_file({{k: v.float().contiguous() for k, v in '
    "torch.jit.load('{name}', map_location='cpu').state_dict().items()}}, '{stem}.safetensors')\""
)


def pack_state_dict(state: Mapping[str, Tensor], used_rows: Iterable[int]) -> dict[str, Tensor]:
    """Turn a CLIP model's state dict into the compact form.

    state: names as in `model.state_dict()`; must hold `token_embedding.weight` [V, width].
    used_rows: the tokens to keep, in any order, each once or more.

    Returns tensors on the CPU.
    Raises WeightsError for a row outside 0..V-1, a missing token embedding, or a value that
    float16 can't hold. The untrained rows' values are lost: `unpack_state_dict` gives zeros.
    """
    if TOKEN_EMBEDDING not in state:
        raise WeightsError(f"got a state dict without {TOKEN_EMBEDDING!r}; expected that of an open_clip CLIP model")
    embedding = state[TOKEN_EMBEDDING].detach().cpu()
    rows = torch.tensor(sorted(set(used_rows)), dtype=torch.int64)
    if len(rows) and not 0 <= int(rows[0]) <= int(rows[-1]) < len(embedding):
        raise WeightsError(
            f"token rows {int(rows[0])}..{int(rows[-1])} don't fit a vocabulary of {len(embedding)}; "
            "give the ids of the tokenizer that the model was trained with"
        )
    packed = {PACKED_ROWS: rows.to(torch.int32), PACKED_VALUES: to_half(TOKEN_EMBEDDING, embedding[rows])}
    for name, value in state.items():
        if name == TOKEN_EMBEDDING or name.endswith(_COUNTER):
            continue
        packed[name] = to_half(name, value) if value.is_floating_point() else value.detach().cpu().contiguous()
    return packed


def unpack_state_dict(packed: Mapping[str, Tensor], vocab_size: int) -> dict[str, Tensor]:
    """Undo `pack_state_dict`: a float32 state dict whose token embedding is [vocab_size, width] again.

    Raises WeightsError when the rows don't fit the values or the vocabulary.
    """
    if PACKED_ROWS not in packed or PACKED_VALUES not in packed:
        raise WeightsError(f"got weights without {PACKED_ROWS!r} and {PACKED_VALUES!r}; expected the compact form")
    rows, values = packed[PACKED_ROWS].to(torch.int64), packed[PACKED_VALUES].float()
    if rows.ndim != 1 or values.ndim != 2 or len(rows) != len(values):
        raise WeightsError(
            f"token embedding: got rows {list(rows.shape)} and values {list(values.shape)}, "
            "expected [V'] and [V', width]; the file is damaged, fetch or make it again"
        )
    if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < vocab_size:
        raise WeightsError(
            f"token rows {int(rows.min())}..{int(rows.max())} don't fit the model's vocabulary of {vocab_size}; "
            "use the weights with the model that they were made for"
        )
    state = {name: _to_float32(value) for name, value in packed.items() if name not in (PACKED_ROWS, PACKED_VALUES)}
    embedding = torch.zeros(vocab_size, values.shape[1])
    embedding[rows] = values
    state[TOKEN_EMBEDDING] = embedding
    return state


def write_weights(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors as safetensors, atomically; equal tensors and metadata give equal bytes.

    path: of the file.
    tensors: by name.
    metadata: the provenance (commit, command, seed, device, ...).
    """
    with atomic_path(path) as temporary:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, temporary, {**metadata})
        _sort_metadata(temporary)


def _sort_metadata(path: Path) -> None:
    """Sort a safetensors file's metadata by key, in place: safetensors writes them in the order of a random hash.

    The file is 8 bytes that hold the header's length, the header as JSON, padded with spaces, and the tensors.
    """
    with path.open("r+b") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= length, "JSON's shortest form is what safetensors writes"
        stream.seek(8)
        stream.write(text.ljust(length))


def read_weights(path: Path, vocab_size: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a state dict from a local file: safetensors (plain or compact), or a PyTorch file of tensors only.

    path: of the file.
    vocab_size: V, the model's, for the compact form.

    Returns the state, floating tensors as float32 on the CPU, and the file's metadata (empty but for safetensors).
    A checkpoint's `state_dict` is taken out and a leading `module.` of its names is dropped.
    Raises WeightsError for a file that is missing, damaged, or would need code of its own to be run.
    """
    if not path.is_file():
        raise WeightsError(f"no weights at {path}; give the path of a .safetensors, .pt or .bin file")
    metadata: dict[str, str] = {}
    if path.suffix == ".safetensors":
        state, metadata = _read_safetensors(path)
    else:
        state = _read_torch(path)
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    for name in _NOT_PARAMETERS:
        state.pop(name, None)
    if PACKED_ROWS in state:
        return unpack_state_dict(state, vocab_size), metadata
    return {name: _to_float32(value) for name, value in state.items()}, metadata


def fit_state_dict(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Check that `state` has the names and shapes of `expected`, and complete it with BatchNorm's counters.

    state: the weights, by name.
    expected: a state dict of the model, of which only names, shapes and dtypes matter.
    source: where the weights come from, for the message.

    Returns a new dict with exactly the names of `expected`.
    Raises WeightsError naming what doesn't fit.
    """
    fitted = dict(state)
    for name, value in expected.items():
        if name.endswith(_COUNTER) and name not in fitted:
            fitted[name] = torch.zeros(value.shape, dtype=value.dtype)
        if name in fitted and fitted[name].ndim != value.ndim and fitted[name].numel() == value.numel() == 1:
            fitted[name] = fitted[name].reshape(value.shape)  # logit_scale is a scalar in some files, [1] in others
    missing = sorted(expected.keys() - fitted.keys())
    unexpected = sorted(fitted.keys() - expected.keys())
    if missing or unexpected:
        raise WeightsError(
            f"{source} doesn't fit the model: {len(missing)} tensors missing{_some(missing)}, "
            f"{len(unexpected)} unexpected{_some(unexpected)}; name the backbone that the weights were made for"
        )
    for name, value in expected.items():
        if fitted[name].shape != value.shape:
            raise WeightsError(
                f"{source} doesn't fit the model: {name} is {list(fitted[name].shape)}, expected {list(value.shape)}; "
                "name the backbone that the weights were made for"
            )
    return fitted


def sha256_state(state: Mapping[str, Tensor], architecture: Mapping[str, Any]) -> str:
    """A hash of everything that shapes an embedding. The same weights give the same hash on any device.

    state: the tensors, of which names, dtypes, shapes and bytes are hashed, sorted by name; BatchNorm's counters are
        left out.
    architecture: what leaves no trace in a state dict, such as activation functions and attention heads.
    """
    kept = {name: state[name].detach().cpu().contiguous() for name in sorted(state) if not name.endswith(_COUNTER)}
    return sha256_arrays(
        (
            (name, str(value.dtype), value.shape, value.reshape(-1).view(torch.uint8).numpy().data)
            for name, value in kept.items()
        ),
        architecture,
    )


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is not readable as safetensors ({error}); fetch or make it again") from error


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} holds more than tensors, and loading it could run code from the file; "
            "save its state dict as .safetensors and give that"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        if "TorchScript" in str(error):
            raise WeightsError(
                f"{path} is a TorchScript archive, which holds code; expected tensors only. If you trust it, convert "
                f"it once and give the new file: {_CONVERT.format(name=path.name, stem=path.stem)}"
            ) from error
        raise WeightsError(f"{path} is not readable as PyTorch weights ({error}); fetch or make it again") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path} holds no state dict; expected a dict of names and tensors, or one in `state_dict`")
    return state


def _to_float32(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


def to_half(name: str, value: Tensor) -> Tensor:
    """A tensor as float16 on the CPU.

    name: of the tensor, for the message.
    value: of any floating dtype.

    Raises WeightsError for values that float16 can't hold.
    """
    half = value.detach().cpu().to(torch.float16).contiguous()
    if not torch.isfinite(half).all():
        raise WeightsError(f"{name} holds values that are not finite in float16; expected at most 65504 in size")
    return half


def _some(names: list[str]) -> str:
    return f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""
