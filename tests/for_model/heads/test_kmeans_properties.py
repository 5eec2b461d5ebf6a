"""The two K-means engines against each other on whatever hypothesis thinks of."""

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from for_model.heads.kmeans import kmeans_batched, kmeans_reference


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
    for image in range(len(points)):  # numbers of clusters that are refilled at once may be exchanged
        one, other = batched.labels[image], reference.labels[image]
        assert torch.equal(one[:, None] == one[None, :], other[:, None] == other[None, :])
    torch.testing.assert_close(
        torch.stack([image[labels] for image, labels in zip(*batched[::-1], strict=True)]),
        torch.stack([image[labels] for image, labels in zip(*reference[::-1], strict=True)]),
    )  # of each cell, the mean of its cluster


@settings(max_examples=30)
@given(cells(), st.integers(1, 12))
def test_an_image_does_not_depend_on_its_batch(points: torch.Tensor, n_clusters: int) -> None:
    together = kmeans_batched(points, n_clusters)
    for image in range(len(points)):
        alone = kmeans_batched(points[image : image + 1], n_clusters)
        assert torch.equal(alone.labels[0], together.labels[image])
