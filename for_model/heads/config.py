"""The settings of the heads that are trained."""

from dataclasses import dataclass
from typing import Literal, get_args

from for_model.errors import UsageError
from for_model.methods.registry import head_kinds

Freeze = Literal["none", "vo", "qkvo"]


@dataclass(frozen=True)
class SumSettings:
    """What shapes a SUM-CLIP head. The defaults are the paper's (Table 8).

    queries: N.  layers: L decoder layers, 0 allowed (Table 7).  heads, feedforward, dropout: of each, DETR's.
    freeze: which projections of the attention pool stay CLIP's (Table 4): `none`, `vo` or `qkvo`, all four.
    """

    queries: int = 50
    layers: int = 2
    heads: int = 8
    feedforward: int = 2048
    dropout: float = 0.1
    freeze: Freeze = "qkvo"

    def __post_init__(self) -> None:
        if self.queries < 1 or self.layers < 0 or self.heads < 1 or self.feedforward < 1 or not 0 <= self.dropout < 1:
            raise UsageError(
                f"got {self}; expected queries, heads and feedforward from 1, layers from 0, dropout in 0..1"
            )
        if self.freeze not in get_args(Freeze):
            raise UsageError(f"freeze is {self.freeze!r}; expected one of {', '.join(get_args(Freeze))}")


@dataclass(frozen=True)
class HeadConfig(SumSettings):
    """Which head is trained.

    kind: one of `head_kinds`, the methods whose head can be trained; the other settings shape `for` alone.
    """

    kind: str = "for"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in head_kinds():
            raise UsageError(f"head.kind is {self.kind!r}; expected one of {', '.join(head_kinds())}")
