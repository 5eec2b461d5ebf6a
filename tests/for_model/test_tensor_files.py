"""Weights files: the same content is the same bytes."""

import hashlib
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from for_model.tensor_files import write_weights

METADATA = {f"key {number}": 'ä\u2028\t\x01\\ "quoted"' * number for number in range(12)}


def test_the_same_weights_are_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    """safetensors itself writes metadata in an order that is drawn anew for each file and in each process."""
    written = set()
    for given in (METADATA, dict(reversed(METADATA.items())), METADATA):
        tensors = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor([1, 2], dtype=torch.int32)}
        write_weights(tmp_path / "weights.safetensors", tensors, given)
        written.add(hashlib.sha256((tmp_path / "weights.safetensors").read_bytes()).hexdigest())
    assert written == {"7e6e48697f35d4abd087175dc9b7bf9348d8a33102b5ae7c636cab479ca7c0ad"}


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    tensors = {"b": torch.arange(6.0).reshape(2, 3).T, "a": torch.tensor([1, 2], dtype=torch.int32)}
    write_weights(path, tensors, METADATA)
    found = load_file(path)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], value) for name, value in tensors.items())
    with safe_open(path, "pt") as file:
        assert file.metadata() == METADATA
    write_weights(path, tensors, {})
    assert torch.equal(load_file(path)["b"], tensors["b"])
