"""FOR+ against its formula written out with loops, on the pools of a CLIP ResNet, a CLIP ViT and photo-lite."""

import copy
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from for_model.backbones.clip_resnet import ClipResnet
from for_model.backbones.clip_vit import VitBackbone, VitPool
from for_model.backbones.photo_lite import PhotoPool, PhotoSettings
from for_model.backbones.protocol import Pool
from for_model.backbones.registry import load_backbone
from for_model.errors import UsageError
from for_model.heads.clip import ClipHead
from for_model.heads.config import PlusSettings
from for_model.heads.for_plus import ForPlusHead, frozen_parts
from for_model.heads.protocol import Head
from for_model.methods.head_config import HeadConfig
from for_model.methods.head_files import make_head, open_head, read_head_file, write_head
from for_model.methods.registry import method_title, trained_name
from for_model.settings import parse
from tests.helpers.tiny_models import name_tiny_open_clip

N = 5


def photo_pool() -> PhotoPool:
    generator = torch.Generator().manual_seed(0)
    classifier = nn.Linear(12, 20)
    classifier.weight.data = torch.randn(20, 12, generator=generator)
    names = F.normalize(torch.randn(20, 8, generator=generator), dim=-1)
    return PhotoPool(classifier, names, 3, PhotoSettings(n_classes=4, doubt=0.3)).requires_grad_(False)


@pytest.fixture(scope="module", params=["RN-mini", "ViT", "photo-lite"])
def pool(request: pytest.FixtureRequest, mini: ClipResnet, tmp_path_factory: pytest.TempPathFactory) -> Pool:
    if request.param == "photo-lite":
        return photo_pool()
    if request.param == "RN-mini":
        return mini.pool
    with pytest.MonkeyPatch.context() as patch:
        name_tiny_open_clip(tmp_path_factory.mktemp("configs"), patch)
        vit = load_backbone("ViT-tiny", "random")
    assert isinstance(vit, VitBackbone)
    return vit.pool


@pytest.fixture
def maps(pool: Pool) -> Tensor:
    """Feature maps that fit the pool, three images."""
    return some_maps(pool)


def some_maps(pool: Pool, images: int = 3) -> Tensor:
    tokens = pool.grid**2 + (0 if type(pool).__name__ != "VitPool" else 1)
    return torch.randn(images, tokens, pool.width, generator=torch.Generator().manual_seed(1)).relu() * 3


def head(pool: Pool, trained: bool = False, **settings) -> ForPlusHead:
    """A FOR+ head, as it starts or with every parameter moved from there."""
    torch.manual_seed(0)
    made = ForPlusHead(parse(PlusSettings, {"queries": N, "hidden": 16, **settings}), pool).eval()
    if trained:
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.3 * parameter.shape[-1] ** -0.5)
    return made


def written_out(made: ForPlusHead, X: Tensor, pool: Pool, settings: PlusSettings) -> tuple[Tensor, Tensor]:
    """The head's formula word by word, in Python's floats where it matters: embeddings [B, N, Co], shares [B, N, K]."""
    every_Y, every_A = [], []
    whole = ClipHead()(X, pool)[:, 0]
    for x, values, y_clip in zip(pool.cells(X), pool.project(X), whole, strict=True):
        cells = range(len(x))
        d = [value / value.norm() for value in values]
        w = [math.exp(float(made.weight.weight[0] @ x[k] + made.weight.bias[0])) for k in cells]
        seeds = greedy_seeds(torch.stack(d).double(), torch.tensor(w, dtype=torch.float64), settings.queries)
        keys = [made.k.weight @ d[k] for k in cells]
        asked = [made.q.weight @ d[seed] for seed in seeds]
        P = [[0.0 for _ in cells] for _ in asked]
        for k in cells:
            scores = [math.exp(settings.sharpness * float(F.cosine_similarity(q, keys[k], dim=0))) for q in asked]
            for n in range(len(asked)):
                P[n][k] = scores[n] / sum(scores)
        Y, A = [], []
        for n in range(len(asked)):
            total = sum(P[n][k] * w[k] for k in cells)
            A.append([P[n][k] * w[k] / total for k in cells])
            z = sum(A[n][k] * values[k] for k in cells)
            z = z + made.residual(sum(A[n][k] * x[k] for k in cells))
            y = z / z.norm() + settings.whole * y_clip
            Y.append(y / y.norm())
        every_Y.append(torch.stack(Y))
        every_A.append(torch.tensor(A))
    return torch.stack(every_Y), torch.stack(every_A)


def greedy_seeds(points: Tensor, weights: Tensor, count: int) -> list[int]:
    """The cells, one after another, that lower most the weighted sum of squared distances to the nearest of them; of
    several that lower it alike, the first."""
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").square()
    seeds: list[int] = []
    for _ in range(min(count, len(points))):
        costs = [round(float(distances[[*seeds, k]].amin(0) @ weights), 8) for k in range(len(points))]
        seeds.append(min(range(len(points)), key=costs.__getitem__))
    return seeds + [seeds[0]] * (count - len(seeds))


