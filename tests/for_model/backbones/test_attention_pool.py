"""Attention to tokens that aren't projected, against torch's own."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from for_model.backbones.attention_pool import attend_tokens, packed_projections

WIDTH, HEADS, TOKENS = 48, 4, 40


@pytest.mark.parametrize("n_queries", [1, 6, 9, 10, 30])  # up to 9 are few: 9 x (1 + 4 x 40 / 48) < 40
@pytest.mark.parametrize("images", [1, 3])
def test_it_is_torchs_attention_for_few_and_many_queries(n_queries: int, images: int) -> None:
    """Values and all gradients. One set of queries for three images is the same as that set three times."""
    torch.manual_seed(0)
    own = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    nn.init.normal_(own.in_proj_bias)
    queries = torch.randn(images, n_queries, WIDTH, requires_grad=True)
    keys, values = torch.randn(2, 3, TOKENS, WIDTH).unbind()
    (weight, bias), k, v = packed_projections(own)
    Z, weights = attend_tokens(F.linear(queries, weight, bias), keys, values, k, v, HEADS)
    found = own.out_proj(Z)
    repeated = queries.expand(3, -1, -1)
    expected, expected_weights = own(repeated, keys, values)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(weights.mean(1), expected_weights, atol=1e-6, rtol=1e-4)
    factors = torch.randn_like(found)
    wanted = [queries, *own.parameters()]
    theirs = torch.autograd.grad((expected * factors).sum(), wanted)
    for ours, their in zip(torch.autograd.grad((found * factors).sum(), wanted), theirs, strict=True):
        torch.testing.assert_close(ours, their, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("n_queries", [2, 30])
def test_dropped_weights_drop_their_share_of_the_values_bias(n_queries: int) -> None:
    """Constant values and no weight of them leave v's bias, times the sum of what wasn't dropped."""
    torch.manual_seed(0)
    zero, bias = torch.zeros(WIDTH, WIDTH), torch.arange(WIDTH).float()
    tokens = torch.randn(2, TOKENS, WIDTH)
    q = torch.zeros(2, n_queries, WIDTH)
    Z, weights = attend_tokens(q, tokens, tokens, (zero, bias), (zero, bias), HEADS, dropout=0.5)
    assert 0.3 < float((weights == 0).float().mean()) < 0.7
    kept = weights.sum(-1).transpose(1, 2)  # [B, N, heads]
    expected = (kept[..., None] * bias.unflatten(0, (HEADS, -1))).flatten(2)
    torch.testing.assert_close(Z, expected, atol=1e-4, rtol=1e-4)
