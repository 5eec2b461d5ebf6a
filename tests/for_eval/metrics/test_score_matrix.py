from pathlib import Path

import numpy as np
import pytest
import torch

from for_eval.metrics import score_matrix as rank
from for_eval.metrics.score_matrix import score_matrix
from for_model.errors import StoreError, UsageError
from for_search.index import segment as segment_module
from for_search.index.index_files import build_index
from tests.helpers.store_making import dyadic_units, make_store, random_units


def by_loop(embeddings: np.ndarray, texts: np.ndarray) -> np.ndarray:
    scores = np.zeros((len(texts), len(embeddings)))
    for category, text in enumerate(texts):
        for column, image in enumerate(embeddings.astype(np.float16)):
            scores[category, column] = max(
                sum(float(a) * float(b) for a, b in zip(row, text, strict=True)) for row in image
            )
    return scores.astype(np.float32)


@pytest.mark.parametrize("block", [None, 1, 4, 1000])
def test_equals_a_loop(tmp_path: Path, block: int | None) -> None:
    embeddings, texts = random_units((23, 4, 12)), random_units((5, 12), seed=1)
    store = make_store(tmp_path / "store", embeddings)
    scores = score_matrix(store, texts, block=block)
    assert scores.dtype == np.float32
    np.testing.assert_array_almost_equal_nulp(scores, by_loop(embeddings, texts), nulp=1)


def test_columns_follow_the_store_over_its_shards(tmp_path: Path) -> None:
    embeddings = dyadic_units((23, 4, 12))
    texts = dyadic_units((6, 12), seed=1)
    expected = by_loop(embeddings, texts)
    for shard_size in (1, 7, 23):
        store = make_store(tmp_path / str(shard_size), embeddings, shard_size=shard_size)
        np.testing.assert_array_equal(score_matrix(store, torch.from_numpy(texts)), expected)


@pytest.mark.parametrize("n_texts", [1, 3, 65])
def test_the_block_and_the_place_in_it_change_nothing(tmp_path: Path, n_texts: int) -> None:
    """Equal images must tie exactly: in float32 this fails, since a sum depends on where its row lies in a block."""
    embeddings = np.tile(random_units((1, 3, 512)), (101, 1, 1))
    store = make_store(tmp_path / "store", embeddings, shard_size=40)
    texts = random_units((n_texts, 512), seed=2)
    expected = score_matrix(store, texts[:1])[0, 0]
    for block in (None, 1, 7, 33):
        scores = score_matrix(store, texts, block=block)
        assert (scores == scores[:, :1]).all()
        assert scores[0, 0] == expected


def test_many_texts_make_smaller_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path / "store", random_units((40, 3, 8)), shard_size=40)
    texts = random_units((50, 8), seed=1)
    expected = score_matrix(store, texts)
    monkeypatch.setattr(rank, "_BLOCK_SCORES", 1)
    np.testing.assert_array_equal(score_matrix(store, texts), expected)


def test_nothing_to_score(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", random_units((5, 3, 8)))
    assert score_matrix(store, np.zeros((0, 8), np.float32)).shape == (0, 5)
    empty = make_store(tmp_path / "empty", np.zeros((0, 3, 8), np.float32))
    assert score_matrix(empty, random_units((2, 8))).shape == (2, 0)


def test_refuses_what_cannot_be_compared(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", random_units((5, 3, 8)))
    texts = random_units((2, 8))
    with pytest.raises(StoreError, match=r"width 9 .* width is 8"):
        score_matrix(store, random_units((2, 9)))
    with pytest.raises(UsageError, match=r"\[8\], expected \[C, 8\]"):
        score_matrix(store, texts[0])
    with pytest.raises(UsageError, match="NaN"):
        score_matrix(store, texts * np.inf)
    with pytest.raises(UsageError, match="block is 0"):
        score_matrix(store, texts, block=0)


@pytest.mark.parametrize("rows", [1, 8, 1024])
def test_an_index_scores_as_its_store_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    embeddings, texts = random_units((23, 4, 12)), random_units((5, 12), seed=1)
    make_store(tmp_path / "store", embeddings)
    monkeypatch.setattr(segment_module, "_BLOCK_ROWS", rows)
    scores = build_index(tmp_path / "store", tmp_path / "index").score_images(texts)
    np.testing.assert_allclose(scores, by_loop(embeddings, texts), atol=1e-6)


def test_a_large_index_is_sampled_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, texts = random_units((23, 4, 12)), random_units((2, 12), seed=1)
    make_store(tmp_path / "store", embeddings)
    index = build_index(tmp_path / "store", tmp_path / "index")
    monkeypatch.setattr(segment_module, "_BLOCK_ROWS", 8)  # two images a block
    every = by_loop(embeddings, texts)
    np.testing.assert_allclose(index.score_images(texts, at_most=92), every, atol=1e-6)  # all of them fit
    np.testing.assert_allclose(index.score_images(texts, at_most=24), every[:, [0, 1, 10, 11, 22]], atol=1e-6)
    np.testing.assert_allclose(index.score_images(texts, at_most=1), every[:, [0, 1]], atol=1e-6)
