"""What makes sketches: its file, the principal axes, and the training."""

from pathlib import Path

import numpy as np
import pytest
import torch

from for_model.errors import StoreError, UsageError, WeightsError
from for_search.index.sketches.sketch_encoder import principal_encoder, read_sketch_encoder
from for_search.index.sketches.training import SketchTexts, SketchTraining, koleo, train_sketch_encoder
from tests.helpers.store_making import random_units

SPACE = ("RN-mini", "a" * 64, 48)
NO_PAIRS = np.zeros((0, 2), np.int64)


def test_principal_axes_keep_inner_products_where_the_embeddings_lie_in_few_dimensions() -> None:
    basis = random_units((32, 48), seed=0)
    rows = random_units((500, 32), seed=1) @ basis
    encoder = principal_encoder(rows, SPACE)
    sketches = encoder.sketches(rows)
    assert sketches.shape == (500, 32)
    assert sketches.dtype == np.uint8
    assert (np.ptp(sketches, axis=0) > 240).all()  # each number's levels are used
    text = random_units((1, 48), seed=2)[0]
    wanted = rows @ text
    found = encoder.scores(sketches, text)
    np.testing.assert_allclose(found - found.mean(), wanted - wanted.mean(), atol=0.02)


def test_narrow_embeddings_have_fewer_numbers() -> None:
    assert principal_encoder(random_units((50, 6), seed=0), ("a", "b", 6)).sketches(
        random_units((3, 6), seed=1)
    ).shape == (
        3,
        6,
    )


@pytest.mark.slow
def test_a_file_gives_the_same_encoder_and_the_same_bytes(tmp_path: Path) -> None:
    rows = random_units((200, 48), seed=0)
    encoder = _trained(rows)
    path = tmp_path / "encoder.safetensors"
    encoder.write(path)
    again = read_sketch_encoder(path)
    assert again.sha256 == encoder.sha256 != principal_encoder(rows, SPACE).sha256
    assert again.to_bytes() == path.read_bytes()
    np.testing.assert_array_equal(again.sketches(rows), encoder.sketches(rows))
    again.check_space(SPACE, "index")
    with pytest.raises(
        StoreError, match=r"the sketch encoder is for RN-mini \(aaaaaaaaaaaa, width 48\), index is of RN50"
    ):
        again.check_space(("RN50", "b" * 64, 48), "index")
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="is damaged, its tensors differ"):
        read_sketch_encoder(path)
    path.write_bytes(b"no safetensors")
    with pytest.raises(WeightsError, match="not readable as safetensors"):
        read_sketch_encoder(path)
    with pytest.raises(WeightsError, match="no sketch encoder at"):
        read_sketch_encoder(tmp_path / "none")


@pytest.mark.slow
def test_training_learns_which_of_an_images_embeddings_a_text_means() -> None:
    """What texts name is a direction of little variance, which principal axes leave out."""
    generator = np.random.default_rng(0)
    loud = random_units((40, 48), seed=1)  # what most of the embeddings' variance is in
    texts = random_units((4, 48), seed=2)
    shown = generator.integers(4, size=400)
    embeddings = generator.standard_normal((400, 3, 40)).astype(np.float32) @ loud * 0.5
    embeddings[np.arange(400), generator.integers(3, size=400)] += 1.5 * texts[shown]
    embeddings /= np.linalg.norm(embeddings, axis=2, keepdims=True)
    pairs = np.stack([shown[:300], np.arange(300)], axis=1)
    settings = SketchTraining(steps=80, images=128, hidden=32)
    trained = train_sketch_encoder(embeddings[:300], SketchTexts(texts, pairs), SPACE, "test", settings)

    def share_right(encoder) -> float:  # type: ignore[no-untyped-def]
        sketches = encoder.sketches(embeddings[300:].reshape(-1, 48))
        scores = np.stack([encoder.scores(sketches, text).reshape(100, 3).max(axis=1) for text in texts])
        scores -= scores.mean(axis=1, keepdims=True)
        return float((scores.argmax(axis=0) == shown[300:]).mean())

    principal = principal_encoder(embeddings[:300].reshape(-1, 48), SPACE)
    assert share_right(trained) > share_right(principal) + 0.05
    again = train_sketch_encoder(embeddings[:300], SketchTexts(texts, pairs), SPACE, "test", settings)
    assert again.sha256 == trained.sha256


def test_texts_of_which_nothing_is_known_teach_the_full_embeddings_order() -> None:
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((300, 48)).astype(np.float32)
    rows[:, 40:] *= 0.5  # texts differ where the principal axes see nothing
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    texts = np.pad(random_units((20, 8), seed=1), ((0, 0), (40, 0)))
    settings = SketchTraining(steps=40, images=128, hidden=32, learning_rate=1e-2, softness=0.03)
    trained = train_sketch_encoder(rows[:, None], SketchTexts(texts, NO_PAIRS), SPACE, "test", settings)
    principal = principal_encoder(rows, SPACE)

    def agreement(encoder) -> float:  # type: ignore[no-untyped-def]
        sketches = encoder.sketches(rows)
        return float(np.mean([np.corrcoef(encoder.scores(sketches, text), rows @ text)[0, 1] for text in texts]))

    assert agreement(trained) > agreement(principal) + 0.2


def test_too_few_images_are_told() -> None:
    texts = SketchTexts(random_units((2, 48), seed=1), NO_PAIRS)
    with pytest.raises(UsageError, match="can't learn from 1 images"):
        train_sketch_encoder(random_units((1, 2, 48), seed=0), texts, SPACE, "test", SketchTraining())


def test_koleo_is_the_log_distance_to_the_nearest_other_point() -> None:
    points = torch.tensor([[0.0, 0.0], [0.0, 2.0], [5.0, 0.0]], requires_grad=True)
    loss = koleo(points)
    assert loss.item() == pytest.approx(-(2 * np.log(2) + np.log(5)) / 3)
    loss.backward()
    assert points.grad is not None
    assert points.grad[2, 0] < 0  # it is pushed away from its neighbour
    assert torch.isfinite(koleo(torch.zeros(4, 3)))


def _trained(rows: np.ndarray):  # type: ignore[no-untyped-def]
    texts = SketchTexts(random_units((5, 48), seed=3), NO_PAIRS)
    return train_sketch_encoder(rows[:, None], texts, SPACE, "test", SketchTraining(steps=2, images=32, hidden=8))
