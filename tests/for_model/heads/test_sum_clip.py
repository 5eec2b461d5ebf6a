"""SUM-CLIP against eq. 3 written out, and what each of its settings promises."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from for_model.backbones.clip_resnet import ClipResnet
from for_model.errors import UsageError
from for_model.heads.config import SumSettings
from for_model.heads.protocol import Head
from for_model.heads.sum_clip import DecoderLayer, SumHead
from for_model.settings import parse


def head(mini: ClipResnet, seed: int = 0, **settings) -> SumHead:
    torch.manual_seed(seed)
    return SumHead(parse(SumSettings, {"queries": 6, "feedforward": 64, **settings}), mini.pool).eval()


def test_is_a_head(mini: ClipResnet, X: Tensor) -> None:
    made: Head = head(mini)
    Y = made(X, mini.pool)
    assert Y.shape == (3, 6, mini.dim)
    assert made.n_embeddings(mini.n_cells) == 6
    torch.testing.assert_close(Y.norm(dim=-1), torch.ones(3, 6))
    assert made.settings["queries"] == 6


def test_without_layers_is_eq_3_with_the_queries_themselves(mini: ClipResnet, X: Tensor) -> None:
    made, pool = head(mini, layers=0), mini.pool
    Y = made(X, pool)
    for x, y in zip(X, Y, strict=True):
        tokens = torch.cat([x.mean(0, keepdim=True), x]) + pool.positional_embedding
        q, k, v = pool.q_proj(made.queries), pool.k_proj(tokens), pool.v_proj(tokens)
        parts = torch.arange(mini.width).chunk(pool.num_heads)
        z = torch.cat([(q[:, p] @ k[:, p].T / len(p) ** 0.5).softmax(-1) @ v[:, p] for p in parts], dim=-1)
        torch.testing.assert_close(y, F.normalize(pool.c_proj(z), dim=-1), atol=1e-5, rtol=1e-4)


def test_the_decoder_layer_is_detrs(mini: ClipResnet) -> None:
    """The layer against DETR's order of operations, written with single-head attention by hand."""
    torch.manual_seed(0)
    layer = DecoderLayer(16, 1, 32, 0.1).eval()
    x, queries, cells, positions = (
        torch.randn(2, 3, 16),
        torch.randn(2, 3, 16),
        torch.randn(2, 5, 16),
        torch.randn(5, 16),
    )

    def attention(module: torch.nn.MultiheadAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights, biases = module.in_proj_weight.chunk(3), module.in_proj_bias.chunk(3)
        q, k, v = (F.linear(t, w, b) for t, w, b in zip((q, k, v), weights, biases, strict=True))
        return module.out_proj((q @ k.transpose(1, 2) / 4).softmax(-1) @ v)

    expected = layer.norms[0](x + attention(layer.self_attention, x + queries, x + queries, x))
    expected = layer.norms[1](expected + attention(layer.cross_attention, expected + queries, cells + positions, cells))
    expected = layer.norms[2](expected + layer.contract(layer.expand(expected).relu()))
    torch.testing.assert_close(layer(x, queries, cells, cells + positions), expected, atol=1e-5, rtol=1e-4)


def test_the_decoder_starts_from_the_queries_themselves(mini: ClipResnet, X: Tensor) -> None:
    made, pool = head(mini), mini.pool
    tokens = pool.tokens(X)
    x = queries = made.queries.expand(3, -1, -1)
    for layer in made.layers:
        x = layer(x, queries, X, tokens[:, 1:])
    expected = F.normalize(pool.attend(made.norm(x), tokens), dim=-1)
    torch.testing.assert_close(made(X, pool), expected)
    directions = F.normalize(made.norm(x), dim=-1)
    first, second = torch.triu_indices(6, 6, 1)
    alike = (directions @ directions.transpose(1, 2)).detach()[:, first, second]
    assert float(alike.mean()) < 0.9  # started from zeros, as DETR's: 0.9997


@pytest.mark.parametrize(("freeze", "trained"), [("none", "qkvc"), ("vo", "qk"), ("qkvo", "")])
@pytest.mark.parametrize("layers", [0, 2])
def test_only_what_is_not_frozen_is_trained(mini: ClipResnet, X: Tensor, freeze, trained: str, layers: int) -> None:
    made = head(mini, freeze=freeze, layers=layers)
    whole = head(mini, layers=layers)
    torch.testing.assert_close(made(X, mini.pool), whole(X, mini.pool))  # the copies start from CLIP's
    made(X, mini.pool).square().sum(1)[:, :3].sum().backward()
    copies = {name.split(".")[1] for name, p in made.named_parameters() if name.startswith("own.") and p.grad.any()}
    assert copies <= {f"{letter}_proj" for letter in trained}
    assert {name.split(".")[1] for name, _ in made.named_parameters() if name.startswith("own.")} == {
        f"{letter}_proj" for letter in trained
    }
    assert made.queries.grad is not None
    assert made.queries.grad.any()
    assert all(p.grad is None and not p.requires_grad for p in mini.pool.parameters())
    with torch.no_grad():
        for module in made.own.values():
            module.weight.mul_(1.5)
    changed = not torch.allclose(made(X, mini.pool), whole(X, mini.pool), atol=1e-4)
    assert changed == bool(trained)


def test_one_image_does_not_change_another(mini: ClipResnet, X: Tensor) -> None:
    made = head(mini)
    torch.testing.assert_close(made(X[1:2], mini.pool), made(X, mini.pool)[1:2], atol=1e-5, rtol=1e-4)


def test_the_evidence_is_the_attention_over_the_cells(mini: ClipResnet, X: Tensor) -> None:
    made = head(mini, freeze="vo")
    evidence = made.evidence(X, mini.pool)
    assert evidence.shape == (3, 6, mini.n_cells)
    assert (evidence >= 0).all()
    assert (evidence.sum(-1) <= 1 + 1e-5).all()
    uniform = head(mini, layers=0)
    with torch.no_grad():
        uniform.queries.zero_()
        pool_bias = mini.pool.q_proj.bias
        uniform.queries.copy_(torch.linalg.lstsq(mini.pool.q_proj.weight, -pool_bias[:, None]).solution.T)
    cells = uniform.evidence(X, mini.pool)  # a query that asks for nothing looks everywhere alike
    torch.testing.assert_close(cells, torch.full_like(cells, 1 / (mini.n_cells + 1)), atol=1e-3, rtol=0)


def test_a_saved_head_gives_the_same_embeddings(mini: ClipResnet, X: Tensor) -> None:
    made, other = head(mini, freeze="vo"), head(mini, seed=1, freeze="vo")
    assert not torch.allclose(made(X, mini.pool), other(X, mini.pool))
    other.load_state_dict(made.state_dict())
    assert torch.equal(made(X, mini.pool), other(X, mini.pool))


def test_the_start_is_xavier_uniform(mini: ClipResnet) -> None:
    made = head(mini)
    for parameter in (made.queries, made.layers[0].expand.weight, made.layers[1].self_attention.in_proj_weight):
        bound = (6 / sum(parameter.shape)) ** 0.5
        assert float(parameter.detach().abs().max()) <= bound
        assert float(parameter.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.05)


@pytest.mark.parametrize("wrong", [{"queries": 0}, {"layers": -1}, {"freeze": "q"}, {"dropout": 1.0}, {"heads": 7}])
def test_settings_that_make_no_sense(mini: ClipResnet, wrong: dict) -> None:
    with pytest.raises(UsageError):
        head(mini, **wrong)
