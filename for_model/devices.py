"""Where tensors are computed."""

import torch

from for_model.errors import UsageError


def to_device(device: str | torch.device) -> torch.device:
    """The device of that name. Raises UsageError for a name that torch doesn't know or a GPU that isn't there."""
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"unknown device {device!r}; expected `cpu`, `cuda` or `cuda:<number>`") from error
    if target.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device {device!r} was asked for, but no CUDA device is available; use `cpu`")
    return target
