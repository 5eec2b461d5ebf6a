"""Which model a name stands for, and weights: random, packed, from files, from the hub."""

import json
import socket
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from for_model.backbones import model_weights
from for_model.backbones.clip_resnet import load_clip_resnet
from for_model.backbones.model_weights import load_model_weights, model_config, model_names, random_state
from for_model.backbones.registry import load_backbone
from for_model.errors import UsageError, WeightsError
from for_model.open_clip_import import import_open_clip
from for_model.tensor_files import (
    PACKED_ROWS,
    PACKED_VALUES,
    TOKEN_EMBEDDING,
    pack_state_dict,
    read_weights,
    sha256_state,
    unpack_state_dict,
    write_weights,
)
from tests.helpers.tiny_models import OPEN_CLIP

TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 96, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of ours called Tiny, and the folder that its weights are looked for in."""
    configs, weights = tmp_path / "model_configs", tmp_path / "weights"
    configs.mkdir()
    weights.mkdir()
    (configs / "Tiny.json").write_text(json.dumps(TINY))
    monkeypatch.setattr(model_weights, "CONFIG_DIR", configs)
    monkeypatch.setattr(model_weights, "WEIGHTS_DIR", weights)
    return weights


def test_sizes_are_the_published_ones() -> None:
    sizes = {name: model_config(name) for name in ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64")}
    assert [(c["vision_cfg"]["image_size"], c["embed_dim"]) for c in sizes.values()] == [
        (224, 1024),
        (224, 512),
        (288, 640),
        (384, 768),
        (448, 1024),
    ]
    assert {"RN-mini", *sizes} <= set(model_names())
    resnets, vits, cocas = model_names(("resnet",)), model_names(("vit",)), model_names(("coca",))
    assert set(resnets) == {"RN-mini", *sizes}
    assert {"ViT-B-32", "ViT-B-32-quickgelu", "ViT-B-16", "ViT-L-14", "ViT-L-14-336", "ViT-H-14"} <= set(vits)
    assert {"coca_ViT-B-32", "coca_ViT-L-14"} <= set(cocas)
    assert model_names() == resnets + vits
    # other text encoders, tokenizers, poolings and layers than those that FOR takes apart
    left_out = ("SigLIP", "CLIPA", "worldwide", "roberta", "EVA", "MobileCLIP", "PE-Core")
    assert not [name for name in resnets + vits + cocas if any(part in name for part in left_out)]


@pytest.mark.parametrize("name", ["RN-mini", *OPEN_CLIP])
def test_an_empty_model_has_the_shapes_of_a_full_one(name: str) -> None:
    config = OPEN_CLIP[name] if name in OPEN_CLIP else model_config(name)
    kind = import_open_clip().CoCa if "multimodal_cfg" in config else import_open_clip().CLIP
    full = kind(**{key: value for key, value in config.items() if key != "custom_text"})
    before = torch.get_rng_state()
    empty = model_weights.empty_model(config)
    assert torch.equal(torch.get_rng_state(), before)
    for which in ("parameters", "buffers"):
        expected = {name: (value.shape, value.dtype) for name, value in getattr(full, f"named_{which}")()}
        assert {name: (value.shape, value.dtype) for name, value in getattr(empty, f"named_{which}")()} == expected
        assert {value.device.type for value in getattr(empty, which)()} == {"meta"}


def test_open_clips_models_get_the_activation_of_their_weights() -> None:
    assert model_config("RN50")["quick_gelu"]
    assert not model_config("RN-mini")["quick_gelu"]
    assert not model_config("ViT-B-32")["quick_gelu"]
    assert model_config("ViT-B-32-quickgelu")["quick_gelu"]


def test_random_weights_are_always_the_same(tiny: Path) -> None:
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = load_clip_resnet("Tiny", "random")
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
    torch.manual_seed(6)
    assert load_clip_resnet("Tiny", "random").weights_sha256 == first.weights_sha256
    assert first.weights == "random"
    # pinned, so that a store made on one machine with `random` opens on another
    drawn = random_state({"b.weight": torch.empty(2, 4), "a.bias": torch.empty(2)})
    expected = torch.from_numpy(np.random.Generator(np.random.PCG64(0)).standard_normal((2, 4), np.float32)) / 2
    torch.testing.assert_close(drawn["b.weight"], expected)
    assert not drawn["a.bias"].any()


def test_the_hash_changes_with_image_weights_text_weights_and_activation(tiny: Path) -> None:
    loaded = load_model_weights("Tiny", "random")
    hashes = {sha256_state(loaded.state, loaded.config)}
    for name in ("visual.conv1.weight", "visual.layer1.0.bn1.running_mean", TOKEN_EMBEDDING, "text_projection"):
        changed = {**loaded.state, name: loaded.state[name] + 1e-3}
        hashes.add(sha256_state(changed, loaded.config))
    hashes.add(sha256_state(loaded.state, {**loaded.config, "quick_gelu": True}))
    assert len(hashes) == 6
    counted = {**loaded.state, "visual.bn1.num_batches_tracked": torch.tensor(7)}
    reordered = dict(reversed(list(counted.items())))
    assert sha256_state(reordered, loaded.config) in hashes


def packed_tiny(rows: list[int]) -> dict[str, torch.Tensor]:
    return pack_state_dict(load_model_weights("Tiny", "random").state, rows)


def test_the_packaged_form_round_trips(tiny: Path) -> None:
    state = load_model_weights("Tiny", "random").state
    rows = [49407, 5, 49406, 5, 300]
    packed = pack_state_dict(state, rows)
    assert packed[PACKED_ROWS].tolist() == [5, 300, 49406, 49407]
    assert packed[PACKED_ROWS].dtype == torch.int32
    assert packed[PACKED_VALUES].dtype == torch.float16
    assert TOKEN_EMBEDDING not in packed
    assert "attn_mask" not in packed
    state_again = unpack_state_dict(packed, 49408)
    assert state_again.keys() == {name for name in state if not name.endswith("num_batches_tracked")}
    assert torch.equal(state_again[TOKEN_EMBEDDING][[5, 300]], state[TOKEN_EMBEDDING][[5, 300]].half().float())
    assert not state_again[TOKEN_EMBEDDING][[0, 4, 6, 49405]].any()
    assert torch.equal(state_again["visual.conv1.weight"], state["visual.conv1.weight"].half().float())
    assert pack_state_dict(state_again, rows)[PACKED_VALUES].equal(packed[PACKED_VALUES])


def test_the_packaged_file_is_the_default(tiny: Path) -> None:
    with pytest.raises(WeightsError, match="missing from this installation"):
        load_clip_resnet("Tiny")
    write_weights(tiny / "tiny.safetensors", packed_tiny([1, 2, 49406, 49407]), {"seed": "0"})
    backbone = load_clip_resnet("Tiny")
    assert backbone.weights == "tiny"
    assert backbone.weights_sha256 == load_clip_resnet("Tiny", "tiny").weights_sha256
    assert backbone.weights_sha256 != load_clip_resnet("Tiny", "random").weights_sha256
    assert backbone.logit_scale == pytest.approx(1 / 0.07, rel=1e-3)
    assert read_weights(tiny / "tiny.safetensors", 49408)[1] == {"seed": "0"}
    assert backbone.encode_texts(["a dog"]).norm().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".bin"])
def test_local_files(tiny: Path, suffix: str) -> None:
    state = load_model_weights("Tiny", "random").state
    path = tiny / f"mine{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    elif suffix == ".pt":
        torch.save({"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}, path)
    else:
        torch.save({name: value.half() if value.is_floating_point() else value for name, value in state.items()}, path)
    backbone = load_clip_resnet("Tiny", str(path))
    assert backbone.weights == path.name
    same = backbone.weights_sha256 == load_clip_resnet("Tiny", "random").weights_sha256
    assert same == (suffix != ".bin")  # float16 loses bits


def test_a_file_can_say_its_activation(tiny: Path) -> None:
    state = load_model_weights("Tiny", "random").state
    write_weights(tiny / "quick.safetensors", state, {"quick_gelu": "true"})
    quick, plain = load_clip_resnet("Tiny", str(tiny / "quick.safetensors")), load_clip_resnet("Tiny", "random")
    assert quick.weights_sha256 != plain.weights_sha256
    assert not torch.allclose(quick.encode_texts(["a dog"]), plain.encode_texts(["a dog"]), atol=1e-4)


class Bomb:
    """Pickled, it would touch a file when loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_no_pickle_is_run(tiny: Path) -> None:
    torch.save({"state_dict": Bomb(tiny / "boom")}, tiny / "bomb.pt")
    with pytest.raises(WeightsError, match="could run code"):
        load_clip_resnet("Tiny", str(tiny / "bomb.pt"))
    assert not (tiny / "boom").exists()


