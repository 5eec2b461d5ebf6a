"""Weights files: the same content is the same bytes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from for_model.tensor_files import write_weights
from tests.helpers.paths import REPOSITORY

METADATA = {f"key {number}": 'ä\u2028\t\x01\\ "quoted"' * number for number in range(12)}
WRITE = """
import json, sys
from pathlib import Path
import torch
from for_model.tensor_files import write_weights
tensors = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor([1, 2], dtype=torch.int32)}
write_weights(Path(sys.argv[1]), tensors, json.loads(sys.argv[2]))
"""


def test_the_same_weights_are_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    written = []
    for seed in ("1", "2"):
        path = tmp_path / f"{seed}.safetensors"
        given = dict(reversed(METADATA.items())) if seed == "2" else METADATA
        arguments = [sys.executable, "-c", WRITE, str(path), json.dumps(given)]
        subprocess.run(arguments, cwd=REPOSITORY, env={**os.environ, "PYTHONHASHSEED": seed}, check=True)
        written.append(path.read_bytes())
    assert written[0] == written[1]


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
