"""The two K-means engines against each other, a direct Lloyd iteration, and known clusters."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from for_model.errors import UsageError
from for_model.heads import kmeans
from for_model.heads.kmeans import Clusters, cluster_means, kmeans_batched, kmeans_reference, seed_clusters

Engine = Callable[..., Clusters]
ENGINES = [kmeans_batched, kmeans_reference]


def unit_points(n_images: int, n_points: int, dim: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(n_images, n_points, dim, generator=torch.Generator().manual_seed(seed)), dim=-1)


def blobs(n_images: int, n_blobs: int, size: int, dim: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Points around orthogonal axes, shuffled, and the blob of each."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.stack([torch.randperm(n_blobs * size, generator=generator) % n_blobs for _ in range(n_images)])
    noise = 0.02 * torch.randn(n_images, n_blobs * size, dim, generator=generator)
    return F.normalize(torch.eye(dim)[labels] + noise, dim=-1), labels


def same_partition(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two labellings [K] group the points alike, whatever the groups' numbers."""
    return torch.equal(a[:, None] == a[None, :], b[:, None] == b[None, :])


def plain_lloyd(points: torch.Tensor, seeds: torch.Tensor, iterations: int) -> torch.Tensor:
    """K-means of one image by the book, on the points themselves. [K, D], [N] -> labels [K]."""
    points = points.double()
    centres = points[seeds]
    for _ in range(iterations):
        labels = torch.cdist(points, centres, compute_mode="donot_use_mm_for_euclid_dist").argmin(dim=1)
        centres = torch.stack([points[labels == n].mean(dim=0) for n in range(len(seeds))])
    return torch.cdist(points, centres, compute_mode="donot_use_mm_for_euclid_dist").argmin(dim=1)


@pytest.mark.parametrize(("n_points", "n_clusters"), [(25, 8), (49, 8), (49, 25), (60, 50)])
def test_the_engines_agree(n_points: int, n_clusters: int) -> None:
    points = unit_points(8, n_points, 32)
    batched, reference = kmeans_batched(points, n_clusters), kmeans_reference(points, n_clusters)
    assert torch.equal(batched.labels, reference.labels)
    torch.testing.assert_close(batched.centres, reference.centres)
    assert batched.centres.dtype == reference.centres.dtype == torch.float32
    assert batched.labels.dtype == reference.labels.dtype == torch.int64


@pytest.mark.parametrize("iterations", [1, 2, 3, 50])
def test_the_engines_agree_when_stopped_early(iterations: int) -> None:
    points = unit_points(6, 40, 8, seed=1)
    batched, reference = kmeans_batched(points, 5, iterations), kmeans_reference(points, 5, iterations)
    assert torch.equal(batched.labels, reference.labels)


def test_batched_is_k_means_by_the_book() -> None:
    points = unit_points(6, 49, 24, seed=2)
    gram = points.double() @ points.double().transpose(1, 2)
    seeds = seed_clusters(gram, 7)
    labels = kmeans_batched(points, 7).labels
    for image in range(6):
        assert torch.equal(labels[image], plain_lloyd(points[image], seeds[image], 50))


def test_a_cluster_that_loses_its_points_is_refilled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random seeds on few dimensions make a cluster run empty now and then; scikit-learn's rule must be met there."""
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(4000, 20, 2, generator=generator) - 0.5
    seeds = torch.rand(4000, 20, generator=generator).argsort(dim=1)[:, :10]
    refilled = kmeans_batched(points, 10, seeds=seeds).labels
    with monkeypatch.context() as patch:
        patch.setattr(kmeans, "_refill", lambda members, distances, valid: members)
        left_empty = kmeans_batched(points, 10, seeds=seeds).labels
    images = torch.nonzero((refilled != left_empty).any(dim=1)).flatten()
    assert len(images) >= 5
    reference = kmeans_reference(points[images], 10, seeds=seeds[images]).labels
    assert all(same_partition(a, b) for a, b in zip(refilled[images], reference, strict=True))


@pytest.mark.parametrize("engine", ENGINES)
def test_known_blobs_are_found(engine: Engine) -> None:
    points, expected = blobs(3, n_blobs=6, size=8)
    labels, centres = engine(points, 6)
    for image in range(3):
        assert same_partition(labels[image], expected[image])
        for cluster in range(6):
            mean = points[image][labels[image] == cluster].mean(dim=0)
            torch.testing.assert_close(centres[image, cluster], mean)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_image_does_not_depend_on_its_batch(engine: Engine) -> None:
    points = torch.cat([unit_points(5, 30, 16), blobs(1, 6, 5)[0]])
    labels, centres = engine(points, 6)
    order = torch.tensor([3, 5, 0, 2, 4, 1])
    assert torch.equal(engine(points[order], 6).labels, labels[order])
    assert torch.equal(engine(points[order], 6).centres, centres[order])
    for image in range(6):
        alone = engine(points[image : image + 1], 6)
        assert torch.equal(alone.labels[0], labels[image])
        torch.testing.assert_close(alone.centres[0], centres[image])


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    points = unit_points(7, 20, 16)
    whole = kmeans_batched(points, 4)
    monkeypatch.setattr(kmeans, "_CHUNK_ENTRIES", 2 * 20 * 20)
    chunked = kmeans_batched(points, 4)
    assert torch.equal(whole.labels, chunked.labels)
    torch.testing.assert_close(whole.centres, chunked.centres)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_order_of_the_points_does_not_matter(engine: Engine) -> None:
    points = unit_points(4, 30, 16)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    straight, shuffled = engine(points, 5), engine(points[:, order], 5)
    assert torch.equal(straight.labels[:, order], shuffled.labels)


