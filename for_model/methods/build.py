"""Building methods: a backbone and a head put together, or what a method's entry in the registry says instead."""

from collections.abc import Callable
from pathlib import Path

import torch

from for_model.backbones.protocol import ImageTextBackbone, Pool
from for_model.backbones.registry import load_backbone
from for_model.devices import to_device
from for_model.errors import UsageError, WeightsError
from for_model.heads.clip import ClipHead
from for_model.heads.cluster import ClusterEngine, ClusterHead, default_clusters
from for_model.heads.config import PlusSettings, SumSettings
from for_model.heads.dense import DenseHead
from for_model.heads.fine_tuned import FineTunedHead
from for_model.heads.for_plus import ForPlusHead
from for_model.heads.protocol import Head
from for_model.heads.sum_clip import SumHead
from for_model.lazy_import import imported
from for_model.methods.clip_method import ClipMethod
from for_model.methods.head_config import HeadConfig
from for_model.methods.head_files import open_head, read_head_file
from for_model.methods.packaged_heads import packaged_head
from for_model.methods.protocol import Method
from for_model.methods.registry import DEFAULT_BACKBONE, METHODS, MethodRequest, parse_method


def build_method(
    method: str,
    backbone: str | None = None,
    weights: str | None = None,
    *,
    image_size: int | None = None,
    device: str | torch.device | None = None,
    cluster_engine: ClusterEngine = "batched",
    loaded: ImageTextBackbone | None = None,
) -> Method:
    """Load a backbone and put a head on it, or load another dual encoder.

    method: a name of METHODS, for some with a count (`cluster-clip:25`), or the path of a head.safetensors.
    backbone: a name that `load_backbone` takes, or of a published model for a method that brings its own; None for
        what a head's file says, else for the method's default.
    weights, image_size: see `load_backbone`; None for the backbone's own, or for what a head's file says.
    device: None for `cuda` if there is one, else `cpu`.
    cluster_engine: the K-means of Cluster-CLIP, `batched` or `reference`, see `ClusterHead`.
    loaded: put the head on this backbone, which is what the arguments would load, so that several methods share it in
        memory; a method that brings its own model takes no notice of it.

    Raises UsageError for arguments that make no sense (before any weights are read), WeightsError for weights that
    can't be had or belong to another backbone.
    """
    name, count = parse_method(method)
    target = to_device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
    request = MethodRequest(name, backbone, weights, image_size, count, target, cluster_engine, loaded)
    if name not in METHODS:
        return method_of_head_file(Path(name).expanduser(), request)
    built: Method = imported(METHODS[name].build)(request)
    return built


def on_backbone(request: MethodRequest, make_head: Callable[[int], Head]) -> ClipMethod:
    """A head on the backbone of a request.

    request: says which backbone; its other choices are the head's.
    make_head: makes the head, from K, the number of cells of the backbone's feature map.
    """
    backbone = request.loaded or load_backbone(
        request.backbone or DEFAULT_BACKBONE, request.weights, request.image_size, request.device
    )
    return ClipMethod(backbone, make_head(backbone.n_cells))


def build_clip(request: MethodRequest) -> ClipMethod:
    """CLIP (eq. 1)."""
    return on_backbone(request, lambda n_cells: ClipHead())


def build_dense_clip(request: MethodRequest) -> ClipMethod:
    """Dense-CLIP (eq. 2)."""
    return on_backbone(request, lambda n_cells: DenseHead())


def build_cluster_clip(request: MethodRequest) -> ClipMethod:
    """Cluster-CLIP (section 3.1), of as many clusters as are asked for, else `default_clusters`."""
    clusters, engine = request.n_embeddings, request.cluster_engine
    ClusterHead(1 if clusters is None else clusters, engine=engine)  # a wrong setting shows before weights load
    return on_backbone(request, lambda n_cells: ClusterHead(clusters or default_clusters(n_cells), engine=engine))


def build_packaged(request: MethodRequest) -> ClipMethod:
    """A trained method whose head comes with FOR."""
    return method_of_head_file(packaged_head(request.backbone or DEFAULT_BACKBONE, request.name), request)


def method_of_head_file(path: Path, request: MethodRequest) -> ClipMethod:
    """The method of a trained head's file, on the backbone that the file names.

    Raises UsageError when the request names another backbone, WeightsError when the head or its backbone can't be had.
    """
    file = read_head_file(path)
    name, recorded = file.backbone["name"], file.backbone["weights"]
    if request.backbone not in (None, name):
        raise UsageError(
            f"{path} was trained on {name}, not on {request.backbone}: leave --backbone out, or train another head"
        )
    if request.loaded is not None:
        return ClipMethod(request.loaded, open_head(file, request.loaded))
    # Packaged weights are labelled by the backbone's name in lower case, and loaded by naming none.
    default = None if recorded == name.lower() else recorded
    size = request.image_size or file.backbone["image_size"]
    try:
        backbone = load_backbone(name, request.weights or default, size, request.device)
    except WeightsError as error:
        if request.weights is not None:
            raise
        raise WeightsError(
            f"{path} was trained on {name} with the weights {recorded!r}, which can't be loaded ({error}); "
            "if they are a file, give its path with --weights"
        ) from error
    return ClipMethod(backbone, open_head(file, backbone))


def make_for(config: HeadConfig, pool: Pool) -> SumHead:
    """SUM-CLIP before training, initialised from torch's random numbers.

    config: whose SumSettings shape it.
    pool: of the backbone that it is for.
    """
    return SumHead(config.of(SumSettings), pool)


def make_for_plus(config: HeadConfig, pool: Pool) -> ForPlusHead:
    """FOR+ before training, initialised from torch's random numbers.

    config: whose PlusSettings shape it.
    pool: of the backbone that it is for.
    """
    return ForPlusHead(config.of(PlusSettings), pool)


def make_ft_clip(config: HeadConfig, pool: Pool) -> FineTunedHead:
    """FT-CLIP before training.

    config: none of its settings shapes it.
    pool: of the backbone that it is for.
    """
    return FineTunedHead(ClipHead(), pool)


def make_ft_dense_clip(config: HeadConfig, pool: Pool) -> FineTunedHead:
    """FT-Dense-CLIP before training.

    config: none of its settings shapes it.
    pool: of the backbone that it is for.
    """
    return FineTunedHead(DenseHead(), pool)
