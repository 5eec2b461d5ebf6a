"""Methods by name: the one place where a method is added.

All that FOR needs to know of a method beyond its code stands in its entry: what it is called, how it is built, how many
embeddings it makes, how its evidence is put into words. Importing this module imports no torch: entries name functions
as `"module:function"`, which are imported when a method is built.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from for_model.errors import UsageError

if TYPE_CHECKING:
    import torch

    from for_model.backbones.protocol import ImageTextBackbone
    from for_model.heads.cluster import ClusterEngine
    from for_model.methods.protocol import Method

HEAD_SUFFIX = ".safetensors"
DEFAULT_BACKBONE = "RN-mini"
DEFAULT_METHOD = "for+"  # of the built-in indexes, the one that the page opens with


@dataclass(frozen=True)
class MethodRequest:
    """What `build_method` was asked for. None leaves a choice to the method.

    name: the method's, a key of METHODS.
    backbone: the name of a backbone, or of a published model for a method that brings its own.
    weights: a pretrained tag, `random`, or the path of a file.
    image_size: pixels a side.
    n_embeddings: N, embeddings an image, of a method that takes a count.
    device: where it shall compute.
    cluster_engine: which K-means Cluster-CLIP runs; both give the same clusters.
    loaded: a backbone that is in memory already, which is the one that is asked for.
    """

    name: str
    backbone: str | None
    weights: str | None
    image_size: int | None
    n_embeddings: int | None
    device: "torch.device"
    cluster_engine: "ClusterEngine" = "batched"
    loaded: "ImageTextBackbone | None" = None


@dataclass(frozen=True)
class MethodEntry:
    """One method.

    name: as commands, stores and results write it.
    title: as tables and the page write it.
    build: the function that makes the method from a MethodRequest, itself or as `"module:function"`; None for a method
        that only the file of a trained head makes.
    head: of a method whose head is trained, the function that makes the head before training from a HeadConfig and the
        backbone's pool, itself or as `"module:function"`; None for a method that needs no training.
    variant_of: of a trained method that is told from another only by the losses that it was trained with, that other.
    default_embeddings: N on the built-in backbone; None for a method that has no built-in index.
    counted: whether N is a choice, and so belongs to the method's title.
    evidence: what the shares of the cells are that `explain_images` gives, in words; None for a method that can't tell
        where its embeddings come from.
    """

    name: str
    title: str
    build: "str | Callable[[MethodRequest], Method] | None" = None
    head: str | Callable[..., Any] | None = None
    variant_of: str | None = None
    default_embeddings: int | None = None
    counted: bool = False
    evidence: str | None = None

    @property
    def trained(self) -> bool:
        """Whether it needs a trained head."""
        return self.head is not None

    @property
    def takes_count(self) -> bool:
        """Whether N can be given with the name, as in `cluster-clip:25`; a trained head has its own N."""
        return self.counted and not self.trained


def _and_variants(entry: MethodEntry) -> tuple[MethodEntry, ...]:
    """A trained method, after what it is when it learned from labels alone and from pseudo-labels alone (Table 1)."""
    only = replace(entry, build=None, default_embeddings=None, variant_of=entry.name)
    return (
        replace(only, name=f"{entry.name}-sup", title=f"{entry.title}, labels alone,"),
        replace(only, name=f"{entry.name}-pl", title=f"{entry.title}, pseudo-labels alone,"),
        entry,
    )


_CLIP = MethodEntry(
    "clip",
    "CLIP",
    build="for_model.methods.build:build_clip",
    default_embeddings=1,
    evidence="CLIP has one embedding for the whole image: what its attention pool weighs, whatever is asked for",
)
_DENSE_CLIP = MethodEntry(
    "dense-clip",
    "Dense-CLIP",
    build="for_model.methods.build:build_dense_clip",
    default_embeddings=25,
    evidence="the cell that the embedding is made of",
)

# In the order of the tables.
METHODS: dict[str, MethodEntry] = {
    entry.name: entry
    for entry in (
        _CLIP,
        _DENSE_CLIP,
        MethodEntry(
            "cluster-clip",
            "Cluster-CLIP",
            build="for_model.methods.build:build_cluster_clip",
            default_embeddings=8,
            counted=True,
            evidence="the cells of the embedding's cluster",
        ),
        MethodEntry("ft-clip", "FT-CLIP", head="for_model.methods.build:make_ft_clip", evidence=_CLIP.evidence),
        MethodEntry(
            "ft-dense-clip",
            "FT-Dense-CLIP",
            head="for_model.methods.build:make_ft_dense_clip",
            evidence=_DENSE_CLIP.evidence,
        ),
        *_and_variants(
            MethodEntry(
                "for",
                "FOR",
                build="for_model.methods.build:build_packaged",
                head="for_model.methods.build:make_for",
                default_embeddings=8,
                counted=True,
                evidence="the attention of the learnable query that made the embedding",
            )
        ),
        *_and_variants(
            MethodEntry(
                "for+",
                "FOR+",
                build="for_model.methods.build:build_packaged",
                head="for_model.methods.build:make_for_plus",
                default_embeddings=8,
                counted=True,
                evidence="the cells that are most like the seed of the embedding",
            )
        ),
        MethodEntry("coca", "CoCa", build="for_model.methods.dual_encoders:build_coca"),
        MethodEntry("owlvit", "OWL-ViT", build="for_model.methods.transformers_encoders:build_owl"),
        MethodEntry("owlv2", "OWLv2", build="for_model.methods.transformers_encoders:build_owl2"),
        MethodEntry("blip2", "BLIP-2", build="for_model.methods.transformers_encoders:build_blip2"),
    )
}


def parse_method(method: str) -> tuple[str, int | None]:
    """The name and the count of a method, as a command's argument gives them.

    `cluster-clip:25` is (`cluster-clip`, 25) and `clip` is (`clip`, None). The path of a trained head's file stands in
    place of a name.

    Raises UsageError that lists the methods, for a name that isn't one of them or can't be built from its name.
    """
    if method.endswith(HEAD_SUFFIX):
        return method, None
    name, colon, count = method.partition(":")
    entry = METHODS.get(name)
    if entry is None:
        raise UsageError(f"unknown method {method!r}; expected one of {', '.join([*buildable_methods(), _A_HEAD])}")
    if entry.build is None:
        raise UsageError(
            f"method {method!r} is trained, and none comes with FOR: give the path of a head.safetensors, see "
            "`python -m for_model train --help`"
        )
    if not colon:
        return name, None
    if not entry.takes_count or not (count.isascii() and count.isdigit()) or int(count) < 1:
        taking = [each.name for each in METHODS.values() if each.takes_count]
        raise UsageError(
            f"method {method!r}: only {' and '.join(taking)} takes a count, a whole number from 1: {taking[0]}:25"
        )
    return name, int(count)


_A_HEAD = "the path of a head.safetensors"


def buildable_methods() -> list[str]:
    """The names of the methods that can be built without a file of a trained head, in the order of the tables."""
    return [entry.name for entry in METHODS.values() if entry.build is not None]


def methods_help() -> str:
    """What can be given as a method, for a command's --help."""
    names = [name for entry in METHODS.values() if entry.build is not None for name in _ways_to_name(entry)]
    return f"{', '.join(names)}, or the path of a trained head.safetensors"


