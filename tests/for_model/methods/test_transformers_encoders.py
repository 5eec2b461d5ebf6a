"""OWL-ViT, OWLv2 and BLIP-2 against the forward passes and image processors of transformers, at random weights."""

import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

from for_model.backbones import model_weights
from for_model.errors import ForError, ImageError, UsageError, WeightsError
from for_model.methods.build import build_method
from for_model.methods.dual_encoders import DualEncoder
from for_model.methods.hub_models import FAMILIES, PUBLISHED, load_hub_model
from for_model.methods.protocol import Method
from for_model.methods.transformers_encoders import Blip2
from for_model.open_clip_import import import_open_clip
from for_model.prompts import PROMPTS, fill_prompts
from for_model.text import embed_categories
from tests.helpers.tiny_models import name_tiny_hub_models

pytestmark = pytest.mark.encoders
METHODS = ("owlvit", "owlv2", "blip2")
TEXTS = ["a dog", "itap of a very long name of a thing", "umbrella"]


@pytest.fixture(scope="module", autouse=True)
def _tiny() -> Iterator[None]:
    pytest.importorskip("transformers", reason="transformers is not installed: make install-encoders")
    with pytest.MonkeyPatch.context() as patch:
        name_tiny_hub_models(patch)
        yield


def build(method: str, weights: str = "random", size: int | None = None, backbone: str | None = "tiny") -> DualEncoder:
    encoder = build_method(method, backbone, weights, image_size=size, device="cpu")
    assert isinstance(encoder, DualEncoder)
    return encoder