def test_torchscript_archives_are_explained(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny / "archive.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
        with pytest.raises(WeightsError, match="TorchScript archive") as caught:
            load_clip_resnet("Tiny", str(path))
        command = str(caught.value).split('python -c "')[1].rstrip('"')
        monkeypatch.chdir(tiny)
        exec(command, {})
    assert read_weights(tiny / "archive.safetensors", 1)[0].keys() == {"weight", "bias"}


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (b"nothing like it", "bad.safetensors", "not readable as safetensors"),
        (b"", "empty.safetensors", "not readable as safetensors"),
        (b"nothing like it", "bad.pt", "bad.pt"),
        (b"", "empty.pt", "bad|not readable"),
    ],
)
def test_damaged_files(tiny: Path, content: bytes, name: str, message: str) -> None:
    (tiny / name).write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        load_clip_resnet("Tiny", str(tiny / name))


def test_weights_of_another_model(tiny: Path) -> None:
    state = load_model_weights("Tiny", "random").state
    path = tiny / "other.safetensors"
    save_file({**state, "visual.conv1.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(WeightsError, match=r"visual.conv1.weight is \[2, 2\], expected \[4, 3, 3, 3\]"):
        load_clip_resnet("Tiny", str(path))
    save_file({name: value for name, value in state.items() if "layer4" not in name}, path)
    with pytest.raises(WeightsError, match=r"\d+ tensors missing \(visual.layer4"):
        load_clip_resnet("Tiny", str(path))
    save_file({**state, "logit_scale": torch.tensor(float("nan"))}, path)
    with pytest.raises(WeightsError, match="logit_scale holds values that are not finite"):
        load_clip_resnet("Tiny", str(path))
    save_file({**packed_tiny([1, 2]), PACKED_ROWS: torch.tensor([1, 49408], dtype=torch.int32)}, path)
    with pytest.raises(WeightsError, match="vocabulary of 49408"):
        load_clip_resnet("Tiny", str(path))


def test_packing_refuses_what_it_cannot_hold() -> None:
    state = {TOKEN_EMBEDDING: torch.zeros(10, 2), "w": torch.tensor([1e6])}
    with pytest.raises(WeightsError, match="w holds values"):
        pack_state_dict(state, [1])
    with pytest.raises(WeightsError, match="vocabulary of 10"):
        pack_state_dict(state, [10])
    with pytest.raises(WeightsError, match=r"without 'token_embedding\.weight'"):
        pack_state_dict({}, [])
    assert pack_state_dict({TOKEN_EMBEDDING: torch.zeros(10, 2)}, [])[PACKED_VALUES].shape == (0, 2)


def test_unknown_names() -> None:
    with pytest.raises(UsageError, match=r"unknown backbone 'ViT-B-32'; expected one of RN-mini, RN50,"):
        load_clip_resnet("ViT-B-32")
    with pytest.raises(UsageError, match=r"unknown backbone 'coca_ViT-B-32'; .*, ViT-B-32, .*, photo-lite"):
        load_backbone("coca_ViT-B-32")
    with pytest.raises(WeightsError, match="weights 'openai' of ViT-H-14: expected `random`, `laion2b_s32b_b79k`"):
        load_backbone("ViT-H-14")
    with pytest.raises(WeightsError, match="`random`, `openai`, `yfcc15m`, `cc12m`, or the path"):
        load_clip_resnet("RN50", "laion2b")


def test_a_hub_out_of_reach_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *args: None)
    monkeypatch.setenv("no_proxy", "*")
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)  # how long it would wait before it tries again
    expected = r"RN50 openai: http://127.* can't be reached .*make run-photos.*photo-lite.*RN-mini"
    with pytest.raises(WeightsError, match=expected) as caught:
        load_clip_resnet("RN50")
    assert sum(pauses) < 6
    assert "\n" not in str(caught.value)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE forbids it"):
        load_clip_resnet("RN50")


def test_a_download_that_fails_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(entry: object) -> str:
        raise RuntimeError("no space\nleft")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *args: None)
    monkeypatch.setattr(model_weights, "_unreachable", lambda address: "")
    monkeypatch.setattr(import_open_clip(), "download_pretrained", fail)
    with pytest.raises(WeightsError, match=r"the download failed \(no space left\); try again"):
        load_clip_resnet("RN50")


def test_a_downloaded_tag_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def read(path: Path, vocab_size: int) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        asked.append((path, vocab_size))
        return {name: torch.zeros(value.shape) for name, value in empty.items()}, {}

    asked: list[tuple[Path, int]] = []
    empty = model_weights.empty_model(model_config("RN50")).state_dict()
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repository, file: str(tmp_path / file))
    monkeypatch.setattr(model_weights, "read_weights", read)
    loaded = load_model_weights("RN50")
    assert asked == [(tmp_path / "open_clip_model.safetensors", 49408)]
    assert (loaded.label, loaded.config["quick_gelu"]) == ("openai", True)