def _ways_to_name(entry: MethodEntry) -> list[str]:
    return [entry.name, f"{entry.name}:N"] if entry.takes_count else [entry.name]


def built_in_methods() -> dict[str, int]:
    """The methods of the built-in indexes and N of each; DEFAULT_METHOD is the first."""
    entries = sorted(METHODS.values(), key=lambda entry: entry.name != DEFAULT_METHOD)  # the others keep their order
    return {each.name: each.default_embeddings for each in entries if each.default_embeddings is not None}


def method_title(method: str, n_embeddings: int) -> str:
    """A method as tables and the page write it: `CLIP`, `Cluster-CLIP 8`, `FOR 8`.

    A method without an entry in METHODS is written by its name.

    method: its name.
    n_embeddings: N, embeddings an image, which is written where it is a choice.
    """
    entry = METHODS.get(method)
    if entry is None:
        return method
    return f"{entry.title} {n_embeddings}" if entry.counted else entry.title


def head_kinds() -> list[str]:
    """The methods whose head can be trained, as a training's `head.kind` names them."""
    return [entry.name for entry in METHODS.values() if entry.trained and entry.variant_of is None]


def trained_name(kind: str, labels: bool, pseudo_labels: bool) -> str:
    """The name of the method that a training makes, by the losses that it has: `for`, `for-sup`, `for-pl`, ...

    kind: one of `head_kinds`. One without variants keeps its name.
    labels: whether it learns from labels.
    pseudo_labels: whether it learns from pseudo-labels.
    """
    variant = kind if labels and pseudo_labels else f"{kind}-sup" if labels else f"{kind}-pl"
    return variant if variant in METHODS else kind
