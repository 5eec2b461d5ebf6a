"""top_k and average precision against their definitions in plain Python, on whatever hypothesis thinks of."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from for_search.query.ranking import UNRANKED, average_precision_at_k, top_k
from tests.helpers.slow_metrics import slow_ranking

# Few values, so that there are ties; zeros of both signs are equal, and infinities are allowed.
SCORES = st.sampled_from([-math.inf, -1.5, -0.0, 0.0, 0.25, 1e-300, 3.0, math.inf]) | st.floats(allow_nan=False)


@st.composite
def rows(draw: st.DrawFn) -> tuple[list[list[float]], list[list[bool]]]:
    """Scores [C, M] and which of them are known, both as lists."""
    n_categories, n_images = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    scores = draw(st.lists(st.lists(SCORES, min_size=n_images, max_size=n_images), min_size=n_categories, max_size=4))
    known = [draw(st.lists(st.booleans(), min_size=n_images, max_size=n_images)) for _ in scores]
    return scores, known


@given(rows(), st.integers(1, 15), st.booleans(), st.sampled_from([np.float32, np.float64]))
def test_top_k_is_the_head_of_a_sorted_list(
    case: tuple[list[list[float]], list[list[bool]]], k: int, narrowed: bool, dtype: type[np.floating]
) -> None:
    scores, known = np.array(case[0]), np.array(case[1], dtype=bool)
    with np.errstate(over="ignore"):
        scores = scores.astype(dtype)
    found = top_k(scores, k, known if narrowed else None)
    depth = min(k, scores.shape[1])
    assert found.shape == (len(scores), depth)
    for row, mask, order in zip(scores, known, found, strict=True):
        expected = slow_ranking(row, mask if narrowed else None)[:depth]
        assert order.tolist() == expected + [UNRANKED] * (depth - len(expected))


@given(st.lists(st.booleans(), max_size=15), st.integers(0, 10), st.integers(1, 20))
def test_average_precision_is_its_definition(relevant: list[bool], more: int, k: int) -> None:
    n_relevant = sum(relevant[:k]) + more
    total = sum(sum(relevant[:rank]) / rank for rank in range(1, min(k, len(relevant)) + 1) if relevant[rank - 1])
    hits = sum(relevant[:k])
    array = np.array(relevant, dtype=bool)
    for normaliser, divisor in (("min(P, K)", min(n_relevant, k)), ("P", n_relevant), ("hits", max(hits, 1))):
        found = float(average_precision_at_k(array, np.array(n_relevant), k, normaliser))
        if n_relevant:
            assert found == pytest.approx(total / divisor, abs=1e-12)
            assert 0 <= found <= 1 + 1e-12
        else:
            assert math.isnan(found)
