"""The settings of the heads that are trained."""

from typing import Literal

from for_model.settings import Count, Fraction, NonNegative, Positive, PositiveCount, Settings

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


class PlusSettings(Settings):
    """What shapes a FOR+ head, besides N, which is `queries` as in SUM-CLIP: one seed an embedding.

    hidden: units of the ReLU layer in the trained part of the values; 0 for a linear map.
    sharpness: factor of the cosines in the softmax over the seeds.
    whole: how much of CLIP's own embedding is added to each of the N.
    root: take the signed square root of the pooled features before the trained part of the values.
    """

    queries: PositiveCount = 50
    hidden: Count = 512
    sharpness: Positive = 20.0
    whole: NonNegative = 0.5
    root: bool = False
