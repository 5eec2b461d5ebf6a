"""CLIP ViTs cut in two, against open_clip's own model and a slow loop, at random weights."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from for_model.backbones.clip_resnet import load_clip_resnet
from for_model.backbones.clip_vit import VitBackbone
from for_model.backbones.model_weights import load_model_weights
from for_model.backbones.registry import load_backbone
from for_model.data.coco import load_coco
from for_model.data.miniscenes.scenes import write_scenes
from for_model.errors import UsageError
from for_model.heads.clip import ClipHead
from for_model.heads.cluster import ClusterHead
from for_model.heads.config import SumSettings
from for_model.heads.dense import DenseHead
from for_model.heads.sum_clip import SumHead
from for_model.methods.build import build_method
from for_model.methods.head_config import HeadConfig
from for_model.methods.head_files import make_head
from for_model.open_clip_import import import_open_clip
from for_model.training.features import open_features
from tests.helpers.tiny_models import OPEN_CLIP, name_tiny_open_clip

open_clip = import_open_clip()


@pytest.fixture(scope="module", autouse=True)
def _tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        name_tiny_open_clip(tmp_path_factory.mktemp("configs"), patch)
        yield


@pytest.fixture(scope="module")
def vit() -> VitBackbone:
    backbone = load_backbone("ViT-tiny", "random")
    assert isinstance(backbone, VitBackbone)
    return backbone


def some_pixels(size: int, n: int = 2) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def open_clips_own(size: int) -> Any:
    """open_clip's model of the same weights, built by its own code, its positions resized by its own code."""
    config = OPEN_CLIP["ViT-tiny"]
    model = open_clip.CLIP(**{**config, "vision_cfg": {**config["vision_cfg"], "image_size": size}}).eval()
    state = dict(load_model_weights("ViT-tiny", "random").state)
    open_clip.model.resize_pos_embed(state, model, antialias=size < config["vision_cfg"]["image_size"])
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("size", [64, 32, 112])
def test_clip_is_encode_image_at_any_size(size: int) -> None:
    backbone = load_backbone("ViT-tiny", "random", image_size=size)
    pixels, K = some_pixels(size), (size // 16) ** 2
    X = backbone.features(pixels)
    assert (backbone.n_cells, backbone.n_tokens, X.shape) == (K, K + 1, (2, K + 1, 48))
    expected = open_clips_own(size).encode_image(pixels)
    tokens = backbone.pool.tokens(X)
    torch.testing.assert_close(backbone.pool.attend(tokens[:, :1], tokens)[:, 0], expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ClipHead()(X, backbone.pool)[:, 0], F.normalize(expected, dim=-1), atol=1e-5, rtol=0)


def test_dense_is_the_value_path_of_the_last_block(vit: VitBackbone) -> None:
    X, model = vit.features(some_pixels(64)), open_clips_own(64).visual
    block, dense = model.transformer.resblocks[-1], DenseHead()(X, vit.pool)
    assert dense.shape == (2, 16, 32)
    v_weight, v_bias = block.attn.in_proj_weight[96:], block.attn.in_proj_bias[96:]
    for image in range(2):
        for cell in range(16):
            x = block.attn.out_proj(v_weight @ block.ln_1(X[image, cell + 1]) + v_bias)
            y = F.normalize(model.ln_post(x) @ model.proj, dim=-1)
            torch.testing.assert_close(dense[image, cell], y, atol=1e-5, rtol=0)


def test_a_token_that_attends_only_to_itself_gets_its_own_value(vit: VitBackbone) -> None:
    """With one token the softmax is 1, so that attention and value path meet before the residual."""
    token = vit.features(some_pixels(64))[:, 3:4]
    block = open_clips_own(64).visual.transformer.resblocks[-1]
    visual = open_clips_own(64).visual
    expected = visual.ln_post(block(token)) @ visual.proj
    torch.testing.assert_close(vit.pool.attend(token, token), expected, atol=1e-5, rtol=1e-4)


def test_attention_weights_are_those_of_attend(vit: VitBackbone) -> None:
    X = vit.features(some_pixels(64))
    queries = torch.randn(2, 5, 48, generator=torch.Generator().manual_seed(1))
    y, weights = vit.pool.attend(queries, X, return_weights=True)
    block = open_clips_own(64).visual.transformer.resblocks[-1]
    _, expected = block.attn(block.ln_1(queries), block.ln_1(X), block.ln_1(X), need_weights=True)
    torch.testing.assert_close(weights, expected, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 5))
    torch.testing.assert_close(y, vit.pool.attend(queries, X))


