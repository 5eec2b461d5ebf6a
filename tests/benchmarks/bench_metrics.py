"""How fast the metrics are at COCO's and LVIS's size. Run with `--benchmark-only`."""

import numpy as np
import pytest

from for_eval.metrics.bootstrap import bootstrap_interval
from for_eval.metrics.retrieval import retrieval_scores

COCO_OVD = (65, 2_000, 0.05)  # categories, images, share of relevant images
LVIS = (1_203, 20_000, 0.01)


def make_case(n_categories, n_images, density):
    rng = np.random.default_rng(0)
    relevance = rng.random((n_categories, n_images), dtype=np.float32) < density
    scores = rng.standard_normal(relevance.shape, dtype=np.float32)
    scores += 2 * relevance
    return scores, relevance


@pytest.mark.parametrize("size", [COCO_OVD, LVIS], ids=["coco", "lvis"])
def bench_retrieval_scores(benchmark, size):
    result = benchmark.pedantic(retrieval_scores, args=make_case(*size), rounds=3, warmup_rounds=1)
    assert result.mean().n_categories == size[0]


def bench_retrieval_scores_of_lvis_over_known_images(benchmark):
    scores, relevance = make_case(*LVIS)
    known = relevance | (np.random.default_rng(1).random(relevance.shape, dtype=np.float32) < 0.05)
    result = benchmark.pedantic(retrieval_scores, args=(scores, relevance, 50, known), rounds=3, warmup_rounds=1)
    assert result.mean().n_categories == LVIS[0]


@pytest.mark.parametrize("size", [COCO_OVD, LVIS], ids=["coco", "lvis"])
def bench_bootstrap_of_1000_resamples(benchmark, size):
    scores, relevance = make_case(*size)
    groups = {"all": np.ones(len(scores), dtype=bool)}
    result = benchmark.pedantic(bootstrap_interval, args=(scores, relevance, groups), rounds=2)
    assert result["all"].n_resamples == 1000
