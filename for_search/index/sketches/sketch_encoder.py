"""From embeddings to sketches, 32 numbers of 8 bits, and from a text's embedding to weights of these numbers.

Either trained (see `training`) or the first principal axes of the embeddings. It runs without torch.

Legend: R embeddings, Co joint width, D numbers of a sketch, H hidden units.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from for_model.errors import StoreError, WeightsError
from for_model.files import sha256_arrays, write_bytes

FORMAT = "for-sketch-encoder/1"
NUMBERS = 32  # of a sketch; fewer where embeddings are narrower
_LEVELS = 255
_CLIPPED = 0.1  # percent of a number's values that lie below, and above, its levels
_ABOUT = "for"  # the one key of the file's metadata, which safetensors writes in the order of a random hash
_BLOCK = 1 << 14

Floats = NDArray[np.float32]
TextSpace = tuple[str, str, int]


@dataclass(frozen=True, eq=False)
class SketchHead:
    """linear^T y + shift + out^T relu(hidden^T y + bias), made unit-norm where `unit` says so.

    linear: [Co, D] float32.
    shift: [D].
    hidden, bias, out: [Co, H], [H], [H, D]; H is 0 for a head that is linear.
    """

    linear: Floats
    shift: Floats
    hidden: Floats
    bias: Floats
    out: Floats
    unit: bool

    def __call__(self, rows: Floats) -> Floats:
        """[R, Co] -> [R, D] float32."""
        values = rows @ self.linear + self.shift + np.maximum(rows @ self.hidden + self.bias, 0) @ self.out
        if self.unit:
            values /= np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 1e-9)
        return np.asarray(values, np.float32)


@dataclass(frozen=True, eq=False)
class SketchEncoder:
    """Makes sketches of embeddings, and of a text's embedding the weights whose sum over a sketch's numbers scores it.

    image, text: the two modalities' heads.
    low, step: [D] float32; level l of a number stands for low + step * l.
    text_space: see `MethodInfo`; the embeddings' own.
    made_by: how, in a few words.
    """

    image: SketchHead
    text: SketchHead
    low: Floats
    step: Floats
    text_space: TextSpace
    made_by: str

    @property
    def n_numbers(self) -> int:
        """D."""
        return len(self.low)

    def sketches(self, rows: Floats) -> NDArray[np.uint8]:
        """[R, Co] -> [R, D]."""
        made = np.empty((len(rows), self.n_numbers), np.uint8)
        for start in range(0, len(rows), _BLOCK):
            levels = (self.image(rows[start : start + _BLOCK]) - self.low) / self.step
            made[start : start + _BLOCK] = np.clip(np.rint(levels), 0, _LEVELS)
        return made

    def scores(self, sketches: NDArray[np.uint8], text: Floats) -> Floats:
        """How well sketches match a text: [R, D] and its embedding [Co] -> [R] float32.

        Larger is better. What is added to all scores of a text alike is left out.
        """
        weights = self.text(text[None])[0]  # [D]
        return sketches.astype(np.float32) @ (self.step * weights) + np.float32(self.low @ weights)

    @cached_property
    def tensors(self) -> dict[str, Floats]:
        """All numbers that it is made of, by name."""
        heads = {"image": self.image, "text": self.text}
        parts = {
            f"{modality}.{field.name}": getattr(head, field.name)
            for modality, head in heads.items()
            for field in fields(SketchHead)
            if field.name != "unit"
        }
        return {**parts, "low": self.low, "step": self.step}

    @cached_property
    def sha256(self) -> str:
        """Of all that shapes a sketch; encoders of the same hash make the same sketches."""
        return _hash_of(self.tensors, self._shape)

    @property
    def _shape(self) -> list[object]:
        return [self.image.unit, self.text.unit, *self.text_space]

    def to_bytes(self) -> bytes:
        """The content of its file: safetensors, whose metadata hold its hash. The same encoder gives the same bytes."""
        about = {"format": FORMAT, "shape": self._shape, "made_by": self.made_by, "sha256": self.sha256}
        tensors = {name: np.ascontiguousarray(value) for name, value in self.tensors.items()}
        return save(tensors, {_ABOUT: json.dumps(about, sort_keys=True)})

    def write(self, path: Path) -> None:
        write_bytes(path, self.to_bytes())

    def check_space(self, text_space: TextSpace, whose: str) -> None:
        """Raise StoreError unless it is for embeddings of that space; `whose` they are stands in the message."""
        if text_space != self.text_space:
            (mine, weights, dim), (other, other_weights, other_dim) = self.text_space, text_space
            raise StoreError(
                f"the sketch encoder is for {mine} ({weights[:12]}, width {dim}), {whose} is of {other} "
                f"({other_weights[:12]}, width {other_dim}): train one for it"
            )


def read_sketch_encoder(path: Path) -> SketchEncoder:
    """The encoder in a file. Raises WeightsError, in one line, for one that is missing, damaged or something else."""
    if not path.is_file():
        raise WeightsError(f"no sketch encoder at {path}: give a file that `sketch-encoder` wrote")
    try:
        with safe_open(path, framework="np") as file:
            about = json.loads((file.metadata() or {}).get(_ABOUT, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path} is not readable as safetensors ({error}): make it again") from error
    if about.get("format") != FORMAT:
        raise WeightsError(f"{path} is of format {about.get('format')!r}, expected {FORMAT!r}: make it again")
    try:
        image_unit, text_unit, backbone, weights, dim = about["shape"]
        parts = {
            modality: {field.name: tensors[f"{modality}.{field.name}"] for field in fields(SketchHead)[:-1]}
            for modality in ("image", "text")
        }
        encoder = SketchEncoder(
            SketchHead(**parts["image"], unit=image_unit),
            SketchHead(**parts["text"], unit=text_unit),
            tensors["low"],
            tensors["step"],
            (backbone, weights, dim),
            about["made_by"],
        )
        sound = encoder.sha256 == about["sha256"]
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path} doesn't hold a sketch encoder ({error}): make it again") from error
    if not sound:
        raise WeightsError(f"{path} is damaged, its tensors differ from those that were written: make it again")
    return encoder


def scaled(image: SketchHead, text: SketchHead, rows: Floats, text_space: TextSpace, made_by: str) -> SketchEncoder:
    """The encoder of two heads, whose levels are spread over the values that some embeddings, [R, Co], have."""
    low, high = np.percentile(image(rows), [_CLIPPED, 100 - _CLIPPED], axis=0).astype(np.float32)
    step = np.maximum((high - low) / np.float32(_LEVELS), np.float32(1e-9))
    return SketchEncoder(image, text, low, step.astype(np.float32), text_space, made_by)


def principal_encoder(rows: Floats, text_space: TextSpace) -> SketchEncoder:
    """The encoder onto the first principal axes of some embeddings, [R, Co] float32; a text's head leaves out the mean.

    So a sketch's score for a text is, but for rounding and what lies across the axes, the inner product.
    """
    count = min(NUMBERS, rows.shape[1])
    mean = rows.mean(axis=0)
    _, vectors = np.linalg.eigh(np.cov((rows - mean).T.astype(np.float64)).reshape(rows.shape[1], -1))
    axes = np.ascontiguousarray(vectors[:, ::-1][:, :count], np.float32)
    image = linear_head(axes, -(mean @ axes))
    return scaled(image, linear_head(axes, np.zeros(count, np.float32)), rows, text_space, "principal axes")


def linear_head(linear: Floats, shift: Floats) -> SketchHead:
    """A head without hidden units."""
    hidden, out = np.zeros((len(linear), 0), np.float32), np.zeros((0, linear.shape[1]), np.float32)
    return SketchHead(linear, shift.astype(np.float32), hidden, out[:, 0], out, False)


def _hash_of(tensors: Mapping[str, Floats], shape: list[object]) -> str:
    arrays = ((name, np.ascontiguousarray(tensors[name], "<f4")) for name in sorted(tensors))
    return sha256_arrays(((name, "", value.shape, memoryview(value.tobytes())) for name, value in arrays), shape)