@pytest.mark.parametrize("engine", ENGINES)
def test_identical_points_are_one_cluster(engine: Engine) -> None:
    points = unit_points(2, 1, 300).expand(2, 25, 300).contiguous()
    labels, centres = engine(points, 8)
    assert not labels.any()
    torch.testing.assert_close(centres, points[:, :8])


@pytest.mark.parametrize("engine", ENGINES)
def test_fewer_distinct_points_than_clusters(engine: Engine) -> None:
    distinct = unit_points(1, 3, 16)[0]
    which = torch.tensor([0, 1, 1, 2, 1, 0, 2, 1])
    points = distinct[which] + 1e-7 * torch.randn(20, 8, 16, generator=torch.Generator().manual_seed(0))
    labels, centres = engine(points, 6)
    for image in range(20):
        assert same_partition(labels[image], which)
        assert labels[image].max() == 2
        for cluster in range(6):  # what is left over repeats the largest, here the points of kind 1
            kind = int(which[labels[image] == cluster][0]) if cluster < 3 else 1
            torch.testing.assert_close(centres[image, cluster], distinct[kind], atol=1e-6, rtol=0)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_cluster_without_a_seed_takes_no_points(engine: Engine) -> None:
    points = torch.tensor([[[1.0], [0.1], [-0.2]]])
    labels, centres = engine(points, 2, seeds=torch.tensor([[0, -1]]))
    assert not labels.any()
    torch.testing.assert_close(centres, torch.full((1, 2, 1), 0.3))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("n_clusters", [9, 12])
def test_as_many_clusters_as_points_or_more(engine: Engine, n_clusters: int) -> None:
    points = unit_points(2, 9, 16)
    labels, centres = engine(points, n_clusters)
    assert labels.sort(dim=1).values.tolist() == [list(range(9))] * 2
    torch.testing.assert_close(centres.gather(1, labels[:, :, None].expand_as(points)), points)
    torch.testing.assert_close(centres[:, 9:], centres[:, :1].expand_as(centres[:, 9:]))


@pytest.mark.parametrize("engine", ENGINES)
def test_ties_go_to_the_lowest_index(engine: Engine) -> None:
    square = torch.tensor([[[1.0, 0], [0, 1], [-1, 0], [0, -1]]])
    assert engine(square, 1).labels.tolist() == [[0, 0, 0, 0]]
    assert seed_clusters(square.double() @ square.double().transpose(1, 2), 4).tolist() == [[0, 1, 2, 3]]


def test_greedy_seeds_are_the_best_next_points() -> None:
    points = unit_points(1, 20, 8)[0].double()
    seeds = seed_clusters((points @ points.T)[None], 5)[0].tolist()
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").square()
    for count in range(5):
        costs = [distances[[*seeds[:count], point]].min(dim=0).values.sum().item() for point in range(20)]
        assert seeds[count] == min(range(20), key=costs.__getitem__)


def test_weighted_seeds_are_the_best_next_points_of_points_that_count_so() -> None:
    points = unit_points(2, 20, 8).double()
    weights = torch.rand(2, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 5
    gram = points @ points.transpose(1, 2)
    chosen = seed_clusters(gram, 5, weights).tolist()
    for image, seeds in enumerate(chosen):
        distances = torch.cdist(points[image], points[image], compute_mode="donot_use_mm_for_euclid_dist").square()
        for count in range(5):
            costs = [float(distances[[*seeds[:count], k]].amin(0) @ weights[image]) for k in range(20)]
            assert seeds[count] == min(range(20), key=costs.__getitem__)
    assert chosen != seed_clusters(gram, 5).tolist()
    assert seed_clusters(gram, 5, torch.full((2, 20), 3.0).double()).tolist() == seed_clusters(gram, 5).tolist()


def test_a_point_that_counts_twice_is_as_good_as_two() -> None:
    points = unit_points(1, 9, 8).double()
    twice = torch.cat([points, points[:, 3:4]], dim=1)
    weights = torch.ones(1, 9, dtype=torch.float64)
    weights[0, 3] = 2
    gram, of_twice = (each @ each.transpose(1, 2) for each in (points, twice))
    assert seed_clusters(gram, 4, weights).tolist() == seed_clusters(of_twice, 4).tolist()


def test_means_of_empty_clusters_repeat_the_largest() -> None:
    points = torch.tensor([[[1.0], [3.0], [10.0]]])
    assert cluster_means(points, torch.tensor([[2, 2, 0]]), 4).flatten().tolist() == [10, 2, 2, 2]


@pytest.mark.parametrize("engine", ENGINES)
def test_empty_batch_and_wrong_input(engine: Engine) -> None:
    labels, centres = engine(torch.zeros(0, 5, 3), 2)
    assert labels.shape == (0, 5)
    assert centres.shape == (0, 2, 3)
    for points, n_clusters, iterations in [
        (torch.zeros(2, 0, 3), 2, 5),
        (torch.zeros(5, 3), 2, 5),
        (torch.zeros(2, 5, 3), 0, 5),
        (torch.zeros(2, 5, 3), 2, 0),
        (torch.full((2, 5, 3), float("nan")), 2, 5),
    ]:
        with pytest.raises(UsageError):
            engine(points, n_clusters, iterations)
