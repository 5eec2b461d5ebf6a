"""The heads that are trained, and their files.

A head file is safetensors with float16 parameters and, as metadata, all that it takes to use it: the head's kind and
settings, the backbone that it belongs to, how it was trained, and a hash of all this and of the parameters, which is
compared before they are used.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from for_model.backbones.protocol import ImageTextBackbone, Pool
from for_model.errors import UsageError, WeightsError
from for_model.files import sha256_file
from for_model.heads.protocol import TrainableHead
from for_model.lazy_import import imported
from for_model.methods.head_config import HeadConfig
from for_model.methods.packaged_heads import is_packaged
from for_model.methods.registry import METHODS
from for_model.settings import parse
from for_model.tensor_files import fit_state_dict, read_weights, sha256_state, to_half, write_weights

FORMAT = "for-head/1"
_SHA256 = "sha256"  # among the metadata


def make_head(config: HeadConfig, pool: Pool) -> TrainableHead:
    """A head before training, as its method's entry in the registry makes it, initialised from torch's random numbers.

    config: which head, and its settings.
    pool: of the backbone that it is for.
    """
    head: TrainableHead = imported(METHODS[config.kind].head)(config, pool)
    return head


@dataclass(frozen=True)
class HeadFile:
    """What a head file says of itself, read without its parameters.

    path: of the file.
    method: as it is called in tables, `for`, `for-sup`, `for-pl`, `ft-clip`, `ft-dense-clip`.
    config: which head it is, and its settings.
    backbone: its name, weights, weights_sha256 and image_size.
    training: the settings that it was trained with.
    """

    path: Path
    method: str
    config: HeadConfig
    backbone: dict[str, Any]
    training: dict[str, Any]


def write_head(
    path: Path,
    head: nn.Module,
    config: HeadConfig,
    method: str,
    backbone: ImageTextBackbone,
    training: dict[str, Any],
) -> None:
    """Write a head file, atomically.

    path: of the file, which is replaced if it is there.
    head: the trained head, whose state dict is written as float16.
    config: which head it is, and its settings.
    method: as it is called in tables.
    backbone: that it was trained on.
    training: the settings that it was trained with, values that JSON can hold.

    Raises WeightsError for a parameter that float16 can't hold.
    """
    metadata = {
        "format": FORMAT,
        "method": method,
        "head": json.dumps(config.model_dump()),
        "backbone": json.dumps(
            {
                "name": backbone.name,
                "weights": backbone.weights,
                "weights_sha256": backbone.weights_sha256,
                "image_size": backbone.image_size,
            }
        ),
        "training": json.dumps(training),
    }
    state = {name: to_half(name, value) for name, value in head.state_dict().items()}
    write_weights(path, state, {**metadata, _SHA256: sha256_state(state, metadata)})


def read_head_file(path: Path) -> HeadFile:
    """What a head file says of itself. Raises WeightsError when it is missing, damaged or something else."""
    if not path.is_file():
        raise WeightsError(f"there is no head file {path}: train one with `python -m for_model train CONFIG`")
    try:
        is_packaged(path)
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise WeightsError(
                f"{path} is no head file of the format {FORMAT}: give a head.safetensors that train wrote"
            )
        return HeadFile(
            path,
            metadata["method"],
            parse(HeadConfig, json.loads(metadata["head"])),
            json.loads(metadata["backbone"]),
            json.loads(metadata["training"]),
        )
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, UsageError) as error:
        raise WeightsError(f"{path} is damaged ({error}): train the head again") from error


def load_head(file: HeadFile, backbone: ImageTextBackbone) -> TrainableHead:
    """The trained head, float32, on the backbone's device, frozen and in eval mode.

    Raises WeightsError when the backbone isn't the one that it was trained on, or the file is damaged.
    """
    if file.backbone["weights_sha256"] != backbone.weights_sha256:
        raise WeightsError(
            f"{file.path} was trained on {file.backbone['name']} with the weights {file.backbone['weights']!r}, not on "
            f"this {backbone.name} with {backbone.weights!r}: load that backbone, or train a head for this one"
        )
    with torch.random.fork_rng(devices=[]):  # the first weights are replaced; drawing them must not change later draws
        head = make_head(file.config, backbone.pool)
    state = _sound_state(file.path)
    head.load_state_dict(fit_state_dict(state, head.state_dict(), str(file.path)))
    return head.to(backbone.device).requires_grad_(False).eval()


def check_head_file(path: Path) -> None:
    """Raise WeightsError unless a head file says what it is, carries its hash, and every byte is as it was written."""
    read_head_file(path)
    with safe_open(path, "pt") as file:
        if _SHA256 not in (file.metadata() or {}) and not is_packaged(path):
            raise WeightsError(
                f"{path} carries no hash, so its bytes can't be checked: it was trained before heads did"
            )
    _sound_state(path)


def _sound_state(path: Path) -> dict[str, Tensor]:
    """The parameters of a head file. Raises WeightsError when they aren't those that were written."""
    state, metadata = read_weights(path, vocab_size=0)
    expected = metadata.pop(_SHA256, None)
    halves = {name: to_half(name, value) for name, value in state.items()}
    if expected is not None and sha256_state(halves, metadata) != expected:
        raise WeightsError(f"{path} is damaged, its hash is another than when it was written: train the head again")
    return state


@dataclass(frozen=True)
class LoadedHead:
    """A trained head as a `Head`.

    module: the trained head itself.
    name: of the method, as it is called in tables.
    sha256: of its file, which its settings hold as `head_sha256`.
    """

    module: TrainableHead
    name: str
    sha256: str

    @property
    def settings(self) -> dict[str, Any]:
        return {**self.module.settings, "head_sha256": self.sha256}

    def n_embeddings(self, n_cells: int) -> int:
        return self.module.n_embeddings(n_cells)

    def __call__(self, X: Tensor, pool: Pool) -> Tensor:
        embeddings: Tensor = self.module(X, pool)
        return embeddings

    def evidence(self, X: Tensor, pool: Pool) -> Tensor:
        """See `Head.evidence`."""
        return self.module.evidence(X, pool)


def open_head(file: HeadFile, backbone: ImageTextBackbone) -> LoadedHead:
    """`load_head`, ready for a method."""
    return LoadedHead(load_head(file, backbone), file.method, sha256_file(file.path))
