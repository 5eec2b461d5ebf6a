"""Trained heads and their files: what they hold, what they fit, and how a damaged or foreign one is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from for_model.backbones.clip_resnet import ClipResnet, load_clip_resnet
from for_model.backbones.photo_lite import PhotoPool, PhotoSettings
from for_model.errors import UsageError, WeightsError
from for_model.heads.clip import ClipHead
from for_model.heads.dense import DenseHead
from for_model.methods.build import build_method
from for_model.methods.head_config import HeadConfig
from for_model.methods.head_files import check_head_file, load_head, make_head, open_head, read_head_file, write_head
from for_model.methods.packaged_heads import packaged_head, packaged_heads
from for_model.methods.registry import METHODS, head_kinds, parse_method

KINDS = head_kinds()


def config(kind: str) -> HeadConfig:
    return HeadConfig(kind=kind, queries=5, feedforward=32, freeze="vo")  # type: ignore[arg-type]


def written(path: Path, mini: ClipResnet, kind: str = "for", method: str = "for-sup") -> Path:
    torch.manual_seed(0)
    write_head(path, make_head(config(kind), mini.pool), config(kind), method, mini, {"seed": 0})
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_a_written_head_is_the_same_head(mini: ClipResnet, X: Tensor, tmp_path: Path, kind: str) -> None:
    path = written(tmp_path / "head.safetensors", mini, kind)
    torch.manual_seed(0)
    expected = make_head(config(kind), mini.pool).eval()(X, mini.pool)
    before = torch.random.get_rng_state()
    file = read_head_file(path)
    head = open_head(file, mini)
    assert torch.equal(torch.random.get_rng_state(), before)  # nobody's random numbers are shifted
    assert (file.method, file.config, file.training) == ("for-sup", config(kind), {"seed": 0})
    torch.testing.assert_close(head(X, mini.pool), expected, atol=2e-3, rtol=0)  # float16 on disk
    assert head.n_embeddings(25) == {"for": 5, "for+": 5, "ft-clip": 1, "ft-dense-clip": 25}[kind]
    assert len(head.settings["head_sha256"]) == 64
    assert not any(p.requires_grad for p in head.module.parameters())


def test_fine_tuned_heads_start_as_what_they_tune(mini: ClipResnet, X: Tensor) -> None:
    for kind, plain in (("ft-clip", ClipHead()), ("ft-dense-clip", DenseHead())):
        head = make_head(config(kind), mini.pool)
        torch.testing.assert_close(head(X, mini.pool), plain(X, mini.pool))
        with torch.no_grad():
            head.own["v_proj"].weight[:100].mul_(3)
        assert not torch.allclose(head(X, mini.pool), plain(X, mini.pool), atol=1e-3)


def test_a_head_of_another_backbone_is_refused(mini: ClipResnet, tmp_path: Path) -> None:
    path = written(tmp_path / "head.safetensors", mini)
    with pytest.raises(WeightsError, match="was trained on RN-mini with the weights 'random'"):
        load_head(read_head_file(path), load_clip_resnet("RN-mini"))
    with pytest.raises(UsageError, match="leave --backbone out"):
        build_method(str(path), "RN50", device="cpu")
    method = build_method(str(path), device="cpu")
    assert (method.info.method, method.info.weights) == ("for-sup", "random")
    with pytest.raises(WeightsError, match="this RN-mini"):
        build_method(str(path), weights="rn-mini", device="cpu")


def test_a_head_whose_backbone_is_a_file_says_how_to_name_it(mini: ClipResnet, tmp_path: Path) -> None:
    path = written(tmp_path / "head.safetensors", mini)
    with_file = dict(json.loads(json.dumps(read_head_file(path).backbone)), weights="mine.pt")
    tensors = load_file(path)
    metadata = {"format": "for-head/1", "method": "for", "backbone": json.dumps(with_file)}
    metadata |= {"head": json.dumps(vars(config("for"))), "training": "{}"}
    save_file(tensors, path, metadata)
    with pytest.raises(WeightsError, match="give its path with --weights"):
        build_method(str(path), device="cpu")


def test_files_that_are_no_head(mini: ClipResnet, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="there is no head file"):
        read_head_file(tmp_path / "missing.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    with pytest.raises(WeightsError, match="damaged"):
        read_head_file(tmp_path / "text.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="no head file of the format"):
        read_head_file(tmp_path / "other.safetensors")
    path = written(tmp_path / "head.safetensors", mini)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="damaged"):
        read_head_file(path)
    path = written(tmp_path / "head.safetensors", mini)
    file = read_head_file(path)
    tensors = load_file(path)
    del tensors["queries"]
    save_file(tensors, path)
    with pytest.raises(WeightsError, match="queries"):
        load_head(file, mini)


def test_a_parameter_that_float16_cannot_hold(mini: ClipResnet, tmp_path: Path) -> None:
    head = make_head(config("for"), mini.pool)
    with torch.no_grad():
        head.queries[0, 0] = 1e6
    with pytest.raises(WeightsError, match="queries"):
        write_head(tmp_path / "head.safetensors", head, config("for"), "for", mini, {})
    assert not list(tmp_path.iterdir())


def photo_pool() -> PhotoPool:
    generator = torch.Generator().manual_seed(0)
    names = torch.nn.functional.normalize(torch.randn(10, 6, generator=generator), dim=-1)
    classifier = torch.nn.Linear(16, 10)
    classifier.weight.data = torch.randn(10, 16, generator=generator)
    return PhotoPool(classifier, names, 3, PhotoSettings()).requires_grad_(False)


def photo_map() -> Tensor:
    return torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(1)).relu()


def test_a_pool_that_is_no_clips_keeps_its_q_and_k() -> None:
    pool = photo_pool()
    head = make_head(HeadConfig(queries=4, heads=4, feedforward=8), pool)
    Y = head(photo_map(), pool)
    assert Y.shape == (2, 4, 7)
    Y.sum().backward()
    assert head.queries.grad is not None
    assert head.queries.grad.any()
    with pytest.raises(UsageError, match=r"use head\.kind=for with head\.freeze=qkvo"):
        make_head(HeadConfig(heads=4, freeze="vo"), pool)


def of_the_values(head: torch.nn.Module, Y: Tensor) -> bool:
    """Whether a gradient reaches the linear map that is added to the values."""
    (Y * torch.randn(Y.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    return bool(head.residual.weight.grad.any())  # type: ignore[union-attr]


def test_fine_tuning_a_pool_that_is_no_clips_adds_to_its_values() -> None:
    pool, X = photo_pool(), photo_map()
    tokens = pool.tokens(X)
    inputs = {"ft-clip": tokens.mean(dim=1, keepdim=True), "ft-dense-clip": X}  # its mean token attends uniformly
    frozen = {"ft-clip": pool.attend(tokens[:, :1], tokens), "ft-dense-clip": pool.project(X)}
    for kind, plain in (("ft-clip", ClipHead()), ("ft-dense-clip", DenseHead())):
        head = make_head(HeadConfig(kind=kind), pool)
        torch.testing.assert_close(head(X, pool), plain(X, pool))
        assert [name for name, _ in head.named_parameters()] == ["residual.weight", "residual.bias"]
        assert of_the_values(head, head(X, pool))
        with torch.no_grad():
            head.residual.weight.normal_()
            expected = frozen[kind] + head.residual(inputs[kind])
            torch.testing.assert_close(head(X, pool), torch.nn.functional.normalize(expected, dim=-1))


def test_fors_values_are_added_to_those_of_a_pool_that_is_no_clips() -> None:
    pool, X = photo_pool(), photo_map()
    heads = []
    for freeze in ("qkvo", "none"):
        torch.manual_seed(0)
        settings = HeadConfig(queries=4, heads=4, feedforward=8, freeze=freeze)  # type: ignore[arg-type]
        heads.append(make_head(settings, pool).eval())
    frozen, trained = heads
    torch.testing.assert_close(trained(X, pool), frozen(X, pool))
    assert of_the_values(trained, trained(X, pool))


def test_methods_by_name() -> None:
    assert parse_method("for") == ("for", None)
    assert parse_method("runs/mine/head.safetensors") == ("runs/mine/head.safetensors", None)
    trained = {name for name, entry in METHODS.items() if entry.trained}
    assert trained >= {"for", "for-sup", "for-pl", "ft-clip", "ft-dense-clip"}
    for name in trained - {"for", "for+"}:
        with pytest.raises(UsageError, match="is trained, and none comes with FOR"):
            parse_method(name)
    with pytest.raises(UsageError, match="no head of FOR comes with RN50"):
        packaged_head("RN50")
    method = build_method("for", device="cpu")
    assert (method.info.method, method.info.backbone, method.info.n_embeddings) == ("for", "RN-mini", 8)
    assert packaged_heads("RN-mini") == [packaged_head("RN-mini"), packaged_head("RN-mini", "for+")]
    assert packaged_heads("RN50") == []
    assert packaged_head("RN-mini").stat().st_size < 20e6


def test_a_packaged_head_that_has_gone_is_missed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("for_model.methods.packaged_heads.WEIGHTS_DIR", tmp_path)
    with pytest.raises(WeightsError, match=r"^FOR\+: its head for RN-mini is missing from this installation \("):
        build_method("for+", device="cpu")


def test_a_packaged_head_is_compared_with_its_known_hash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its file is older than the hash that others carry; a flip of its metadata is found as well as one of a tensor."""
    check_head_file(packaged_head("RN-mini"))
    content = packaged_head("RN-mini", "for+").read_bytes()
    monkeypatch.setattr("for_model.methods.packaged_heads.WEIGHTS_DIR", tmp_path)
    path = tmp_path / "rn-mini-for+.safetensors"
    for position in (20, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(WeightsError, match="is damaged, its hash is another than when it was published"):
            build_method("for+", device="cpu")
        with pytest.raises(WeightsError, match="is damaged"):
            check_head_file(path)
    path.write_bytes(content)
    assert read_head_file(path).method == "for+"
