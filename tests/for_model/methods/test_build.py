"""Methods as the harness sees them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from for_model.errors import ForError, UsageError, WeightsError
from for_model.heads.cluster import default_clusters
from for_model.methods.build import build_method
from for_model.methods.clip_method import ClipMethod
from for_model.methods.protocol import Method
from for_model.methods.registry import METHODS, buildable_methods, method_title, methods_help, parse_method
from for_model.text import embed_categories


def build(method: str, **options: object) -> ClipMethod:
    return build_method(method, "RN-mini", "random", device="cpu", **options)  # type: ignore[arg-type]


def some_pixels(method: Method, n: int = 3) -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.stack(
        [method.preprocess(Image.fromarray(rng.integers(0, 255, (50, 70, 3), dtype=np.uint8))) for _ in range(n)]
    )


@pytest.mark.parametrize(("name", "n"), [("clip", 1), ("dense-clip", 25), ("cluster-clip", 8), ("cluster-clip:5", 5)])
def test_every_method_keeps_the_protocol(name: str, n: int) -> None:
    method = build(name)
    assert isinstance(method, Method)
    info, dim = method.info, method.backbone.dim
    assert (info.method, info.n_embeddings, info.dim, info.image_size) == (name.split(":")[0], n, dim, 160)
    pixels = some_pixels(method)
    assert pixels.shape == (3, 3, info.image_size, info.image_size)
    Y = method.encode_images(pixels)
    assert Y.shape == (3, n, dim)
    assert Y.dtype == torch.float32
    assert Y.device.type == "cpu"
    torch.testing.assert_close(Y.norm(dim=-1), torch.ones(3, n))
    torch.testing.assert_close(method.encode_images(pixels[1:2]), Y[1:2], atol=1e-5, rtol=0)
    assert method.encode_images(pixels[:0]).shape == (0, n, dim)
    T = method.encode_texts(["a dog", "a cat"])
    assert T.shape == (2, dim)
    torch.testing.assert_close(T.norm(dim=-1), torch.ones(2))
    assert method.encode_texts([]).shape == (0, dim)
    assert embed_categories(method, ["dog"]).shape == (1, dim)


def test_clip_is_open_clips_encode_image() -> None:
    method = build("clip")
    pixels = some_pixels(method)
    expected = method.backbone.model.encode_image(pixels, normalize=True)
    torch.testing.assert_close(method.encode_images(pixels)[:, 0], expected, atol=1e-4, rtol=0)


def test_kept_features_give_the_same() -> None:
    method = build("cluster-clip")
    pixels = some_pixels(method)
    X = method.backbone.features(pixels)
    assert torch.equal(method.encode_features(X), method.encode_images(pixels))


def test_infos_tell_methods_apart() -> None:
    infos = [
        build("cluster-clip").info,
        build("cluster-clip:9").info,
        build("dense-clip").info,
        build("cluster-clip", image_size=192).info,
    ]
    assert len({str(info) for info in infos}) == 4
    assert len({info.text_space for info in infos}) == 1
    assert infos[0] == build("cluster-clip", cluster_engine="reference").info
    assert infos[0].settings == {"clusters": 8, "iterations": 50}
    assert infos[1].settings == {"clusters": 9, "iterations": 50}


def test_default_clusters_are_the_papers_at_its_size() -> None:
    assert [default_clusters(cells) for cells in (25, 49, 50, 196)] == [8, 8, 50, 50]
    assert build("cluster-clip", image_size=448).info.n_embeddings == 50


def test_names() -> None:
    ours = ["clip", "dense-clip", "cluster-clip", "for", "for+"]
    assert buildable_methods() == [*ours, "coca", "owlvit", "owlv2", "blip2"]
    assert all(name == entry.name for name, entry in METHODS.items())
    assert methods_help().startswith("clip, dense-clip, cluster-clip, cluster-clip:N, for, for+, coca, ")
    assert parse_method("cluster-clip:25") == ("cluster-clip", 25)
    with pytest.raises(UsageError, match="unknown method 'sum'; expected one of clip, dense-clip, cluster-clip"):
        build("sum")


@pytest.mark.parametrize(
    "name", ["cluster-clip:", "cluster-clip:0", "cluster-clip:x", "cluster-clip:-3", "clip:2", "for:8", "coca:3"]
)
def test_counts_that_make_no_sense(name: str) -> None:
    with pytest.raises(UsageError, match="only cluster-clip takes a count"):
        parse_method(name)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("clip:6", {}, "only cluster-clip takes a count"),
        ("cluster-clip", {"cluster_engine": "faiss"}, "unknown cluster engine"),
        ("clip", {"image_size": 100}, "multiple of 32"),
    ],
)
def test_options_that_make_no_sense_show_before_weights_are_read(
    name: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        build_method(name, "RN-mini", "/no/such/file", device="cpu", **options)  # type: ignore[arg-type]


def test_missing_weights() -> None:
    with pytest.raises(WeightsError, match="path of a file"):
        build_method("clip", "RN-mini", "/no/such/file", device="cpu")


def test_features_that_are_not_finite_are_an_error() -> None:
    method = build("clip")
    with pytest.raises(ForError, match="not finite"):
        method.encode_images(torch.full((1, 3, 160, 160), float("nan")))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ["clip", "dense-clip", "cluster-clip"])
def test_cuda_gives_what_the_cpu_gives(name: str) -> None:
    here, there = build(name), build_method(name, "RN-mini", "random", device="cuda")
    pixels = some_pixels(here, 8)
    assert there.info == here.info
    torch.testing.assert_close(there.encode_texts(["a dog"]), here.encode_texts(["a dog"]), atol=1e-4, rtol=0)
    X = here.backbone.features(pixels)
    torch.testing.assert_close(there.encode_features(X), here.encode_features(X), atol=1e-4, rtol=0)
    if name != "cluster-clip":  # float16 features may fall into other clusters
        torch.testing.assert_close(there.encode_images(pixels), here.encode_images(pixels), atol=1e-2, rtol=0)


def test_weights_from_a_file_keep_its_name(tmp_path: Path) -> None:
    from for_model.tensor_files import write_weights

    state = build("clip").backbone.model.state_dict()
    write_weights(tmp_path / "mine.safetensors", state, {})
    method = build_method("clip", "RN-mini", str(tmp_path / "mine.safetensors"), device="cpu")
    assert method.info.weights == "mine.safetensors"
    assert method.info.weights_sha256 == build("clip").info.weights_sha256
    assert method.info.text_space == build("dense-clip").info.text_space


def test_titles() -> None:
    titles = {name: method_title(name, 8) for name in METHODS}
    assert titles == {
        "clip": "CLIP",
        "dense-clip": "Dense-CLIP",
        "cluster-clip": "Cluster-CLIP 8",
        "ft-clip": "FT-CLIP",
        "ft-dense-clip": "FT-Dense-CLIP",
        "for-sup": "FOR, labels alone, 8",
        "for-pl": "FOR, pseudo-labels alone, 8",
        "for": "FOR 8",
        "for+-sup": "FOR+, labels alone, 8",
        "for+-pl": "FOR+, pseudo-labels alone, 8",
        "for+": "FOR+ 8",
        "coca": "CoCa",
        "owlvit": "OWL-ViT",
        "owlv2": "OWLv2",
        "blip2": "BLIP-2",
    }
    assert method_title("theirs", 8) == "theirs"
