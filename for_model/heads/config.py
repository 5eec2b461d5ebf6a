"""The settings of the heads that are trained."""

from typing import Literal

from pydantic import field_validator

from for_model.methods.registry import head_kinds
from for_model.settings import Count, Fraction, PositiveCount, Settings

Freeze = Literal["none", "vo", "qkvo"]


class SumSettings(Settings):
    """What shapes a SUM-CLIP head. The defaults are the paper's (Table 8).

    queries: N.
    layers: L decoder layers, 0 allowed (Table 7).
    heads: attention heads of each decoder layer, as in DETR.
    feedforward: hidden width of each decoder layer, as in DETR.
    dropout: of each decoder layer, from 0 to below 1.
    freeze: which projections of the attention pool stay CLIP's (Table 4): `none`, `vo` or `qkvo`, all four.
    """

    queries: PositiveCount = 50
    layers: Count = 2
    heads: PositiveCount = 8
    feedforward: PositiveCount = 2048
    dropout: Fraction = 0.1
    freeze: Freeze = "qkvo"


class HeadConfig(SumSettings):
    """Which head is trained.

    kind: one of `head_kinds`, the methods whose head can be trained; the other settings shape `for` alone.
    """

    kind: str = "for"

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        if kind not in head_kinds():
            raise ValueError(f"head.kind is {kind!r}; expected one of {', '.join(head_kinds())}")
        return kind
