"""K-means over the cells of each image, for Cluster-CLIP: one definition, two engines.

The definition, the same for both, deterministic, and for each image on its own:
1. Seeds: greedily, N cells as initial centres, each the cell that lowers most the sum over all cells of the squared
   distance to the nearest centre. Seeding stops early when every cell coincides with a centre: an image of fewer than
   N distinct cells has as many clusters as distinct cells.
2. Lloyd iterations until no label changes, at most `max_iterations`; then the labels of the last centres. A cluster
   that loses all its cells takes the cell farthest from its own centre (scikit-learn's rule).
3. The centres are the means of the clusters. Clusters that are left without cells repeat the mean of the largest
   cluster, so there are always N centres and a repeated one changes no best match.
Ties go to the lowest index. Distances are float64, and those that agree to 1e-9 are ties: points are expected to be of
about unit norm, so cells that differ only by float32 rounding count as one.

The batched engine works on the cells' inner products instead of the cells: with G = P P^T, a point's distance to the
mean of a set of points needs only sums of G, and K x K is much smaller than K x D here. No image of a batch affects
another.
"""

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from for_model.errors import UsageError

MAX_ITERATIONS = 50

_DECIMALS = 9
_CHUNK_ENTRIES = 1 << 23  # how many entries of K x K float64 matrices are worked on at once: 64 MiB a copy


class Clusters(NamedTuple):
    """What clustering gives.

    labels: [B, K] int64 in 0..N-1, the cluster of each cell.
    centres: [B, N, D] float32, the clusters' means, not normalised.
    """

    labels: Tensor
    centres: Tensor


