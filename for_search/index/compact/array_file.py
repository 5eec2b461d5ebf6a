"""Arrays in a file, one after the other."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from for_model.files import atomic_path


def write_arrays(path: Path, *arrays: NDArray[Any]) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        for array in arrays:
            np.save(stream, array, allow_pickle=False)


def read_arrays(path: Path, *dtypes: type) -> list[NDArray[Any]] | None:
    """The arrays in a file, each of two dimensions and of its type; None when it isn't there, can't be read or hasn't
    such arrays."""
    try:
        with path.open("rb") as stream:
            arrays = [np.load(stream, allow_pickle=False) for _ in dtypes]
    except (OSError, ValueError, EOFError):
        return None
    fit = all(array.ndim == 2 and array.dtype == dtype for array, dtype in zip(arrays, dtypes, strict=True))
    return arrays if fit else None
