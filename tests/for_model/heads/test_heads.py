"""The heads against independent forms of their equations."""

import pytest
import torch
import torch.nn.functional as F

from for_model.backbones.clip_resnet import ClipResnet
from for_model.errors import UsageError
from for_model.heads.clip import ClipHead
from for_model.heads.cluster import ClusterHead
from for_model.heads.dense import DenseHead
from for_model.heads.protocol import Head

HEADS: list[Head] = [ClipHead(), DenseHead(), ClusterHead(6), ClusterHead(6, engine="reference")]


@pytest.fixture(scope="module")
def X(mini: ClipResnet) -> torch.Tensor:
    """Feature maps with more variety than noise images give."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, mini.n_cells, mini.width, generator=generator).relu() * 3


def test_clip_is_eq_1_written_out(mini: ClipResnet, X: torch.Tensor) -> None:
    pool = mini.pool
    for x, y in zip(X, ClipHead()(X, pool), strict=True):
        tokens = torch.cat([x.mean(0, keepdim=True), x]) + pool.positional_embedding
        q, k, v = pool.q_proj(tokens[:1]), pool.k_proj(tokens), pool.v_proj(tokens)
        z = []
        for part in torch.arange(mini.width).chunk(pool.num_heads):
            attention = (q[:, part] @ k[:, part].T / len(part) ** 0.5).softmax(-1)
            z.append(attention @ v[:, part])
        expected = pool.c_proj(torch.cat(z, dim=-1))
        torch.testing.assert_close(y, expected / expected.norm(), atol=1e-5, rtol=1e-4)


def test_clip_is_the_models_own(mini: ClipResnet) -> None:
    pixels = torch.randn(3, 3, 160, 160, generator=torch.Generator().manual_seed(2))
    expected = mini.model.encode_image(pixels, normalize=True)
    torch.testing.assert_close(ClipHead()(mini.features(pixels), mini.pool)[:, 0], expected, atol=1e-5, rtol=0)


def test_dense_is_two_1x1_convolutions(mini: ClipResnet, X: torch.Tensor) -> None:
    side = mini.pool.grid
    image = X.transpose(1, 2).unflatten(-1, (side, side))  # [B, Ce, H, W]
    v = F.conv2d(image, mini.pool.v_proj.weight[:, :, None, None], mini.pool.v_proj.bias)
    y = F.conv2d(v, mini.pool.c_proj.weight[:, :, None, None], mini.pool.c_proj.bias)
    expected = F.normalize(y, dim=1).flatten(2).transpose(1, 2)
    torch.testing.assert_close(DenseHead()(X, mini.pool), expected, atol=1e-5, rtol=1e-4)


def test_dense_has_no_positions(mini: ClipResnet, X: torch.Tensor) -> None:
    order = torch.randperm(mini.n_cells, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(DenseHead()(X[:, order], mini.pool), DenseHead()(X, mini.pool)[:, order])


def test_cluster_engines_agree(mini: ClipResnet, X: torch.Tensor) -> None:
    batched = ClusterHead(6)(X, mini.pool)
    torch.testing.assert_close(batched, ClusterHead(6, engine="reference")(X, mini.pool), atol=1e-5, rtol=0)


def test_cluster_of_as_many_clusters_as_cells_is_dense(mini: ClipResnet, X: torch.Tensor) -> None:
    similarities = ClusterHead(mini.n_cells)(X, mini.pool) @ DenseHead()(X, mini.pool).transpose(1, 2)
    torch.testing.assert_close(similarities.amax(1), torch.ones(4, mini.n_cells))


def test_one_cluster_is_the_mean_of_dense(mini: ClipResnet, X: torch.Tensor) -> None:
    expected = F.normalize(DenseHead()(X, mini.pool).mean(dim=1, keepdim=True), dim=-1)
    torch.testing.assert_close(ClusterHead(1)(X, mini.pool), expected)


@pytest.mark.parametrize("head", HEADS, ids=lambda head: f"{head.name}-{getattr(head, 'engine', '')}")
def test_every_head(head: Head, mini: ClipResnet, X: torch.Tensor) -> None:
    Y = head(X, mini.pool)
    assert Y.shape == (4, head.n_embeddings(mini.n_cells), mini.dim)
    assert Y.dtype == torch.float32
    torch.testing.assert_close(Y.norm(dim=-1), torch.ones(Y.shape[:2]))
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(head(X[order], mini.pool), Y[order], atol=1e-5, rtol=0)
    torch.testing.assert_close(head(X[1:2], mini.pool), Y[1:2], atol=1e-5, rtol=0)
    assert head(X[:0], mini.pool).shape == (0, *Y.shape[1:])


def test_settings_hold_what_changes_the_embeddings() -> None:
    assert ClusterHead(6).settings == {"clusters": 6, "iterations": 50}
    assert ClusterHead(6).settings == ClusterHead(6, engine="reference").settings
    assert DenseHead().settings == ClipHead().settings == {}


@pytest.mark.parametrize(("clusters", "iterations"), [(0, 5), (-1, 5), (5, 0)])
def test_cluster_counts_that_make_no_sense(clusters: int, iterations: int) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        ClusterHead(clusters, iterations)


def test_unknown_engine() -> None:
    with pytest.raises(UsageError, match="batched, reference"):
        ClusterHead(3, engine="faiss")  # type: ignore[arg-type]


class TestEvidence:
    @pytest.mark.parametrize("head", [DenseHead(), ClusterHead(6), ClusterHead(6, engine="reference")])
    def test_embeddings_are_the_dense_ones_in_these_shares(self, head: Head, mini: ClipResnet, X: torch.Tensor) -> None:
        shares = head.evidence(X, mini.pool)
        assert shares.shape == (len(X), head.n_embeddings(mini.n_cells), mini.n_cells)
        torch.testing.assert_close(shares.sum(dim=2), torch.ones(shares.shape[:2]))
        mixed = F.normalize(shares @ DenseHead()(X, mini.pool), dim=-1)
        torch.testing.assert_close(mixed, head(X, mini.pool), atol=1e-5, rtol=0)

    def test_a_cluster_without_cells_shows_those_that_it_repeats(self, mini: ClipResnet, X: torch.Tensor) -> None:
        two = X[:1, :1].repeat(1, mini.n_cells, 1)
        two[:, -3:] = X[:1, 1:2]  # two distinct cells, so of four clusters two stay empty
        head = ClusterHead(4)
        mixed = F.normalize(head.evidence(two, mini.pool) @ DenseHead()(two, mini.pool), dim=-1)
        torch.testing.assert_close(mixed, head(two, mini.pool), atol=1e-5, rtol=0)

    def test_clips_is_its_attention_written_out(self, mini: ClipResnet, X: torch.Tensor) -> None:
        pool = mini.pool
        for x, shares in zip(X, ClipHead().evidence(X, pool), strict=True):
            tokens = torch.cat([x.mean(0, keepdim=True), x]) + pool.positional_embedding
            q, k = pool.q_proj(tokens[:1]), pool.k_proj(tokens)
            parts = torch.arange(mini.width).chunk(pool.num_heads)
            heads = [(q[:, part] @ k[:, part].T / len(part) ** 0.5).softmax(-1) for part in parts]
            torch.testing.assert_close(shares, torch.stack(heads).mean(0)[:, 1:], atol=1e-6, rtol=1e-4)