def kmeans_batched(
    points: Tensor, n_clusters: int, max_iterations: int = MAX_ITERATIONS, seeds: Tensor | None = None
) -> Clusters:
    """Cluster the points of each image, the whole batch at once, on the points' device.

    points: [B, K, D] float, finite, of about unit norm.
    n_clusters: N.
    max_iterations: Lloyd's, at most.
    seeds: [B, N] int64, the cells to start from instead of step 1; -1, at the end of a row, for no seed.

    An empty batch gives empty results.
    Raises UsageError for N < 1, fewer than one iteration, K = 0 or points that are not finite.
    """
    _check(points, n_clusters, max_iterations)
    n_images, n_points, _ = points.shape
    labels = torch.zeros(n_images, n_points, dtype=torch.int64, device=points.device)
    centres = torch.zeros(n_images, n_clusters, points.shape[2], device=points.device)
    chunk = max(1, _CHUNK_ENTRIES // n_points**2)
    for start in range(0, n_images, chunk):
        part = slice(start, start + chunk)
        exact = points[part].double()
        gram = exact @ exact.transpose(1, 2)  # [b, K, K]
        chosen = seed_clusters(gram, n_clusters) if seeds is None else seeds[part]
        labels[part] = _lloyd(gram, chosen, max_iterations)
        centres[part] = cluster_means(exact, labels[part], n_clusters)
    return Clusters(labels, centres)


def kmeans_reference(
    points: Tensor, n_clusters: int, max_iterations: int = MAX_ITERATIONS, seeds: Tensor | None = None
) -> Clusters:
    """The same as `kmeans_batched`, with scikit-learn on the CPU, image by image: how the published baseline works.

    Arguments, results and errors are those of `kmeans_batched`. If several clusters of one image lose all their cells
    in the same iteration, their numbers may come out exchanged.
    """
    _check(points, n_clusters, max_iterations)
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    all_labels, all_centres = [], []
    for i, image in enumerate(points.detach().cpu().double()):
        chosen = seed_clusters((image @ image.T)[None], n_clusters)[0] if seeds is None else seeds[i].cpu()
        start = image[chosen[chosen >= 0]].numpy()
        engine = KMeans(len(start), init=start, n_init=1, max_iter=max_iterations, tol=0, algorithm="lloyd")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct points than clusters: defined above
            labels = torch.from_numpy(engine.fit(image.numpy()).labels_).long()
        all_labels.append(labels)
        all_centres.append(cluster_means(image[None], labels[None], n_clusters)[0])
    if not all_labels:
        return kmeans_batched(points, n_clusters, max_iterations)
    return Clusters(torch.stack(all_labels).to(points.device), torch.stack(all_centres).to(points.device))


def seed_clusters(gram: Tensor, n_clusters: int, weights: Tensor | None = None) -> Tensor:
    """Step 1: greedily, the cells that lower most the sum of all cells' squared distances to the nearest seed.

    gram: [B, K, K] float64, the points' inner products.
    n_clusters: N.
    weights: [B, K] float64, positive, how much each cell counts in that sum; None for all alike.

    Returns [B, N] int64, cells; -1 once every cell coincides with a seed.
    """
    norms = gram.diagonal(dim1=1, dim2=2)
    distances = (norms[:, :, None] + norms[:, None, :] - 2 * gram).round(decimals=_DECIMALS).clamp_(min=0)  # [B, K, K]
    images = torch.arange(len(gram), device=gram.device)
    first = _total(distances, weights).argmin(dim=1)
    seeds = [first]
    nearest = distances[images, first]  # [B, K], squared distance to the nearest seed
    for _ in range(n_clusters - 1):
        cost = _total(torch.minimum(distances, nearest[:, None, :]), weights)  # [B, K]
        chosen = cost.argmin(dim=1)
        seeds.append(torch.where(nearest[images, chosen] > 0, chosen, -1))
        nearest = torch.minimum(nearest, distances[images, chosen])
    return torch.stack(seeds, dim=1)


def _total(distances: Tensor, weights: Tensor | None) -> Tensor:
    """[B, K, K] -> [B, K], the sum over the last axis, by weight if cells have any."""
    total = distances.sum(dim=2) if weights is None else (distances @ weights[:, :, None]).squeeze(2)
    return total.round_(decimals=_DECIMALS)


def cluster_means(points: Tensor, labels: Tensor, n_clusters: int) -> Tensor:
    """Step 3: the mean of each cluster's points.

    A cluster without points repeats the mean of the largest cluster, the lowest numbered of several.

    points: [B, K, D] float.
    labels: [B, K] int64 in 0..N-1.
    n_clusters: N.

    Returns [B, N, D] float32.
    """
    members = _one_hot(labels, n_clusters)  # [B, K, N]
    sizes = members.sum(dim=1)  # [B, N]
    means = members.transpose(1, 2) @ points.double() / sizes.clamp(min=1)[:, :, None]
    largest = sizes.argmax(dim=1)
    filled = means[torch.arange(len(means), device=means.device), largest]  # [B, D]
    return torch.where(sizes[:, :, None] > 0, means, filled[:, None, :]).float()


def _lloyd(gram: Tensor, seeds: Tensor, max_iterations: int) -> Tensor:
    """Step 2: Lloyd's iterations.

    Centres are kept as the sets of points that they are the means of. Images that have converged drop out.

    gram: [B, K, K] float64, the points' inner products.
    seeds: [B, N] int64, the cells to start from; -1 for no seed.
    max_iterations: at most so many.

    Returns the labels, [B, K] int64.
    """
    n_images, n_points, _ = gram.shape
    valid = seeds >= 0  # [B, N]
    members = torch.zeros(n_images, n_points, seeds.shape[1], dtype=gram.dtype, device=gram.device)  # [B, K, N]
    members.scatter_(1, seeds.clamp(min=0)[:, None, :], valid[:, None, :].to(gram.dtype))
    labels = torch.full((n_images, n_points), -1, dtype=torch.int64, device=gram.device)
    active = torch.arange(n_images, device=gram.device)
    for _ in range(max_iterations):
        new, distances = _nearest(gram[active], members)
        moved = (new != labels[active]).any(dim=1)
        labels[active] = new
        members = _refill(_one_hot(new, seeds.shape[1]), distances, valid[active])[moved]
        active = active[moved]
        if not len(active):
            return labels
    labels[active] = _nearest(gram[active], members)[0]
    return labels


def _nearest(gram: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest centre of each point, and the squared distance to it.

    gram: [B, K, K] float64, the points' inner products.
    members: [B, K, N] float64, 1 where a point counts towards a centre. A centre without points is nearest to none.

    Returns [B, K] int64 and [B, K] float64.
    """
    sizes = members.sum(dim=1)  # [B, N]
    cross = gram @ members / sizes.clamp(min=1)[:, None, :]  # [B, K, N], inner products of points and centres
    within = (members * cross).sum(dim=1) / sizes.clamp(min=1)  # [B, N], squared norms of the centres
    within = within.masked_fill(sizes == 0, torch.inf)
    distances = (within[:, None, :] - 2 * cross).round_(decimals=_DECIMALS)
    nearest, labels = distances.min(dim=2)
    return labels, (nearest + gram.diagonal(dim1=1, dim2=2)).round(decimals=_DECIMALS).clamp_(min=0)


def _refill(members: Tensor, distances: Tensor, valid: Tensor) -> Tensor:
    """Move the farthest points to the clusters that have lost all of theirs.

    members: [B, K, N] float64, 1 where a point is in a cluster.
    distances: [B, K] float64, the points' squared distances to their centres.
    valid: [B, N] bool, whether a cluster takes part at all.

    Returns `members`, changed in place.
    """
    empty = (members.sum(dim=1) == 0) & valid  # [B, N]
    for image in torch.nonzero(empty.any(dim=1)).flatten().tolist():
        if not distances[image].max() > 0:
            continue
        farthest = distances[image].argsort(descending=True, stable=True)
        for point, cluster in zip(farthest.tolist(), torch.nonzero(empty[image]).flatten().tolist(), strict=False):
            members[image, point] = 0
            members[image, point, cluster] = 1
    return members


def _one_hot(labels: Tensor, n_clusters: int) -> Tensor:
    """Labels [B, K] int64 -> [B, K, N] float64, 1 for the cluster of each point and 0 elsewhere."""
    members = torch.zeros(*labels.shape, n_clusters, dtype=torch.float64, device=labels.device)
    return members.scatter_(2, labels[:, :, None], 1.0)


def _check(points: Tensor, n_clusters: int, max_iterations: int) -> None:
    if points.ndim != 3 or not points.shape[1]:
        raise UsageError(f"got points {list(points.shape)}, expected [B, K, D] with at least one point an image")
    if n_clusters < 1 or max_iterations < 1:
        raise UsageError(f"got {n_clusters} clusters and {max_iterations} iterations, expected at least 1 of each")
    if not torch.isfinite(points).all():
        raise UsageError("got points that are not finite; check the weights and the images that they come from")