def some_pixels(size: int) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def photo(width: int, height: int) -> Image.Image:
    """Smooth noise: what resizing does to pixels that differ wildly from their neighbours is nobody's concern."""
    noise = np.random.default_rng(0).integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each tiny model as its repository on the hub would be."""
    root = tmp_path_factory.mktemp("folders")
    for method in METHODS:
        encoder = build(method)
        encoder.model.save_pretrained(root / method)
        if isinstance(encoder, Blip2):
            encoder._tokenizer.save_pretrained(root / method)
    return {method: root / method for method in METHODS}


@pytest.mark.parametrize(
    ("method", "n", "dim", "size"), [("owlvit", 16, 32, 64), ("owlv2", 16, 32, 64), ("blip2", 5, 16, 28)]
)
def test_every_method_keeps_the_protocol(method: str, n: int, dim: int, size: int) -> None:
    encoder = build(method)
    assert isinstance(encoder, Method)
    info = encoder.info
    assert (info.method, info.backbone, info.weights) == (method, "tiny", "random")
    assert (info.n_embeddings, info.dim, info.image_size, str(encoder.device)) == (n, dim, size, "cpu")
    pixels = torch.stack([encoder.preprocess(photo(160, 96)), encoder.preprocess(Image.new("L", (40, 80)))])
    Y = encoder.encode_images(pixels)
    assert Y.shape == (2, n, dim)
    torch.testing.assert_close(Y.norm(dim=-1), torch.ones(2, n))
    torch.testing.assert_close(encoder.encode_images(pixels[1:]), Y[1:], atol=1e-5, rtol=0)
    assert encoder.encode_images(pixels[:0]).shape == (0, n, dim)
    T = encoder.encode_texts(TEXTS)
    torch.testing.assert_close(T.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(encoder.encode_texts(TEXTS[2:]), T[2:], atol=1e-5, rtol=0)  # padding changes nothing
    assert encoder.encode_texts([]).shape == (0, dim)
    assert not torch.allclose(T[0], T[2], atol=1e-2)
    assert not any(p.requires_grad for p in encoder.model.parameters())
    with pytest.raises(ImageError, match="0 x 5"):
        encoder.preprocess(Image.new("RGB", (0, 5)))


@pytest.mark.parametrize("method", ["owlvit", "owlv2"])
@pytest.mark.parametrize("size", [64, 96])
@torch.no_grad()
def test_owls_cosines_are_the_detectors_logits_but_for_shift_and_scale(method: str, size: int) -> None:
    encoder, pixels = build(method, size=size), some_pixels(size)
    tokens = import_open_clip().tokenize(TEXTS, context_length=16)
    # every text for every image, as the detector takes them
    out = encoder.model(input_ids=tokens.repeat(2, 1), pixel_values=pixels, interpolate_pos_encoding=True)
    Y, T = encoder.encode_images(pixels), encoder.encode_texts(TEXTS)
    assert Y.shape == (2, (size // 16) ** 2, 32)
    torch.testing.assert_close(Y, out.class_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(T, F.normalize(out.text_embeds[0], dim=-1), atol=1e-5, rtol=0)
    head, features = encoder.model.class_head, out.image_embeds.flatten(1, 2)
    shift, scale = head.logit_shift(features), F.elu(head.logit_scale(features)) + 1
    torch.testing.assert_close(Y @ T.T, out.logits / scale - shift, atol=1e-4, rtol=0)


def test_the_mean_of_prompts_ranks_as_the_mean_of_similarities() -> None:
    encoder = build("owlvit")
    Y = encoder.encode_images(some_pixels(64)).flatten(0, 1)
    of_prompts = (Y @ encoder.encode_texts(fill_prompts("dog")).T).mean(dim=1)
    ratio = of_prompts / (Y @ embed_categories(encoder, ["dog"])[0])
    torch.testing.assert_close(ratio, ratio[:1].expand(32), atol=1e-4, rtol=1e-3)
    assert 0 < ratio[0] <= 1
    assert len(PROMPTS) == 7


def test_an_owls_text_is_cut_at_its_length() -> None:
    encoder = build("owlvit")
    long = " ".join(["dog"] * 30)
    torch.testing.assert_close(encoder.encode_texts([long]), encoder.encode_texts([long + " cat"]))


@torch.no_grad()
def test_blip2_is_its_own_image_text_similarity() -> None:
    encoder, pixels = build("blip2"), some_pixels(28)
    tokens = encoder._tokenizer(TEXTS, padding=True, return_tensors="pt")
    out = encoder.model(pixels, tokens.input_ids, tokens.attention_mask, use_image_text_matching_head=False)
    Y, T = encoder.encode_images(pixels), encoder.encode_texts(TEXTS)
    torch.testing.assert_close(Y, out.image_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(T, out.text_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close((Y @ T.T).amax(dim=1), out.logits_per_image, atol=1e-5, rtol=0)


def test_blip2_at_another_size() -> None:
    encoder = build("blip2", size=56)
    Y = encoder.encode_images(some_pixels(56))
    assert Y.shape == (2, 5, 16)
    assert encoder.info.weights_sha256 == build("blip2").info.weights_sha256
    enlarged = F.interpolate(some_pixels(28), 56, mode="nearest")
    assert not torch.allclose(encoder.encode_images(enlarged), build("blip2").encode_images(some_pixels(28)), atol=1e-3)


def test_blip2_reads_texts_as_it_was_trained_to() -> None:
    encoder = build("blip2")
    plain = encoder.encode_texts(["a photo of a dog", "cls"])
    torch.testing.assert_close(encoder.encode_texts(['A photo: of (a) "dog"...', "CLS!"]), plain)
    assert not torch.allclose(encoder.encode_texts(["a photo, of a dog"]), plain[:1], atol=1e-3)
    long = "dog " * 40  # three letters each, so that 32 tokens are reached
    torch.testing.assert_close(encoder.encode_texts([long]), encoder.encode_texts([long + "cat"]))
    assert torch.isfinite(encoder.encode_texts(["...", "犬"])).all()


@pytest.mark.parametrize(
    ("method", "processor"), [("owlvit", "OwlViTImageProcessorPil"), ("blip2", "BlipImageProcessorPil")]
)
@pytest.mark.parametrize("shape", [(160, 96), (40, 56)])
def test_pixels_are_those_of_the_models_processor(method: str, processor: str, shape: tuple[int, int]) -> None:
    import transformers

    encoder = build(method)
    side = {"height": encoder.info.image_size, "width": encoder.info.image_size}
    mean = {"image_mean": encoder.mean, "image_std": encoder.std}
    theirs = getattr(transformers, processor)(size=side, **mean)(photo(*shape), return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(encoder.preprocess(photo(*shape)), theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("shape", "tolerance"), [((40, 56), 0.02), ((56, 40), 0.02), ((64, 64), 0.02), ((160, 96), 0.25)]
)
def test_owlv2s_pixels_are_those_of_its_processor(shape: tuple[int, int], tolerance: float) -> None:
    """Enlarged: the same up to rounding. Reduced: both are smoothed, theirs by a Gaussian, ours by triangles. The
    original pads with grey, transformers 5 with black, so its padding is told to be grey."""
    import transformers

    encoder = build("owlv2")
    processor: Any = transformers.Owlv2ImageProcessorPil(size={"height": 64, "width": 64})
    pad = processor.pad
    processor.pad = lambda image: pad(image, constant_value=0.5)
    theirs = processor(photo(*shape), return_tensors="pt").pixel_values[0].float()
    ours = encoder.preprocess(photo(*shape))
    interior = (theirs - ours)[:, 1:-1, 1:-1]  # they mirror the image at its edge, we end it there
    assert interior.abs().max() < tolerance
    assert interior.abs().mean() < tolerance / 3
    if shape == (40, 56):  # grey on the right, a corner of the image on the left
        assert (ours[:, :, 50:].amax(dim=(1, 2)) - ours[:, :, 50:].amin(dim=(1, 2))).max() < 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_a_local_folder_gives_the_same(method: str, folders: dict[str, Path]) -> None:
    known, read = build(method), build(method, str(folders[method]), backbone=None)
    assert (read.info.backbone, read.info.weights) == (method, method)
    assert read.info.weights_sha256 == known.info.weights_sha256
    size = known.info.image_size
    torch.testing.assert_close(read.encode_images(some_pixels(size)), known.encode_images(some_pixels(size)))
    torch.testing.assert_close(read.encode_texts(TEXTS), known.encode_texts(TEXTS))
    assert build(method, str(folders[method]), backbone="google/mine").info.backbone == "google/mine"


def test_the_hash_changes_with_weights_and_architecture(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["owlvit"], tmp_path / "changed")
    state = load_file(folder / "model.safetensors")
    state["class_head.dense0.bias"] += 1e-3
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    config = folders["owlvit"] / "config.json"
    other = shutil.copytree(folders["owlvit"], tmp_path / "gelu")
    (other / "config.json").write_text(config.read_text().replace("quick_gelu", "gelu"))
    hashes = {build("owlvit", str(path)).info.weights_sha256 for path in (folder, other, folders["owlvit"])}
    assert len({*hashes, build("owlv2").info.weights_sha256}) == 4


def test_blip2s_tokenizer_from_its_vocabulary(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["blip2"], tmp_path / "vocabulary")
    words = sorted(build("blip2")._tokenizer.get_vocab().items(), key=lambda item: item[1])
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(WeightsError, match=r"has no tokenizer: give it the repository's tokenizer\.json or vocab\.txt"):
        build("blip2", str(folder))
    (folder / "vocab.txt").write_text("\n".join(word for word, _ in words))
    read = build("blip2", str(folder))
    torch.testing.assert_close(read.encode_texts(TEXTS), build("blip2").encode_texts(TEXTS))
    # a special token's name in a text is text like any other
    assert read._tokenizer("[SEP]").input_ids == [
        2,
        *read._tokenizer.convert_tokens_to_ids(["[", "s", "##e", "##p", "]"]),
        3,
    ]
    (folder / "vocab.txt").write_text("\n".join([*(word for word, _ in words), *(f"w{i}" for i in range(200))]))
    with pytest.raises(WeightsError, match=r"the tokenizer has 39\d words, the model 300"):
        build("blip2", str(folder))


def broken(folder: Path, how: str) -> None:
    weights = folder / "model.safetensors"
    state = load_file(weights)
    if how == "bin":
        torch.save(state, folder / "pytorch_model.bin")
        weights.unlink()
    elif how == "half":
        weights.write_bytes(weights.read_bytes()[:2000])
    elif how == "json":
        (folder / "config.json").write_text("{")
    elif how == "lacks":
        save_file({name: value for name, value in state.items() if "dense0" not in name}, weights, {"format": "pt"})
    elif how == "shape":
        save_file({**state, "class_head.dense0.bias": torch.zeros(3)}, weights, {"format": "pt"})
    elif how == "nan":
        save_file({**state, "class_head.dense0.bias": torch.full((32,), torch.nan)}, weights, {"format": "pt"})


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("bin", r"with config\.json and \*\.safetensors; .*only pytorch_model\.bin, make one: python -c"),
        ("half", "the model can't be read"),
        ("json", r"its config\.json can't be read"),
        ("lacks", r"4 tensors of owlvit are missing or of another shape \(.*dense0"),
        ("shape", r"1 tensors of owlvit are missing or of another shape \(class_head\.dense0\.bias\)"),
        ("nan", r"class_head\.dense0\.bias holds values that are not finite"),
    ],
)
def test_folders_that_can_not_be_used(how: str, message: str, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["owlvit"], tmp_path / "broken")
    broken(folder, how)
    with pytest.raises(WeightsError, match=message) as caught:
        build("owlvit", str(folder))
    assert "\n" not in str(caught.value)


def test_other_models_and_names_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="a model of the type 'owlv2': expected one for owlvit"):
        build("owlvit", str(folders["owlv2"]))
    with pytest.raises(
        WeightsError, match=r"weights '/no/such/folder' of blip2: expected `hub`, `random`, or a folder"
    ):
        build("blip2", "/no/such/folder")
    with pytest.raises(UsageError, match=r"expected one of google/owlvit-base-patch32, .*, tiny"):
        build("owlvit", backbone="google/unheard-of")
    for method, patch in (("owlvit", 16), ("blip2", 14)):
        with pytest.raises(ForError, match=f"multiple of {patch}"):
            build(method, size=33)


def test_the_sizes_are_the_papers() -> None:
    """Table 9's embeddings an image, from the published architectures."""
    import transformers

    n_patches = {
        name: (config["vision_config"]["image_size"] // config["vision_config"]["patch_size"]) ** 2
        for method in ("owlvit", "owlv2")
        for name, config in PUBLISHED[method].items()
    }
    assert [n_patches[FAMILIES[method].default] for method in ("owlvit", "owlv2")] == [2304, 3600]
    assert n_patches["google/owlvit-large-patch14"] == 3600
    assert n_patches["google/owlv2-large-patch14-finetuned"] == 5184
    blip2 = transformers.Blip2Config(**PUBLISHED["blip2"][FAMILIES["blip2"].default])
    assert (blip2.num_query_tokens, blip2.vision_config.image_size, blip2.vision_config.hidden_size) == (32, 364, 1408)


def test_random_numbers_are_not_shifted() -> None:
    before = torch.get_rng_state()
    load_hub_model("owlvit", "tiny", "random")
    assert torch.equal(before, torch.get_rng_state())


def test_a_hub_out_of_reach_is_told_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("no_proxy", "*")
    expected = (
        r"^google/owlvit-base-patch16: http://127.* can't be reached .*give a folder as weights, .*huggingface\.co"
    )
    with pytest.raises(WeightsError, match=expected) as caught:
        build_method("owlvit", device="cpu")
    assert "\n" not in str(caught.value)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match=r"Salesforce/blip2-itm-vit-g-coco: .*HF_HUB_OFFLINE forbids it"):
        build_method("blip2", weights="hub", device="cpu")


def test_a_repository_is_downloaded_once(monkeypatch: pytest.MonkeyPatch, folders: dict[str, Path]) -> None:
    asked: list[dict[str, Any]] = []

    def snapshot(repository: str, **options: Any) -> str:
        asked.append({"repository": repository, **options})
        here = len(asked) != 1
        return str(folders["owlv2"] if here else folders["owlv2"].parent)  # the cache holds nothing of it at first

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.setattr(model_weights, "_unreachable", lambda address: "")
    encoder = build_method("owlv2", device="cpu")
    assert (encoder.info.backbone, encoder.info.weights) == (FAMILIES["owlv2"].default, "hub")
    assert [each.get("local_files_only", False) for each in asked] == [True, False]
    assert not [pattern for pattern in asked[1]["allow_patterns"] if re.search(r"\.bin|\.py|\*$", pattern)]
    build_method("owlv2", weights="hub", device="cpu")
    assert len(asked) == 3  # found in the cache
