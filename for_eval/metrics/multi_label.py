"""Multi-label classification from the same scores: which labels does an image have? (the paper's Table 10)

C are categories, M images; as in `retrieval`, columns are images in ascending order of their id. ZSL ranks the novel
labels alone, GZSL all of them.
"""

from dataclasses import dataclass

import numpy as np

from for_eval.metrics.retrieval import relevant_at_rank
from for_search.query.ranking import (
    BoolArray,
    Scores,
    average_precision_at_k,
    check_bool,
    check_k,
    check_matrices,
    top_k,
)


@dataclass(frozen=True)
class MultiLabelScores:
    """Scores over the M' images that have at least one of the labels.

    f1: the harmonic mean of the two below; 0 when both are 0.
    precision: of the labels predicted, the share that is right, over all images together.
    recall: of the labels that images have, the share that is predicted, over all images together.
    map: the mean over the labels with P > 0 of the average precision of ranking all M' images.
    n_images: M', how many images those are.
    n_categories: how many labels have a relevant image (P > 0).

    The first four are in [0, 1], or None when M' = 0.
    """

    f1: float | None
    precision: float | None
    recall: float | None
    map: float | None
    n_images: int
    n_categories: int


def multilabel_scores(scores: Scores, relevance: BoolArray, k: int = 3) -> MultiLabelScores:
    """F1@k and mAP of labelling images.

    scores: [C, M] floating point.
    relevance: [C, M] bool.
    k: how many labels are predicted of an image.

    Of every image the k best labels are predicted (all C, if fewer); equal scores in the order of the categories.
    Average precision is (1 / P) * sum over all ranks r of precision(r) * relevant(r); ties by column.
    Images without any of the C labels are left out of both, as in DualCoOp's evaluation.
    Raises UsageError for k < 1 and for arrays of the wrong shape or type.
    """
    check_k(k)
    check_matrices(scores, relevance, None)
    labelled = relevance.any(axis=0)
    scores, relevance = scores[:, labelled], relevance[:, labelled]
    n_images = relevance.shape[1]
    if n_images == 0:
        return MultiLabelScores(None, None, None, None, 0, 0)
    hits = relevant_at_rank(top_k(scores.T, k), relevance.T)  # [M', min(k, C)]
    n_relevant = relevance.sum(axis=1)
    precision, recall = float(hits.sum() / hits.size), float(hits.sum() / n_relevant.sum())
    at_rank = relevant_at_rank(top_k(scores, n_images), relevance)  # [C, M']
    ap = average_precision_at_k(at_rank, n_relevant, n_images, "P")
    return MultiLabelScores(
        f1=2 * precision * recall / (precision + recall) if hits.any() else 0.0,
        precision=precision,
        recall=recall,
        map=float(np.nanmean(ap)),
        n_images=n_images,
        n_categories=int((n_relevant > 0).sum()),
    )


def zero_shot_scores(scores: Scores, relevance: BoolArray, novel: BoolArray, k: int = 3) -> dict[str, MultiLabelScores]:
    """`multilabel_scores` over all labels (GZSL), and over the novel ones alone (ZSL).

    scores: [C, M] floating point.
    relevance: [C, M] bool.
    novel: [C] bool, the categories that ZSL ranks.
    k: how many labels are predicted of an image.

    Returns `gzsl` and `zsl` -> scores.
    Raises UsageError as `multilabel_scores` does, and for a `novel` of another shape.
    """
    check_bool("novel", novel, (len(scores),))
    return {
        "gzsl": multilabel_scores(scores, relevance, k),
        "zsl": multilabel_scores(scores[novel], relevance[novel], k),
    }
