"""Methods by name: those made of a backbone and a head (`clip`, `dense-clip`, `cluster-clip`, and those of a trained
head), and the other dual encoders.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from for_model.backbones.checkpoints import WEIGHTS_DIR
from for_model.backbones.protocol import ImageTextBackbone
from for_model.backbones.registry import load_backbone
from for_model.errors import UsageError, WeightsError
from for_model.heads.clip import ClipHead
from for_model.heads.cluster import ClusterEngine, ClusterHead
from for_model.heads.dense import DenseHead
from for_model.heads.head_files import open_head, read_head_file
from for_model.heads.protocol import Head
from for_model.methods.clip_method import ClipMethod
from for_model.methods.dual_encoders import DUAL_ENCODERS, build_dual_encoder
from for_model.methods.protocol import Method


@dataclass(frozen=True)
class HeadOptions:
    """What a head may be built from. n_cells: K.  clusters: N of Cluster-CLIP, None for the default."""

    n_cells: int
    clusters: int | None = None
    cluster_engine: ClusterEngine = "batched"


def default_clusters(n_cells: int) -> int:
    """N of Cluster-CLIP: 8 up to the 49 cells of a 224-pixel image, else 50, the paper's for its 196."""
    return 8 if n_cells <= 49 else 50


def _cluster_head(options: HeadOptions) -> Head:
    clusters = default_clusters(options.n_cells) if options.clusters is None else options.clusters
    return ClusterHead(clusters, engine=options.cluster_engine)


METHODS: Mapping[str, Callable[[HeadOptions], Head]] = {
    "clip": lambda options: ClipHead(),
    "dense-clip": lambda options: DenseHead(),
    "cluster-clip": _cluster_head,
}
TRAINED = ("ft-clip", "ft-dense-clip", "for-sup", "for-pl", "for")
HEAD_SUFFIX = ".safetensors"
DEFAULT_BACKBONE = "RN-mini"


def parse_method(method: str) -> tuple[str, int | None]:
    """`cluster-clip:25` -> (`cluster-clip`, 25); `clip` -> (`clip`, None); `for`, `coca`, a head's path -> (it, None).

    Raises UsageError naming what there is.
    """
    if method.endswith(HEAD_SUFFIX) or method in ("for", *DUAL_ENCODERS):
        return method, None
    name, colon, count = method.partition(":")
    if name in TRAINED:
        raise UsageError(
            f"method {method!r} is trained, and none comes with FOR: give the path of a head.safetensors, see "
            "`python -m for_model train --help`"
        )
    if name not in METHODS:
        valid = ", ".join([*METHODS, "for", *DUAL_ENCODERS, "the path of a head.safetensors"])
        raise UsageError(f"unknown method {method!r}; expected one of {valid}")
    if not colon:
        return name, None
    if name != "cluster-clip" or not (count.isascii() and count.isdigit()) or int(count) < 1:
        raise UsageError(f"method {method!r}: only cluster-clip takes a count, a whole number from 1: cluster-clip:25")
    return name, int(count)


def packaged_head(backbone: str) -> Path:
    """The file of the FOR head that comes with FOR for a backbone. Raises UsageError when there is none."""
    path = WEIGHTS_DIR / f"{backbone.lower()}-for{HEAD_SUFFIX}"
    if not path.is_file():
        raise UsageError(
            f"no head of FOR comes with {backbone}, only with {DEFAULT_BACKBONE}: train one "
            "(`python -m for_model train --help`) and give the path of its head.safetensors"
        )
    return path


def build_method(
    method: str,
    backbone: str | None = None,
    weights: str | None = None,
    *,
    image_size: int | None = None,
    clusters: int | None = None,
    device: str | torch.device | None = None,
    cluster_engine: ClusterEngine = "batched",
    loaded: ImageTextBackbone | None = None,
) -> Method:
    """Load a backbone and put a head on it, or load another dual encoder.

    method: a name of METHODS; `cluster-clip:25` is `cluster-clip` with clusters=25; `for`, the head that comes with
        RN-mini; the path of a head.safetensors; or a name of DUAL_ENCODERS.
    backbone, weights, image_size: see `backbone.load_backbone`, and for the DUAL_ENCODERS `build_dual_encoder`.
        None for what a head's file says, else for RN-mini or the dual encoder's own, and its defaults.
    clusters: N of cluster-clip, None for `default_clusters`.  device: None for `cuda` if there is one, else `cpu`.
    cluster_engine: `batched` or `reference`, see `heads.ClusterHead`.
    loaded: put the head on this backbone, which is what the arguments would load, so that several methods share it in
        memory; nothing to a dual encoder.
    Raises UsageError for arguments that make no sense (before any weights are read), WeightsError for weights that
    can't be had or belong to another backbone.
    """
    name, count = parse_method(method)
    if count is not None and clusters not in (None, count):
        raise UsageError(f"method {method!r} and clusters={clusters} disagree; give the count once")
    if clusters is not None and name != "cluster-clip":
        raise UsageError(f"clusters={clusters} makes no sense for {name!r}; only cluster-clip clusters")
    target = device if device is not None else ("cuda" if torch.cuda.is_available() else "cpu")
    if name in DUAL_ENCODERS:
        return build_dual_encoder(name, backbone, weights, image_size, target)
    if name not in METHODS:
        path = packaged_head(backbone or DEFAULT_BACKBONE) if name == "for" else Path(name).expanduser()
        return _trained_method(path, backbone, weights, image_size, target, loaded)
    count = clusters if count is None else count
    if name == "cluster-clip":
        ClusterHead(1 if count is None else count, engine=cluster_engine)  # a wrong setting shows before weights load
    loaded = loaded or load_backbone(backbone or DEFAULT_BACKBONE, weights, image_size, target)
    return ClipMethod(loaded, METHODS[name](HeadOptions(loaded.n_cells, count, cluster_engine)))


def _trained_method(
    path: Path,
    backbone: str | None,
    weights: str | None,
    image_size: int | None,
    device: str | torch.device,
    loaded: ImageTextBackbone | None,
) -> ClipMethod:
    file = read_head_file(path)
    name, recorded = file.backbone["name"], file.backbone["weights"]
    if backbone not in (None, name):
        raise UsageError(
            f"{path} was trained on {name}, not on {backbone}: leave --backbone out, or train another head"
        )
    if loaded is not None:
        return ClipMethod(loaded, open_head(file, loaded))
    default = None if recorded == name.lower() else recorded  # packaged weights are labelled so, not loaded by it
    try:
        loaded = load_backbone(name, weights or default, image_size or file.backbone["image_size"], device)
    except WeightsError as error:
        if weights is not None:
            raise
        raise WeightsError(
            f"{path} was trained on {name} with the weights {recorded!r}, which can't be loaded ({error}); "
            "if they are a file, give its path with --weights"
        ) from error
    return ClipMethod(loaded, open_head(file, loaded))
