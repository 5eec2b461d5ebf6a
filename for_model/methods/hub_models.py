"""The models of the transformers library that FOR can use, from the hub, a folder or a seed.

No code of a repository is ever run, and weights are read from safetensors only.
"""

import contextlib
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from for_model.backbones.model_weights import download, random_state
from for_model.errors import UsageError, WeightsError
from for_model.tensor_files import sha256_state

log = logging.getLogger(__name__)

INSTALL = "make install-encoders"
_FILES = ["config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*.json", "vocab.txt"]


@dataclass(frozen=True)
class Family:
    """One kind of model.

    default: the hub's repository that is taken if none is named.
    config, model: the names of its classes in transformers.
    """

    default: str
    config: str
    model: str


FAMILIES = {
    "owlvit": Family("google/owlvit-base-patch16", "OwlViTConfig", "OwlViTForObjectDetection"),
    "owlv2": Family("google/owlv2-base-patch16-finetuned", "Owlv2Config", "Owlv2ForObjectDetection"),
    "blip2": Family("Salesforce/blip2-itm-vit-g-coco", "Blip2Config", "Blip2ForImageTextRetrieval"),
}


def _owl(image_size: int, patch_size: int, large: bool = False) -> dict[str, Any]:
    vision: dict[str, Any] = {"image_size": image_size, "patch_size": patch_size}
    if not large:  # the rest are the library's defaults
        return {"vision_config": vision}
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    return {"vision_config": {**vision, **sizes}, "text_config": text, "projection_dim": 768}


def _blip2(image_size: int) -> dict[str, Any]:
    qformer = {"vocab_size": 30523, "use_qformer_text_input": True}
    return {"vision_config": {"image_size": image_size}, "qformer_config": qformer}


# What the repositories' config.json say, for random weights, which are had without a hub.
PUBLISHED: dict[str, dict[str, dict[str, Any]]] = {
    "owlvit": {
        "google/owlvit-base-patch32": _owl(768, 32),
        "google/owlvit-base-patch16": _owl(768, 16),
        "google/owlvit-large-patch14": _owl(840, 14, large=True),
    },
    "owlv2": {
        "google/owlv2-base-patch16-finetuned": _owl(960, 16),
        "google/owlv2-large-patch14-finetuned": _owl(1008, 14, large=True),
    },
    "blip2": {"Salesforce/blip2-itm-vit-g": _blip2(224), "Salesforce/blip2-itm-vit-g-coco": _blip2(364)},
}


@dataclass(frozen=True)
class HubModel:
    """A model of the library and where it comes from.

    name: of the backbone.
    label: of its weights, for people.
    weights_sha256: hash of all parameters and of what shapes an embedding without being one.
    model: on the CPU, float32, in eval mode.
    folder: where its tokenizer's files lie; None for random weights.
    """

    name: str
    label: str
    weights_sha256: str
    model: Any
    folder: Path | None


def load_hub_model(method: str, backbone: str | None, weights: str | None) -> HubModel:
    """Find, read and check a model.

    method: a name of FAMILIES.
    backbone: a repository of the hub, None for the family's default.
    weights: None or `hub` for the repository's, downloaded on first use; a folder that holds what such a repository
        does (config.json, *.safetensors, and for BLIP-2 the tokenizer's files), whose name is the backbone's then if
        none is given; or `random`: the repository's architecture, see PUBLISHED, with weights from a seed.

    Raises UsageError for an unknown repository with random weights, WeightsError when packages or weights are missing,
    damaged or another model's.
    """
    if find_spec("transformers") is None:
        raise WeightsError(
            f"{method} needs transformers from PyPI: install it with `{INSTALL}`, "
            "or `pip install -r requirements-encoders.txt`"
        )
    import transformers

    transformers.utils.logging.set_verbosity_error()  # its reports say in many lines what an error of ours says in one
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    if weights == "random":
        return _random_model(method, backbone or FAMILIES[method].default)
    if weights in (None, "hub"):
        name, label = backbone or FAMILIES[method].default, "hub"
        folder = _fetch(name)
    else:
        folder = Path(str(weights)).expanduser()
        name, label = backbone or folder.name, folder.name
    model = _read_model(method, folder)
    for parameter, value in model.state_dict().items():
        if not torch.isfinite(value).all():
            raise WeightsError(f"{folder}: {parameter} holds values that are not finite; fetch or make it again")
    return HubModel(name, label, _sha256(model), model, folder)


