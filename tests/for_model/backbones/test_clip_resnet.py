"""The backbone against open_clip's own model, at random weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from for_model.backbones.attention_pool import AttentionPool, interpolate_positions
from for_model.backbones.clip_resnet import ClipResnet, load_clip_resnet
from for_model.backbones.model_weights import build_model, model_config
from for_model.errors import ImageError, UsageError


def pixels_of(backbone: ClipResnet, n: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, backbone.image_size, backbone.image_size, generator=generator)


@pytest.mark.parametrize(
    "name", ["RN-mini", *(pytest.param(name, marks=pytest.mark.slow) for name in ("RN50", "RN50x4"))]
)
def test_mean_token_through_the_pool_is_encode_image(name: str) -> None:
    backbone = load_clip_resnet(name, "random")
    n = 2 if name == "RN-mini" else 1  # the others take seconds
    pixels = pixels_of(backbone, n)
    X = backbone.features(pixels)
    tokens = backbone.pool.tokens(X)
    y = backbone.pool.attend(tokens[:, :1], tokens)[:, 0]
    expected = backbone.model.encode_image(pixels)
    assert X.shape == (n, backbone.n_cells, backbone.width)
    assert y.shape == (n, backbone.dim)
    torch.testing.assert_close(y, expected, atol=1e-4, rtol=1e-4)


def test_open_clip_normalises_as_we_do(mini: ClipResnet) -> None:
    pixels = pixels_of(mini, 2)
    plain, unit = (mini.model.encode_image(pixels, normalize=normalize) for normalize in (False, True))
    torch.testing.assert_close(F.normalize(plain, dim=-1), unit, atol=1e-6, rtol=0)


def test_attention_weights_are_those_of_attend(mini: ClipResnet) -> None:
    X = mini.features(pixels_of(mini, 2))
    tokens = mini.pool.tokens(X)
    queries = torch.randn(2, 7, mini.width, generator=torch.Generator().manual_seed(1))
    y, weights = mini.pool.attend(queries, tokens, return_weights=True)
    assert weights.shape == (2, 7, mini.n_cells + 1)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 7))
    torch.testing.assert_close(y, mini.pool.attend(queries, tokens), atol=1e-5, rtol=1e-4)
    assert mini.pool.attend(queries, X).shape == (2, 7, mini.dim)  # any number of cells


def test_attend_has_gradients_for_queries_only(mini: ClipResnet) -> None:
    X = mini.features(pixels_of(mini, 1))
    queries = torch.randn(1, 3, mini.width, generator=torch.Generator().manual_seed(1)).requires_grad_()
    mini.pool.attend(queries, mini.pool.tokens(X)).sum().backward()
    assert queries.grad is not None
    assert queries.grad.abs().max() > 0
    assert not any(p.requires_grad for p in mini.model.parameters())
    assert not mini.model.training


def test_tokens_start_with_the_mean(mini: ClipResnet) -> None:
    X = mini.features(pixels_of(mini, 2))
    plain = mini.pool.tokens(X) - mini.pool.positional_embedding
    torch.testing.assert_close(plain[:, 0], X.mean(dim=1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(plain[:, 1:], X, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("image_size", [96, 160, 224])
def test_other_image_sizes_run(image_size: int) -> None:
    backbone = load_clip_resnet("RN-mini", "random", image_size=image_size)
    X = backbone.features(pixels_of(backbone, 1))
    assert X.shape == (1, (image_size // 32) ** 2, backbone.width)
    assert backbone.pool.tokens(X).shape == (1, X.shape[1] + 1, backbone.width)
    assert backbone.weights_sha256 == load_clip_resnet("RN-mini", "random").weights_sha256


def test_interpolation_is_the_identity_at_its_own_size() -> None:
    embedding = torch.randn(26, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(interpolate_positions(embedding, 5), embedding)


@pytest.mark.parametrize("grid", [3, 7, 14])
def test_interpolation_keeps_the_mean_token_and_the_layout(grid: int) -> None:
    rows = torch.arange(5.0)[:, None].expand(5, 5)
    cells = torch.stack([rows, rows.T, torch.full((5, 5), 3.0)], dim=-1).reshape(25, 3)
    resized = interpolate_positions(torch.cat([torch.full((1, 3), 9.0), cells]), grid)
    assert torch.equal(resized[0], torch.full((3,), 9.0))
    y, x, constant = resized[1:].reshape(grid, grid, 3).unbind(-1)
    torch.testing.assert_close(constant, torch.full((grid, grid), 3.0))
    torch.testing.assert_close(y, x.T)
    assert (y.diff(dim=0) > 0).all()
    torch.testing.assert_close(y[:, 0], y[:, -1])


def test_an_image_does_not_depend_on_its_batch(mini: ClipResnet) -> None:
    pixels = pixels_of(mini, 5)
    together = mini.features(pixels)
    torch.testing.assert_close(together[3:4], mini.features(pixels[3:4]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together.flip(0), mini.features(pixels.flip(0)), atol=1e-5, rtol=1e-4)
    assert mini.features(pixels[:0]).shape == (0, mini.n_cells, mini.width)


@pytest.mark.parametrize("shape", [(3, 160, 160), (1, 3, 160, 128), (1, 3, 224, 224), (1, 1, 160, 160)])
def test_pixels_of_another_shape_are_refused(mini: ClipResnet, shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"expected \[B, 3, 160, 160\]"):
        mini.features(torch.zeros(shape))


def test_features_of_another_size_are_refused(mini: ClipResnet) -> None:
    with pytest.raises(UsageError, match=r"expected \[B, 25, Ce\]"):
        mini.pool.tokens(torch.zeros(1, 49, mini.width))


@pytest.mark.parametrize("image_size", [0, -32, 31, 100, 225])
def test_image_sizes_that_do_not_fit_the_stride(image_size: int) -> None:
    with pytest.raises(UsageError, match="multiple of 32"):
        load_clip_resnet("RN-mini", "random", image_size=image_size)


@pytest.mark.parametrize("device", ["gpu", "cuda:99x"])
def test_unknown_device(device: str) -> None:
    with pytest.raises(UsageError, match="unknown device"):
        load_clip_resnet("RN-mini", "random", device=device)


def test_preprocess_resizes_the_whole_image(mini: ClipResnet) -> None:
    wide = np.zeros((40, 200, 3), np.uint8)
    wide[:, :20], wide[:, -20:] = (255, 0, 0), (0, 0, 255)  # only at the edges, which a centre crop would lose
    pixels = mini.preprocess(Image.fromarray(wide))
    assert pixels.shape == (3, 160, 160)
    assert pixels.dtype == torch.float32
    image = pixels * torch.tensor(mini.std)[:, None, None] + torch.tensor(mini.mean)[:, None, None]
    torch.testing.assert_close(image[:, 80, 4], torch.tensor([1.0, 0, 0]), atol=0.01, rtol=0)
    torch.testing.assert_close(image[:, 80, -4], torch.tensor([0, 0, 1.0]), atol=0.01, rtol=0)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_preprocess_converts_other_modes(mini: ClipResnet, mode: str) -> None:
    image = Image.new("RGB", (8, 8), (10, 20, 30)).convert(mode)
    assert torch.isfinite(mini.preprocess(image)).all()


def test_preprocess_reports_what_it_cannot_decode(mini: ClipResnet, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    whole = tmp_path / "whole.png"
    Image.fromarray(noise).save(whole)
    half = tmp_path / "half.png"
    half.write_bytes(whole.read_bytes()[:4000])
    with Image.open(half) as image, pytest.raises(ImageError, match="can't be decoded"):
        mini.preprocess(image)
    with pytest.raises(ImageError, match="0 x 5"):
        mini.preprocess(Image.new("RGB", (0, 5)))


def test_texts_are_those_of_open_clip(mini: ClipResnet) -> None:
    texts = ["a dog", "itap of a very long name of a thing, with punctuation!", "", "word " * 100]
    tokens = mini.tokenize(texts)
    assert tokens.shape == (4, mini.model.context_length)
    torch.testing.assert_close(mini.encode_texts(texts), mini.model.encode_text(tokens, normalize=True))
    torch.testing.assert_close(mini.encode_texts(texts[:1]), mini.encode_texts(texts)[:1])
    assert mini.encode_texts([]).shape == (0, mini.dim)


def test_pool_shares_the_models_projections(mini: ClipResnet) -> None:
    assert mini.pool.v_proj is mini.model.visual.attnpool.v_proj
    again = AttentionPool(build_model(model_config("RN-mini"), dict(mini.model.state_dict())).visual.attnpool, 5)
    assert torch.equal(again.positional_embedding, mini.pool.positional_embedding)
