"""The two K-means engines against each other on whatever hypothesis thinks of."""

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from for_model.heads.kmeans import Clusters, kmeans_batched, kmeans_reference


@st.composite
def cells(draw: st.DrawFn) -> torch.Tensor:
    """[B, K, D] unit-norm, some of the cells of an image the same."""
    n_images, n_points, dim = draw(st.integers(1, 3)), draw(st.integers(1, 20)), draw(st.integers(2, 8))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    points = F.normalize(torch.randn(n_images, n_points, dim, generator=generator), dim=-1)
    copied = draw(st.lists(st.integers(0, n_points - 1), min_size=n_points, max_size=n_points))
    return points[:, copied] if draw(st.booleans()) else points


@settings(max_examples=30)
@given(cells(), st.integers(1, 12), st.sampled_from([1, 2, 50]))
def test_the_engines_agree(points: torch.Tensor, n_clusters: int, iterations: int) -> None:
    batched = kmeans_batched(points, n_clusters, iterations)
    reference = kmeans_reference(points, n_clusters, iterations)
    _check_agree(points, batched, reference)


@settings(max_examples=30)
@given(st.integers(3, 20), st.integers(2, 8), st.integers(2, 12), st.integers(0, 2**32 - 1))
def test_the_engines_agree_when_a_cluster_loses_its_cells(n_points: int, dim: int, n_clusters: int, seed: int) -> None:
    """Two seeds are one cell, so that the second has none to begin with and takes the farthest."""
    generator = torch.Generator().manual_seed(seed)
    points = F.normalize(torch.randn(1, n_points, dim, generator=generator), dim=-1)
    seeds = torch.randperm(n_points, generator=generator)[None, : min(n_clusters, n_points)]
    seeds[0, 1] = seeds[0, 0]
    arguments = (points, seeds.shape[1], 50, seeds)
    _check_agree(points, kmeans_batched(*arguments), kmeans_reference(*arguments))


def _check_agree(points: torch.Tensor, batched: Clusters, reference: Clusters) -> None:
    """Both group the cells of an image alike, whatever their clusters' numbers, and have the groups' means."""
    for image, cells in enumerate(points):
        one, other = batched.labels[image], reference.labels[image]
        together = one[:, None] == one[None, :]  # [K, K]
        assert torch.equal(together, other[:, None] == other[None, :])
        means = together.double() @ cells.double() / together.sum(dim=1, keepdim=True)
        torch.testing.assert_close(batched.centres[image][one].double(), means, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(reference.centres[image][other].double(), means, atol=1e-6, rtol=1e-5)


@settings(max_examples=30)
@given(cells(), st.integers(1, 12))
def test_an_image_does_not_depend_on_its_batch(points: torch.Tensor, n_clusters: int) -> None:
    together = kmeans_batched(points, n_clusters)
    for image in range(len(points)):
        alone = kmeans_batched(points[image : image + 1], n_clusters)
        assert torch.equal(alone.labels[0], together.labels[image])
