"""The text encoder without torch: the same embeddings as open_clip's, in a fraction of the time."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from for_model import numpy_text as module
from for_model.backbones.clip_resnet import ClipResnet, load_clip_resnet
from for_model.files import WEIGHTS_DIR
from for_model.numpy_text import NumpyText, numpy_text
from for_model.text import embed_categories, embed_queries
from tests.helpers.paths import REPOSITORY

TEXTS = [
    "dog",
    "a red umbrella",
    "A sentence of more words than three.",
    "Ünïcode &amp; ☂️  and\tspaces",
    "x <end_of_text> y <start_of_text>",
    "so many words that they are cut " * 5,
    "??!",
    " it's 3 o'clock ",
]


@pytest.fixture(scope="module")
def backbone() -> ClipResnet:
    return load_clip_resnet("RN-mini", device="cpu")


@pytest.fixture(scope="module")
def quick(backbone: ClipResnet) -> NumpyText:
    found = numpy_text("RN-mini", backbone.weights_sha256, backbone.dim)
    assert found is not None
    return found


def test_it_equals_torch(backbone: ClipResnet, quick: NumpyText) -> None:
    for texts in (TEXTS, TEXTS[:1], ["dog"] * 40, []):
        expected = backbone.encode_texts(texts).numpy()
        np.testing.assert_allclose(quick.encode_texts(texts), expected, atol=1e-6)
    assert quick.encode_texts(TEXTS).dtype == np.float32


def test_names_and_queries_equal_torchs(backbone: ClipResnet, quick: NumpyText) -> None:
    queries = np.stack([quick.embed_query(text) for text in TEXTS])
    np.testing.assert_allclose(queries, embed_queries(backbone, TEXTS).numpy(), atol=1e-6)
    np.testing.assert_allclose(quick.embed_names(TEXTS), embed_categories(backbone, TEXTS).numpy(), atol=1e-6)


def test_both_activations_are_torchs() -> None:
    x = np.linspace(-12, 12, 4001, dtype=np.float32)
    expected = torch.nn.functional.gelu(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(module._gelu(x), expected, atol=1e-6, rtol=1e-5)
    np.testing.assert_allclose(
        module._quick_gelu(x), (torch.from_numpy(x) * torch.sigmoid(1.702 * torch.from_numpy(x))).numpy(), atol=1e-6
    )


def test_other_weights_need_torch(backbone: ClipResnet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    random = load_clip_resnet("RN-mini", "random", device="cpu")
    assert numpy_text("RN-mini", random.weights_sha256, random.dim) is None
    assert numpy_text("RN50", backbone.weights_sha256, backbone.dim) is None
    assert numpy_text("../RN-mini", backbone.weights_sha256, backbone.dim) is None
    state = load_file(WEIGHTS_DIR / "rn-mini.safetensors")
    state["ln_final.bias"][0] += 1  # of the very file, one number changed
    save_file(state, tmp_path / "rn-mini.safetensors")
    monkeypatch.setattr(module, "WEIGHTS_DIR", tmp_path)
    assert numpy_text.__wrapped__("RN-mini", backbone.weights_sha256, backbone.dim) is None
    (tmp_path / "rn-mini.safetensors").write_bytes(b"damaged")
    assert numpy_text.__wrapped__("RN-mini", backbone.weights_sha256, backbone.dim) is None


@pytest.mark.slow
def test_it_imports_no_torch(backbone: ClipResnet) -> None:
    code = (
        "import sys; from for_model.numpy_text import numpy_text;"
        f"numpy_text('RN-mini', '{backbone.weights_sha256}', {backbone.dim}).embed_query('dog');"
        "print([name for name in ('torch', 'open_clip', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