@pytest.mark.parametrize(("name", "n"), [("clip", 1), ("dense-clip", 16), ("cluster-clip:3", 3)])
def test_methods_on_a_vit(name: str, n: int) -> None:
    method = build_method(name, "ViT-tiny", "random", device="cpu")
    assert (method.info.backbone, method.info.image_size, method.info.n_embeddings) == ("ViT-tiny", 64, n)
    pixels = torch.stack([method.preprocess(Image.new("RGB", (80, 50), colour)) for colour in ("red", "blue")])
    Y = method.encode_images(pixels)
    assert Y.shape == (2, n, 32)
    torch.testing.assert_close(Y.norm(dim=-1), torch.ones(2, n))
    torch.testing.assert_close(method.encode_images(pixels[1:]), Y[1:], atol=1e-5, rtol=0)
    assert method.encode_images(pixels[:0]).shape == (0, n, 32)
    assert method.encode_texts(["a dog"]).shape == (1, 32)


def test_texts_are_open_clips(vit: VitBackbone) -> None:
    tokens = vit.tokenize(["a dog", "a very long name of a thing"])
    expected = open_clips_own(64).encode_text(tokens, normalize=True)
    torch.testing.assert_close(vit.encode_tokens(tokens), expected, atol=1e-6, rtol=1e-5)


def test_the_activation_is_the_names() -> None:
    plain, quick = (load_backbone(name, "random") for name in ("ViT-tiny", "ViT-tiny-quickgelu"))
    assert plain.weights_sha256 != quick.weights_sha256
    assert not torch.allclose(plain.features(some_pixels(64)), quick.features(some_pixels(64)), atol=1e-4)


def test_the_hash_is_that_of_the_weights_at_any_size(vit: VitBackbone) -> None:
    assert load_backbone("ViT-tiny", "random", image_size=96).weights_sha256 == vit.weights_sha256


def test_fors_head_has_gradients_and_evidence(vit: VitBackbone) -> None:
    torch.manual_seed(0)
    head = SumHead(SumSettings(queries=3, layers=1, heads=2, feedforward=16, dropout=0), vit.pool)
    X = vit.features(some_pixels(64))
    Y = head(X, vit.pool)
    torch.testing.assert_close(Y.norm(dim=-1), torch.ones(2, 3))
    Y[..., 0].sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in head.parameters())
    assert not any(p.requires_grad for p in vit.pool.parameters())
    assert head.evidence(X, vit.pool).shape == (2, 3, 16)
    with pytest.raises(UsageError, match=r"head\.freeze=qkvo"):
        make_head(HeadConfig(heads=2, freeze="vo"), vit.pool)


@pytest.mark.parametrize(("kind", "plain"), [("ft-clip", ClipHead()), ("ft-dense-clip", DenseHead())])
def test_fine_tuning_adds_to_the_values(vit: VitBackbone, kind: str, plain: ClipHead | DenseHead) -> None:
    X = vit.features(some_pixels(64))
    head = make_head(HeadConfig(kind=kind), vit.pool)
    torch.testing.assert_close(head(X, vit.pool), plain(X, vit.pool))
    (head(X, vit.pool) * torch.randn(vit.pool.dim)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in head.parameters())


def test_kept_feature_maps_have_the_class_token(vit: VitBackbone, tmp_path: Path) -> None:
    write_scenes(tmp_path, {"dev": 3}, size=64)
    features = open_features(load_coco(tmp_path, "dev"), vit, 1.0, tmp_path / "features", workers=1)
    ((_, X),) = features.batches([features.usable.nonzero()[0]])
    assert X.shape == (3, 17, 48)
    assert ClusterHead(2)(X, vit.pool).shape == (3, 2, 32)


@pytest.mark.parametrize("size", [0, 8, 40, 65])
def test_image_sizes_that_do_not_fit_the_patch(size: int) -> None:
    with pytest.raises(UsageError, match="multiple of 16"):
        load_backbone("ViT-tiny", "random", image_size=size)


def test_shapes_that_do_not_fit(vit: VitBackbone) -> None:
    with pytest.raises(UsageError, match=r"expected \[B, 3, 64, 64\]"):
        vit.features(some_pixels(32))
    with pytest.raises(UsageError, match=r"expected \[B, 17, Ce\]"):
        vit.pool.tokens(torch.zeros(1, 16, 48))
    with pytest.raises(UsageError, match="unknown backbone 'ViT-tiny'"):
        load_clip_resnet("ViT-tiny", "random")