@torch.no_grad()
def test_the_fast_way_agrees_with_dense_clip_and_clip(pool: Pool, maps: Tensor) -> None:
    """In float32, and in float64, where rounding is out of the way, with other biases than those that it began with."""
    agree_with_dense_clip_and_clip(pool, maps, 1e-5)
    exact = copy.deepcopy(pool)
    assert isinstance(exact, nn.Module)
    exact.double()
    if isinstance(exact, VitPool):
        exact.proj = exact.proj.double()
    agree_with_dense_clip_and_clip(exact, 3 * maps.double(), 1e-9)
    for name, parameter in exact.named_parameters():
        if name.endswith("bias"):
            parameter.normal_()
    agree_with_dense_clip_and_clip(exact, 3 * maps.double(), 1e-9)  # what was made of the old ones isn't used


def agree_with_dense_clip_and_clip(pool: Pool, maps: Tensor, tolerance: float) -> None:
    dense, whole = pool.dense_and_whole(maps)
    tokens = pool.tokens(maps)
    for got, expected in ((dense, pool.project(maps)), (whole, pool.attend(tokens[:, :1], tokens))):
        torch.testing.assert_close(got, expected, atol=tolerance * float(expected.abs().max()), rtol=tolerance)


@pytest.mark.parametrize("trained", [False, True], ids=["start", "trained"])
@torch.no_grad()
def test_is_its_formula_written_out(pool: Pool, maps: Tensor, trained: bool) -> None:
    settings = PlusSettings(queries=N, hidden=16)
    made = head(pool, trained)
    Y, A = written_out(made, maps, pool, settings)
    torch.testing.assert_close(made(maps, pool), Y, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(made.evidence(maps, pool), A, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_starts_as_a_soft_cluster_clip(pool: Pool, maps: Tensor) -> None:
    """Sharp and without CLIP's own: the means of the cells that are nearest to each of K-means' seeds."""
    made = head(pool, sharpness=1e5, whole=0.0)
    dense = pool.project(maps)
    for values, y in zip(dense, made(maps, pool), strict=True):
        unit = F.normalize(values.double(), dim=-1)
        seeds = greedy_seeds(unit, torch.ones(len(unit), dtype=torch.float64), N)
        nearest = (unit @ unit[seeds].T).argmax(dim=1)
        for n in range(N):
            expected = F.normalize(values[nearest == n].mean(dim=0), dim=0)
            torch.testing.assert_close(y[n], expected, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_is_a_head(pool: Pool, maps: Tensor) -> None:
    made: Head = head(pool, trained=True)
    Y = made(maps, pool)
    assert Y.shape == (3, N, pool.dim)
    assert Y.dtype == torch.float32
    torch.testing.assert_close(Y.norm(dim=-1), torch.ones(3, N))
    assert made.n_embeddings(pool.grid**2) == N
    for image in range(3):
        torch.testing.assert_close(made(maps[image : image + 1], pool)[0], Y[image], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(made(maps[[2, 0, 1]], pool), Y[[2, 0, 1]], atol=1e-5, rtol=1e-4)
    assert made(maps[:0], pool).shape == (0, N, pool.dim)
    assert made.settings == {"queries": N, "hidden": 16, "sharpness": 20.0, "whole": 0.5, "root": False}


@torch.no_grad()
def test_the_evidence_gives_the_embeddings_back(pool: Pool, maps: Tensor) -> None:
    made = head(pool, trained=True, whole=0.0)
    A = made.evidence(maps, pool)
    assert A.shape == (3, N, pool.grid**2)
    assert (A >= 0).all()
    torch.testing.assert_close(A.sum(-1), torch.ones(3, N))
    z = A @ pool.project(maps) + made.residual(A @ pool.cells(maps))
    torch.testing.assert_close(made(maps, pool), F.normalize(z, dim=-1), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_fewer_distinct_cells_than_embeddings(pool: Pool, maps: Tensor) -> None:
    same = maps.clone()
    first = maps.shape[1] - pool.grid**2  # of the cells, after a class token
    same[0, first:] = maps[0, first]
    same[0, -2:] = maps[0, first + 1]  # two distinct cells
    Y, alone = head(pool)(same, pool), head(pool)(maps, pool)
    assert torch.isfinite(Y).all()
    assert len(torch.unique((Y[0] * 1e4).round(), dim=0)) == 2
    torch.testing.assert_close(Y[1:], alone[1:], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(Y.norm(dim=-1), torch.ones(3, N))


@torch.no_grad()
def test_more_embeddings_than_cells(pool: Pool, maps: Tensor) -> None:
    cells = pool.grid**2
    Y = head(pool, queries=cells + 3)(maps, pool)
    assert Y.shape == (3, cells + 3, pool.dim)
    torch.testing.assert_close(Y[:, cells:], Y[:, :1].expand(-1, 3, -1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(Y.norm(dim=-1), torch.ones(3, cells + 3))


def some_loss(Y: Tensor) -> Tensor:
    return (Y * torch.randn(Y.shape, generator=torch.Generator().manual_seed(2))).sum()


@pytest.mark.parametrize("hidden", [0, 16])
def test_gradients_reach_all_that_is_trained_and_nothing_else(pool: Pool, maps: Tensor, hidden: int) -> None:
    made = head(pool, trained=True, hidden=hidden)
    some_loss(made(maps, pool)).backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        # a bias of w counts all cells alike, and the shares are normalised
        assert bool(parameter.grad.abs().amax() > 1e-5) == (name != "weight.bias"), name
    assert all(p.grad is None and not p.requires_grad for p in pool.parameters())  # type: ignore[attr-defined]


def test_at_the_start_the_values_learn_at_once(pool: Pool, maps: Tensor) -> None:
    made = head(pool, hidden=0)
    some_loss(made(maps, pool)).backward()
    for parameter in (made.residual.weight, made.q.weight, made.k.weight, made.weight.weight):
        assert parameter.grad.abs().amax() > 0


def test_the_root_tames_large_features_and_is_standardised(pool: Pool, maps: Tensor) -> None:
    made = head(pool, trained=True, root=True)
    means = pool.cells(maps).mean(dim=1)  # [B, Ce]
    made.fit_to(means)
    rooted = means.sign() * means.abs().sqrt()
    torch.testing.assert_close(made.centre, rooted.mean(dim=0))
    torch.testing.assert_close(made.spread, (rooted - rooted.mean(dim=0)).square().mean().sqrt())
    with torch.no_grad():
        A = made.evidence(maps, pool)
        pooled = A @ pool.cells(maps)
        r = made.residual((pooled.sign() * pooled.abs().sqrt() - made.centre) / made.spread)
        z = F.normalize(A @ pool.project(maps) + r, dim=-1)
        expected = F.normalize(z + 0.5 * ClipHead()(maps, pool), dim=-1)
    torch.testing.assert_close(made(maps, pool), expected, atol=1e-5, rtol=1e-4)
    some_loss(made(maps, pool)).backward()
    assert all(torch.isfinite(p.grad).all() for p in made.parameters())  # the root's slope at 0 has no bound


def test_parts_at_hand_give_the_same(pool: Pool, maps: Tensor) -> None:
    made = head(pool, trained=True)
    with torch.no_grad():
        torch.testing.assert_close(made(maps, pool, frozen_parts(maps, pool)), made(maps, pool))


def test_the_weights_of_cells_move_the_seeds(mini: ClipResnet, X: Tensor) -> None:
    """A cell that counts for nearly all is the first seed, and all shares but of its own kind go to it."""
    made, pool = head(mini.pool), mini.pool
    cells = pool.cells(X)
    direction = torch.linalg.lstsq(cells[0], torch.eye(len(cells[0]))[7] * 30).solution
    with torch.no_grad():
        made.weight.weight.copy_(direction[None])
        shares = made.evidence(X[:1], pool)
    assert (shares[0].argmax(dim=-1) == 7).all()


def test_a_saved_head_gives_the_same_embeddings(mini: ClipResnet, X: Tensor, tmp_path: Path) -> None:
    config = HeadConfig(kind="for+", queries=N, hidden=16, whole=0.25, sharpness=10.0)
    made = make_head(config, mini.pool)
    assert isinstance(made, ForPlusHead)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
            parameter.copy_(parameter.half())  # as in the file
    path = tmp_path / "head.safetensors"
    write_head(path, made, config, "for+", mini, {"seed": 0})
    read = open_head(read_head_file(path), mini)
    assert torch.equal(read(X, mini.pool), made(X, mini.pool))
    assert torch.equal(read.evidence(X, mini.pool), made.evidence(X, mini.pool))
    assert (read.name, read.n_embeddings(25), read.settings["whole"]) == ("for+", N, 0.25)


@pytest.mark.parametrize(
    ("labels", "pseudo_labels", "name", "title"),
    [
        (True, True, "for+", "FOR+ 8"),
        (True, False, "for+-sup", "FOR+, labels alone, 8"),
        (False, True, "for+-pl", "FOR+, pseudo-labels alone, 8"),
    ],
)
def test_names_and_titles(labels: bool, pseudo_labels: bool, name: str, title: str) -> None:
    assert trained_name("for+", labels, pseudo_labels) == name
    assert method_title(name, 8) == title


@pytest.mark.parametrize("wrong", [{"queries": 0}, {"hidden": -1}, {"sharpness": 0.0}, {"whole": -0.1}])
def test_settings_that_make_no_sense(mini: ClipResnet, wrong: dict) -> None:
    with pytest.raises(UsageError):
        head(mini.pool, **wrong)
