"""CoCa, and how dual encoders are named and refused. Those of transformers: test_transformers_encoders.py."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from for_model.backbones import model_weights
from for_model.backbones.model_weights import load_model_weights
from for_model.backbones.pixels import CLIP_MEAN, CLIP_STD
from for_model.errors import ForError, UsageError, WeightsError
from for_model.methods import hub_models
from for_model.methods.build import build_method
from for_model.methods.dual_encoders import COCA, COCA_WEIGHTS, Coca
from for_model.methods.protocol import Method
from for_model.methods.registry import parse_method
from for_model.open_clip_import import import_open_clip
from tests.helpers.tiny_models import OPEN_CLIP, name_tiny_open_clip

open_clip = import_open_clip()


@pytest.fixture(scope="module", autouse=True)
def _tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        name_tiny_open_clip(tmp_path_factory.mktemp("configs"), patch)
        yield


@pytest.fixture
def coca() -> Method:
    return build_method("coca", "coca-tiny", "random", device="cpu")


def some_pixels(size: int) -> torch.Tensor:
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))


def open_clips_own(size: int) -> Any:
    """open_clip's model of the same weights, decoder and all, its positions resized by its own code."""
    config = {key: value for key, value in OPEN_CLIP["coca-tiny"].items() if key != "custom_text"}
    own = config["vision_cfg"]["image_size"]
    model = open_clip.CoCa(**{**config, "vision_cfg": {**config["vision_cfg"], "image_size": size}}).eval()
    state = dict(load_model_weights("coca-tiny", "random", ("coca",)).state)
    open_clip.model.resize_pos_embed(state, model, antialias=size < own)
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("size", [64, 32, 96])
def test_coca_is_open_clips_encode_image(size: int) -> None:
    method = build_method("coca", "coca-tiny", "random", image_size=size, device="cpu")
    Y = method.encode_images(some_pixels(size))
    assert Y.shape == (3, 1, 32)
    expected = open_clips_own(size).encode_image(some_pixels(size), normalize=True)
    torch.testing.assert_close(Y[:, 0], expected, atol=1e-5, rtol=0)


def test_cocas_texts_are_open_clips(coca: Method) -> None:
    texts = ["a dog", "itap of a very long name of a thing, with punctuation!", "word " * 60]
    tokens = open_clip.tokenize(texts, context_length=24)
    expected = open_clips_own(64).encode_text(tokens, normalize=True)
    torch.testing.assert_close(coca.encode_texts(texts), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(coca.encode_texts(texts[:1]), expected[:1], atol=1e-5, rtol=0)
    assert coca.encode_texts([]).shape == (0, 32)


def test_coca_keeps_the_protocol(coca: Method) -> None:
    assert isinstance(coca, Method)
    info = coca.info
    assert (info.method, info.backbone, info.weights, info.n_embeddings) == ("coca", "coca-tiny", "random", 1)
    assert (info.dim, info.image_size, str(coca.device)) == (32, 64, "cpu")
    assert info == build_method("coca", "coca-tiny", "random", device="cpu").info
    assert not hasattr(coca.model, "text_decoder")  # a third of the parameters, and no embedding needs it
    pixels = coca.preprocess(Image.new("RGB", (80, 50), "red"))[None]
    assert pixels.shape == (1, 3, 64, 64)
    assert coca.encode_images(pixels[:0]).shape == (0, 1, 32)
    torch.testing.assert_close(coca.encode_images(pixels).norm(dim=-1), torch.ones(1, 1))
    with pytest.raises(UsageError, match=r"expected \[B, 3, 64, 64\]"):
        coca.encode_images(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ForError, match="coca-tiny random: an image's embedding is not finite"):
        coca.encode_images(torch.full((1, 3, 64, 64), float("nan")))


def test_coca_from_a_file(tmp_path: Path, coca: Method) -> None:
    state = load_model_weights("coca-tiny", "random", ("coca",)).state
    torch.save(state, tmp_path / "mine.bin")
    method = build_method("coca", "coca-tiny", str(tmp_path / "mine.bin"), device="cpu")
    assert (method.info.weights, method.info.weights_sha256) == ("mine.bin", coca.info.weights_sha256)
    torch.save({**state, "text.cls_emb": torch.zeros(31)}, tmp_path / "other.bin")
    with pytest.raises(WeightsError, match=r"text.cls_emb is \[31\], expected \[32\]"):
        build_method("coca", "coca-tiny", str(tmp_path / "other.bin"), device="cpu")


def test_cocas_default_is_the_one_fine_tuned_on_coco(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(name: str, tag: str, entry: dict[str, object]) -> Path:
        asked.append((name, tag, entry["hf_hub"]))
        raise WeightsError("no hub here")

    monkeypatch.setattr(model_weights, "fetch_pretrained", fetch)
    with pytest.raises(WeightsError, match="no hub here"):
        build_method("coca", device="cpu")
    assert asked == [(COCA, COCA_WEIGHTS, "laion/mscoco_finetuned_CoCa-ViT-L-14-laion2B-s13B-b90k/")]


@pytest.mark.parametrize(
    ("backbone", "weights", "size", "message"),
    [
        ("RN50", "random", None, "unknown backbone 'RN50'; expected one of coca-tiny, coca_"),
        ("coca-tiny", "random", 40, "multiple of 16"),
        ("coca_ViT-B-32", "nonsense", None, "weights 'nonsense' of coca_ViT-B-32: expected `random`, `laion2b"),
    ],
)
def test_what_coca_refuses(backbone: str, weights: str, size: int | None, message: str) -> None:
    with pytest.raises(ForError, match=message):
        build_method("coca", backbone, weights, image_size=size, device="cpu")
    with pytest.raises(UsageError, match="unknown device"):
        build_method("coca", "coca-tiny", "random", device="tpu?")


def test_names() -> None:
    names = ("coca", "owlvit", "owlv2", "blip2")
    assert [parse_method(name) for name in names] == [(name, None) for name in names]
    with pytest.raises(UsageError, match=r"expected one of clip, .*, for, for\+, coca, owlvit, owlv2, blip2, the path"):
        parse_method("cocoa")
    with pytest.raises(UsageError, match="only cluster-clip takes a count"):
        build_method("coca:3", "coca-tiny", "random")
    assert isinstance(build_method("coca", "coca-tiny", "random", device="cpu"), Coca)


@pytest.mark.parametrize("method", ["owlvit", "owlv2", "blip2"])
def test_without_transformers_one_line_says_how_to_install_it(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(hub_models, "find_spec", lambda name: None if name == "transformers" else found(name))
    with pytest.raises(WeightsError, match=f"{method} needs transformers from PyPI.*make install-encoders") as caught:
        build_method(method, weights="random", device="cpu")
    assert "\n" not in str(caught.value)


def test_the_channels_are_clips() -> None:
    assert (CLIP_MEAN, CLIP_STD) == (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
