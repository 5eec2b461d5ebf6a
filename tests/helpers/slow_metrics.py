"""The metrics in plain Python, written from their definitions, and random cases to try them on."""

import numpy as np

NAN = float("nan")


def slow_ranking(scores, known=None):
    """Columns of one category, best first, ties by column: written from the definition."""
    columns = [m for m in range(len(scores)) if known is None or known[m]]
    return sorted(columns, key=lambda m: (-float(scores[m]), m))


def slow_scores(scores, relevance, k, known=None):
    """(ap, ap_over_p, ap_over_hits, precision, recall, P) of one category, in plain Python."""
    ranking = slow_ranking(scores, known)
    n_relevant = sum(1 for m in ranking if relevance[m])
    if n_relevant == 0:
        return NAN, NAN, NAN, NAN, NAN, 0
    total, hits = 0.0, 0
    for rank, column in enumerate(ranking[:k], start=1):
        if relevance[column]:
            hits += 1
            total += hits / rank
    over_hits = total / hits if hits else 0.0
    return total / min(n_relevant, k), total / n_relevant, over_hits, hits / k, hits / n_relevant, n_relevant


def random_case(seed, n_categories=7, n_images=40, density=0.2, levels=None):
    """scores and relevance that go together somewhat; `levels` distinct scores make ties."""
    rng = np.random.default_rng(seed)
    relevance = rng.random((n_categories, n_images)) < density
    scores = rng.standard_normal((n_categories, n_images)) + relevance
    if levels is not None:
        scores = np.round(scores * levels / 6)
    return scores, relevance
