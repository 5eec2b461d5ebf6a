"""Retrieval metrics: scores and relevance in, numbers out.

Everywhere, C are categories (the queries) and M images. Columns are images in ascending order of their id, so that
breaking ties by column is breaking them by id: the order in which a dataset was read never changes a score.

`known` [C, M] bool says which images are judged for a category: known to hold it, or known not to (LVIS is federated:
most images are judged for few categories). An image that isn't judged for a category is not ranked for it and is not
relevant to it. Without `known`, every image is judged for every category.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from for_model.errors import UsageError
from for_search.query.ranking import (
    UNRANKED,
    BoolArray,
    FloatArray,
    IntArray,
    Scores,
    average_precision_at_k,
    check_bool,
    check_k,
    check_matrices,
    divide,
    top_k,
)

GROUPS = ("base", "novel", "all")  # of categories; `all` is base and novel together


@dataclass(frozen=True)
class MeanScores:
    """Means over the categories of a group that have a relevant image (P > 0); None where there is no such category.

    n_categories: how many categories the means are taken over.
    ap, ap_over_p, ap_over_hits: means of AP@k, divided as in `RetrievalScores`, in [0, 1].
    precision, recall: means at depth k, in [0, 1].
    """

    n_categories: int
    ap: float | None
    ap_over_p: float | None
    ap_over_hits: float | None
    precision: float | None
    recall: float | None


@dataclass(frozen=True, eq=False)
class RetrievalScores:
    """Scores at depth k, one a category; NaN for a category without a relevant image (P = 0), never 0.

    ap: [C] float64 in [0, 1], AP@k divided by min(P, k): the primary score, as in Kaggle's `apk` that the paper cites.
    ap_over_p: [C], the same sum divided by P.
    ap_over_hits: [C], divided by the relevant images among the first k.
    precision: [C], relevant images among the first k, divided by k, even where fewer than k images could be ranked.
    recall: [C], relevant images among the first k, divided by P.
    n_relevant: [C] int64, P.
    """

    k: int
    ap: FloatArray
    ap_over_p: FloatArray
    ap_over_hits: FloatArray
    precision: FloatArray
    recall: FloatArray
    n_relevant: IntArray

    def mean(self, group_mask: BoolArray | None = None) -> MeanScores:
        """Average over the categories with P > 0 of a group.

        group_mask: [C] bool, the group's categories; None for all.
        Raises UsageError for a mask of another shape or type.
        """
        n_categories = len(self.n_relevant)
        mask = np.ones(n_categories, dtype=bool) if group_mask is None else group_mask
        check_bool("group_mask", mask, (n_categories,))
        counted = mask & (self.n_relevant > 0)

        def mean_of(values: FloatArray) -> float | None:
            return float(values[counted].mean()) if counted.any() else None

        return MeanScores(
            n_categories=int(counted.sum()),
            ap=mean_of(self.ap),
            ap_over_p=mean_of(self.ap_over_p),
            ap_over_hits=mean_of(self.ap_over_hits),
            precision=mean_of(self.precision),
            recall=mean_of(self.recall),
        )


def relevant_at_rank(order: NDArray[np.integer[Any]], relevance: BoolArray) -> BoolArray:
    """Whether the image at each rank is relevant.

    order: [C, k'] columns as `top_k` gives them.
    relevance: [C, M] bool.
    Returns [C, k'] bool; False where nothing is ranked.
    """
    if order.size == 0:
        return np.zeros(order.shape, dtype=bool)
    return np.take_along_axis(relevance, np.maximum(order, 0), axis=1) & (order != UNRANKED)


def best_images(
    scores: Scores,
    k: int,
    known: BoolArray | None = None,
    order: NDArray[np.integer[Any]] | None = None,
) -> NDArray[np.integer[Any]]:
    """The k best images of each category: ranked here, or the first k of a deeper ranking of the same scores.

    scores, k, known: as `top_k` takes them.
    order: [C, d] columns as `top_k` gives them for a depth d of min(k, M) or more; None to rank the scores here.
    Returns [C, min(k, M)] columns.
    Raises UsageError as `top_k` does, and for an order of another shape.
    """
    if order is None:
        return top_k(scores, k, known)
    n_categories, depth = len(scores), min(k, scores.shape[1])
    if order.ndim != 2 or len(order) != n_categories or order.shape[1] < depth:
        raise UsageError(
            f"order has shape {list(order.shape)}; expected [{n_categories}, {depth} or more]: rank the same scores, "
            f"{k} deep or deeper"
        )
    return order[:, :depth]


def retrieval_scores(
    scores: Scores,
    relevance: BoolArray,
    k: int = 50,
    known: BoolArray | None = None,
    order: NDArray[np.integer[Any]] | None = None,
) -> RetrievalScores:
    """Rank the images of every category and score the rankings at depth k.

    scores: [C, M] floating point, higher is better.
    relevance: [C, M] bool.
    k: the depth, at least 1.
    known: [C, M] bool, the images judged for each category; None for all.
    order: [C, d], the images ranked already, as `best_images` takes it; None to rank them here.
    Only the order of a category's scores matters. Ties: by column. M = 0: every P is 0, so every score is NaN.
    Raises UsageError as `best_images` does, and when the shapes differ.
    """
    check_k(k)
    check_matrices(scores, relevance, known)
    relevant = relevant_at_rank(best_images(scores, k, known, order), relevance)  # [C, min(k, M)]
    n_relevant = count_relevant(relevance, known)
    n_hits = relevant.sum(axis=1)
    return RetrievalScores(
        k=k,
        ap=average_precision_at_k(relevant, n_relevant, k, "min(P, K)"),
        ap_over_p=average_precision_at_k(relevant, n_relevant, k, "P"),
        ap_over_hits=average_precision_at_k(relevant, n_relevant, k, "hits"),
        precision=divide(n_hits, np.where(n_relevant > 0, k, 0)),
        recall=divide(n_hits, n_relevant),
        n_relevant=n_relevant,
    )


def recall_at_k(
    scores: Scores,
    relevance: BoolArray,
    ks: Sequence[int] = (1, 5, 10, 50),
    known: BoolArray | None = None,
    order: NDArray[np.integer[Any]] | None = None,
) -> dict[int, FloatArray]:
    """The share of a category's relevant images among its first k, for several k from one ranking.

    scores: [C, M] floating point.
    relevance: [C, M] bool.
    ks: the depths, each at least 1.
    known: [C, M] bool, the images judged for each category; None for all.
    order: [C, d], the images ranked already, as `best_images` takes it; None to rank them here.
    Returns k -> [C] float64 in [0, 1], in the order of ks; NaN for a category with P = 0. Ties: by column.
    Raises UsageError as `best_images` does, and for an empty ks.
    """
    if not ks:
        raise UsageError("ks is empty; give at least one k, such as ks=(1, 5, 10, 50)")
    for k in ks:
        check_k(k)
    check_matrices(scores, relevance, known)
    relevant = relevant_at_rank(best_images(scores, max(ks), known, order), relevance)
    n_relevant = count_relevant(relevance, known)
    return {k: divide(relevant[:, :k].sum(axis=1), n_relevant) for k in ks}


def count_relevant(relevance: BoolArray, known: BoolArray | None) -> IntArray:
    """[C] int64: P, the relevant images of each category among those judged for it."""
    return (relevance if known is None else relevance & known).sum(axis=1, dtype=np.int64)
