"""A training's checkpoint: what is learnt, the optimizer's state and how far it has come, in one safetensors file.

Its tensors are `model.NAME` and, for what the optimizer keeps of a parameter, `optimizer.KIND.NAME` (KIND is Adam's
`step`, `exp_avg` or `exp_avg_sq`); its metadata are the format and the progress as JSON. A training that is restored
goes on to the same weights, bit by bit, as one that was never interrupted.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from for_model.errors import UsageError
from for_model.tensor_files import write_weights

FORMAT = "for-checkpoint/1"


def save_checkpoint(
    path: Path, state: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, progress: Mapping[str, Any]
) -> None:
    """Write a checkpoint, atomically.

    state: by name, the live parameters that the optimizer steps, and buffers, if there are any.
    optimizer: of which the state of the tensors in `state` is kept; its rates and other settings are not.
    progress: values that JSON can hold, floats to the last bit.
    """
    tensors = {f"model.{name}": value for name, value in state.items()}
    for name, parameter in state.items():
        for kind, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{kind}.{name}"] = torch.as_tensor(value)
    write_weights(path, tensors, {"format": FORMAT, "progress": json.dumps(progress)})


@torch.no_grad()
def restore_checkpoint(
    path: Path, state: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> dict[str, Any] | None:
    """Put a checkpoint's values into the live tensors and the optimizer, in place.

    state, optimizer: as `save_checkpoint` was given them.
    Returns the progress; None when there is no checkpoint at `path`, and then nothing is changed.
    Raises UsageError for a checkpoint that is damaged, of another format or of another model.
    """
    if not path.exists():
        return None
    tensors, progress = _read(path)
    model = _part(tensors, "model")
    if {name: value.shape for name, value in model.items()} != {name: value.shape for name, value in state.items()}:
        raise UsageError(f"{path} is of another model: delete it to train from the start")
    for name, value in model.items():
        state[name].copy_(value)
    stepped = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    position = {id(parameter): index for index, parameter in enumerate(stepped)}
    kept: dict[int, dict[str, Tensor]] = {}
    for key, value in _part(tensors, "optimizer").items():
        kind, _, name = key.partition(".")
        kept.setdefault(position[id(state[name])], {})[kind] = value
    # The optimizer puts each value on the device that it wants it on.
    optimizer.load_state_dict({"state": kept, "param_groups": optimizer.state_dict()["param_groups"]})
    return progress


def read_model(path: Path) -> dict[str, Tensor]:
    """The parameters and buffers in a checkpoint, on the CPU. Raises UsageError as `restore_checkpoint` does."""
    return _part(_read(path)[0], "model")


def _part(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    start = f"{part}."
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path} is damaged ({error}): delete it to train from the start") from error
    found = metadata.get("format")
    if found != FORMAT:
        raise UsageError(
            f"{path} is a checkpoint of the format {found!r}, expected {FORMAT!r}: delete it to train from the start"
        )
    return tensors, json.loads(metadata["progress"])
