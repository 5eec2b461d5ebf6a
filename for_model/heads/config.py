"""The settings of the heads that are trained."""

from typing import Literal

from for_model.settings import Count, Fraction, PositiveCount, Settings

Freeze = Literal["none", "vo", "qkvo"]
Kind = Literal["for", "ft-clip", "ft-dense-clip"]


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

    kind: `for`, `ft-clip` or `ft-dense-clip`; the other settings shape `for` alone.
    """

    kind: Kind = "for"
