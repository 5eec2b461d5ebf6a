"""The order of images by their scores, and how good an order is.

C are categories or queries, M images. Columns are images in ascending order of their id, so that breaking ties by
column is breaking them by id: the order in which a dataset was read never changes a score.

`known` [C, M] bool says which images are judged for a category: known to hold it, or known not to (LVIS is federated:
most images are judged for few categories). An image that isn't judged for a category is not ranked for it and is not
relevant to it. Without `known`, every image is judged for every category.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from for_model.errors import UsageError

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Scores = NDArray[np.floating[Any]]
Normaliser = Literal["min(P, K)", "P", "hits"]
UNRANKED = -1


def top_k(scores: Scores, k: int, known: BoolArray | None = None) -> IntArray:
    """The k best images of each category, best first; equal scores in column order, whatever k.

    scores: [C, M] floating point; infinities are allowed, NaN isn't.
    k: how many images, at least 1.
    known: [C, M] bool, the images judged for each category; None for all.

    Returns [C, min(k, M)] int64: columns. A row with fewer judged images than that ends in UNRANKED (-1).
    C = 0 or M = 0 gives an empty result.
    Raises UsageError for NaN, for k < 1 and for arrays of the wrong shape or type.
    """
    check_k(k)
    check_matrices(scores, None, known)
    n_categories, n_images = scores.shape
    order = np.full((n_categories, min(k, n_images)), UNRANKED, dtype=np.int64)
    for category in range(n_categories):  # row by row: no temporary of the size of scores
        row = scores[category]
        if np.isnan(row).any():
            column = int(np.isnan(row).argmax())
            raise UsageError(
                f"the score of category {category} for image column {column} is NaN; scores must be numbers: "
                "look for non-finite embeddings"
            )
        if known is None:
            best = _top_k_row(row, k)
        else:
            columns = np.flatnonzero(known[category])
            best = columns[_top_k_row(row[columns], k)]
        order[category, : len(best)] = best
    return order


def best_columns(scores: Scores, k: int, allowed: BoolArray | None = None) -> list[int]:
    """The k best of M images, best first, as `top_k` ranks them; all where there are fewer.

    scores: [M] floating point.
    allowed: [M] bool, the images to choose from; None for all.
    """
    columns = top_k(scores[None], k, None if allowed is None else allowed[None])[0]
    return columns[columns != UNRANKED].tolist()


def _top_k_row(row: Scores, k: int) -> NDArray[np.intp]:
    """[M] -> [min(k, M)] positions, descending, ties by position. Linear in M, however many scores are equal."""
    n_images = len(row)
    if k >= n_images:
        return np.argsort(-row, kind="stable")
    kth_best = np.partition(row, n_images - k)[n_images - k]
    above = np.flatnonzero(row > kth_best)  # fewer than k
    at_boundary = np.flatnonzero(row == kth_best)[: k - len(above)]
    return np.concatenate([above[np.argsort(-row[above], kind="stable")], at_boundary])


def average_precision_at_k(
    relevant: BoolArray, n_relevant: NDArray[np.integer[Any]], k: int, normaliser: Normaliser = "min(P, K)"
) -> FloatArray:
    """AP@K = (1 / Z) * sum over ranks r <= K of precision(r) * relevant(r).

    relevant: [..., k'] bool, whether the image at rank 1, 2, ... is relevant; ranks beyond K are ignored, and ranks
        missing up to K (a collection smaller than K) count as not relevant.
    n_relevant: [...] integer, P: the relevant images at any rank.
    k: K.
    normaliser: Z. `min(P, K)`: Kaggle's `apk`, which the paper cites for mAP@50 (section 4.1); 1 means that no ranking
        could be better. `P`: trec_eval, ranx; can't reach 1 when P > K. `hits`: the relevant images among the first K,
        torchmetrics; can be 1 with a single hit.
    Returns [...] float64 in [0, 1]; NaN where P = 0, and 0 where P > 0 and nothing relevant is among the first K.
    Raises UsageError for k < 1, an unknown normaliser, shapes that don't fit, and more hits than P.
    """
    check_k(k)
    relevant = relevant[..., :k]
    n_relevant = np.asarray(n_relevant)
    check_bool("relevant", relevant, (*n_relevant.shape, relevant.shape[-1]))
    hits = relevant.cumsum(axis=-1, dtype=np.int64)  # [..., k']
    n_hits = relevant.sum(axis=-1, dtype=np.int64)  # [...]
    if (n_hits > n_relevant).any():
        raise UsageError(
            "there are more relevant images among the first ranks than n_relevant says there are at all; "
            "count both over the same images"
        )
    ranks = np.arange(1, relevant.shape[-1] + 1)
    total = (hits / ranks * relevant).sum(axis=-1)
    return normalise(total, n_relevant, n_hits, k, normaliser)


def normalise(
    total: FloatArray, n_relevant: NDArray[Any], n_hits: NDArray[Any], k: int, normaliser: Normaliser
) -> FloatArray:
    """total / Z; NaN where P = 0. All arrays of one shape."""
    if normaliser == "min(P, K)":
        divisor = np.minimum(n_relevant, k)
    elif normaliser == "P":
        divisor = n_relevant
    elif normaliser == "hits":
        divisor = np.maximum(n_hits, 1)  # without a hit the total is 0 as well: 0, not 0 / 0
    else:
        raise UsageError(f"normaliser is {normaliser!r}; give one of 'min(P, K)', 'P', 'hits'")
    return divide(total, np.where(n_relevant > 0, divisor, 0))


def divide(numerator: NDArray[Any], divisor: NDArray[Any]) -> FloatArray:
    """numerator / divisor in float64, NaN where the divisor is 0."""
    out = np.full(np.shape(numerator), np.nan)
    return np.divide(numerator, divisor, out=out, where=np.asarray(divisor) != 0)


def check_k(k: int) -> None:
    if k < 1:
        raise UsageError(f"k is {k}; give a depth of at least 1")


def check_matrices(scores: Scores, relevance: BoolArray | None, known: BoolArray | None) -> None:
    if scores.ndim != 2 or not np.issubdtype(scores.dtype, np.floating):
        raise UsageError(
            f"scores has shape {list(scores.shape)} and type {scores.dtype}; give floating point [categories, images]"
        )
    if relevance is not None:
        check_bool("relevance", relevance, scores.shape)
    if known is not None:
        check_bool("known", known, scores.shape)


def check_bool(name: str, array: BoolArray, shape: tuple[int, ...]) -> None:
    if array.shape != shape or array.dtype != np.bool_:
        raise UsageError(
            f"{name} has shape {list(array.shape)} and type {array.dtype}; expected bool of shape {list(shape)}"
        )