def _read_model(method: str, folder: Path) -> Any:
    import transformers

    family = FAMILIES[method]
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise WeightsError(
            f"weights {str(folder)!r} of {method}: expected `hub`, `random`, or a folder with config.json and "
            f"*.safetensors; from a repository with only pytorch_model.bin, make one: {_convert(family)}"
        )
    with reading(folder, "its config.json"):
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if type(config).__name__ != family.config:
        raise WeightsError(f"{folder} holds a model of the type {config.model_type!r}: expected one for {method}")
    with reading(folder, "the model"):
        model, notes = getattr(transformers, family.model).from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # refused below, as what is missing
            output_loading_info=True,
        )
    unfit = sorted({*notes["missing_keys"], *(name for name, *_ in notes["mismatched_keys"])})
    if unfit:
        raise WeightsError(
            f"{folder}: {len(unfit)} tensors of {method} are missing or of another shape ({', '.join(unfit[:3])}); "
            "fetch or make it again"
        )
    if unused := notes["unexpected_keys"]:
        log.info("%s: %d tensors are of no use to %s", folder, len(unused), method)
    return model.eval()


@contextlib.contextmanager
def reading(folder: Path, what: str) -> Iterator[None]:
    """Turn whatever the library raises over a folder's files into one WeightsError."""
    try:
        yield
    except Exception as error:  # its own, and those of the readers of JSON and safetensors
        reason = " ".join(str(error).split())
        raise WeightsError(f"{folder}: {what} can't be read ({reason}); fetch or make it again") from error


def _convert(family: Family) -> str:
    return (
        f'python -c "from transformers import {family.model} as M; '
        f"M.from_pretrained('{family.default}').save_pretrained('FOLDER')\""
    )


def _fetch(repository: str) -> Path:
    """The folder of a repository of the hub, downloaded on first use."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        folder = Path(snapshot_download(repository, allow_patterns=_FILES, local_files_only=True))
        if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
            return folder
    except LocalEntryNotFoundError:
        pass
    advice = (
        f"give a folder as weights, with the files of https://huggingface.co/{repository} ({', '.join(_FILES)}), "
        "or `random` for a trial"
    )
    fetch = lambda: snapshot_download(repository, allow_patterns=_FILES)  # noqa: E731
    return download(repository, constants.ENDPOINT, advice, fetch)


def _random_model(method: str, repository: str) -> HubModel:
    import transformers

    known, family = PUBLISHED[method], FAMILIES[method]
    if repository not in known:
        raise UsageError(f"backbone {repository!r} with random weights: expected one of {', '.join(known)}")
    with torch.random.fork_rng(devices=[]):  # the library's start is thrown away, and shall not shift random numbers
        model = getattr(transformers, family.model)(getattr(transformers, family.config)(**known[repository]))
    model.load_state_dict(random_state(model.state_dict()))
    return HubModel(repository, "random", _sha256(model), model.eval(), None)


# What leaves no trace in the shapes of parameters; a config's other fields change with the library's version.
_SHAPING = ("hidden_act", "num_attention_heads", "layer_norm_eps", "image_size", "patch_size")


def _sha256(model: Any) -> str:
    parts = {name: getattr(model.config, name, None) for name in ("vision_config", "text_config", "qformer_config")}
    if parts["qformer_config"] is not None:
        del parts["text_config"]  # of the language model, which isn't there
    architecture = {
        part: {name: getattr(config, name) for name in _SHAPING if hasattr(config, name)}
        for part, config in parts.items()
        if config is not None
    }
    return sha256_state(model.state_dict(), {"type": model.config.model_type, **architecture})
