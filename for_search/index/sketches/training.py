"""The training of a sketch encoder: a multilayer perceptron a modality, on a store's embeddings and texts.

An image is several embeddings, and a text says what one of them shows: as in search, a text's similarity to an image is
that to the image's best embedding. So of a right image only the embedding is drawn to the text that is best for it, and
of a wrong one only that is pushed away which is mistaken for it. With the similarities of T texts and B images, [T, B],
at a learnt temperature, the loss is

    cross entropy of each text over the images + of each image over its texts + koleo * KoLeo

Which images are right for a text is known from captions or labels. For texts of which it isn't known, the names of a
vocabulary say, it is taken from the full embeddings: a softmax over their similarities; these have no images' side.
KoLeo is minus the mean log distance of a sketch to the nearest other one, of one embedding of each image, drawn at
random; it spreads the sketches out (Sablayrolles et al. 2019).

Both heads start as the first principal axes, to which the perceptrons, zero at first, add.

Legend: M images, N embeddings an image, T texts, B images of a batch, Co joint width, D numbers, H hidden units.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor, nn
from tqdm import tqdm

from for_model.errors import UsageError
from for_search.index.sketches.sketch_encoder import SketchEncoder, SketchHead, TextSpace, principal_encoder, scaled

_AXES_ROWS = 1 << 15  # embeddings that the axes are found with, and the levels spread over
_START_SCALE, _MAX_SCALE = 20.0, 100.0  # 1 / temperature
_WEIGHT_DECAY = 1e-4


@dataclass(frozen=True)
class SketchTraining:
    """How a sketch encoder is trained. Looked at once on MiniScenes' dev split, and tuned nowhere else.

    hidden: H of each head.
    steps: batches.
    images: B, different ones in each batch.
    texts: T, of each kind, those that are known to belong to images and the others.
    learning_rate: of AdamW, from which it falls to 0 as a cosine.
    koleo: the weight of KoLeo.
    softness: the temperature of the full embeddings' similarities, where they tell what is right.
    seed: of everything that is drawn.
    """

    hidden: int = 256
    steps: int = 600
    images: int = 256
    texts: int = 128
    learning_rate: float = 1e-3
    koleo: float = 0.1
    softness: float = 0.02
    seed: int = 0


@dataclass(frozen=True, eq=False)
class SketchTexts:
    """Texts to train with.

    embeddings: [T, Co] float32, unit-norm.
    pairs: [P, 2] int64, the place of a text and that of an image that it belongs to. Of a text that is in no pair
        nothing is known.
    """

    embeddings: NDArray[np.float32]
    pairs: NDArray[np.int64]


class _Head(nn.Module):
    """See `SketchHead`."""

    def __init__(self, axes: NDArray[np.float32], hidden: int) -> None:
        super().__init__()
        self.linear = nn.Parameter(torch.from_numpy(axes.copy()))
        self.first, self.last = nn.Linear(len(axes), hidden), nn.Linear(hidden, axes.shape[1])
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, rows: Tensor) -> Tensor:
        return F.normalize(rows @ self.linear + self.last(F.relu(self.first(rows))), dim=-1)

    def to_numpy(self) -> SketchHead:
        tensors = (self.linear, self.last.bias, self.first.weight.T, self.first.bias, self.last.weight.T)
        linear, shift, hidden, bias, out = (np.ascontiguousarray(tensor.detach().numpy()) for tensor in tensors)
        return SketchHead(linear, shift, hidden, bias, out, unit=True)


def train_sketch_encoder(
    embeddings: NDArray[np.floating],
    texts: SketchTexts,
    text_space: TextSpace,
    made_by: str,
    settings: SketchTraining,
) -> SketchEncoder:
    """Train a sketch encoder; the same arguments give the same encoder on the same machine.

    embeddings: [M, N, Co], a store's.
    texts: at least one.
    text_space: see `MethodInfo`.
    made_by: for the encoder's file.
    Raises UsageError for fewer than two images.
    """
    n_images, n_embeddings, dim = embeddings.shape
    if n_images < 2:
        raise UsageError(f"a sketch encoder can't learn from {n_images} images: give a store of hundreds")
    torch.manual_seed(settings.seed)
    generator = np.random.default_rng(settings.seed)
    chosen = np.sort(generator.permutation(n_images)[: max(1, _AXES_ROWS // n_embeddings)])
    rows = embeddings[chosen].reshape(-1, dim).astype(np.float32)
    axes = principal_encoder(rows, text_space).image.linear
    image_head, text_head = _Head(axes, settings.hidden), _Head(axes, settings.hidden)
    scale = nn.Parameter(torch.tensor(_START_SCALE).log())
    parameters = [*image_head.parameters(), *text_head.parameters(), scale]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=_WEIGHT_DECAY)
    decline = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    drawn = _Batches(texts, n_images, settings, generator)
    for _ in tqdm(range(settings.steps), "train", unit="step", disable=None):
        images, known, shows, others = drawn.next()
        full = torch.from_numpy(embeddings[images].astype(np.float32))  # [B, N, Co]
        said = torch.from_numpy(texts.embeddings[np.concatenate([known, others])])  # [T, Co]
        sketches = image_head(full)  # [B, N, D]
        similarity = scale.exp().clamp(max=_MAX_SCALE) * _best(text_head(said), sketches)  # [T, B]
        taught = F.softmax(_best(said[len(known) :], full) / settings.softness, dim=1)
        loss = _cross_entropy(similarity, torch.cat([shows, taught]))
        if len(known):
            loss = loss + _cross_entropy(similarity[: len(known)].T, shows.T)
        one = torch.from_numpy(generator.integers(n_embeddings, size=len(images)))
        loss = loss + settings.koleo * koleo(sketches[torch.arange(len(images)), one])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decline.step()
    return scaled(image_head.to_numpy(), text_head.to_numpy(), rows, text_space, made_by)


class _Batches:
    """Draws images, and texts of both kinds."""

    def __init__(
        self, texts: SketchTexts, n_images: int, settings: SketchTraining, generator: np.random.Generator
    ) -> None:
        self._n_images, self._settings, self._generator = n_images, settings, generator
        n_texts = len(texts.embeddings)
        shape = (n_images, n_texts)
        ones = np.ones(len(texts.pairs), np.float32)
        self._shown = csr_array((ones, (texts.pairs[:, 1], texts.pairs[:, 0])), shape=shape)
        self._images_with_texts = np.unique(texts.pairs[:, 1])
        self._others = np.setdiff1d(np.arange(n_texts), texts.pairs[:, 0])

    def next(self) -> tuple[NDArray[np.int64], NDArray[np.int64], Tensor, NDArray[np.int64]]:
        """Images [B], texts that belong to some of them [T], which to which [T, B], and texts of the other kind."""
        generator, count = self._generator, self._settings.texts
        among = self._images_with_texts if len(self._images_with_texts) > 1 else np.arange(self._n_images)
        images = generator.permutation(among)[: self._settings.images]
        shown = self._shown[images]  # [B, all texts]
        known = generator.permutation(np.unique(shown.indices).astype(np.int64))[:count]
        others = generator.permutation(self._others)[:count]
        shows = torch.from_numpy((shown[:, known].toarray() > 0).astype(np.float32).T)
        return images, known, shows, others


def _best(texts: Tensor, embeddings: Tensor) -> Tensor:
    """The similarity of each text to each image's best embedding: [T, D] and [B, N, D] -> [T, B]."""
    return torch.einsum("td,bnd->tbn", texts, embeddings).amax(dim=2)


def _cross_entropy(logits: Tensor, right: Tensor) -> Tensor:
    """The mean over rows of the cross entropy with what is right, [R, C] and [R, C], whose rows are scaled to sum to 1.

    Rows in which nothing is right don't count; 0 where no row does.
    """
    counts = right.sum(dim=1)
    rows = counts > 0
    if not rows.any():
        return logits.sum() * 0
    return -(right[rows] / counts[rows, None] * F.log_softmax(logits[rows], dim=1)).sum(dim=1).mean()


def koleo(points: Tensor) -> Tensor:
    """Minus the mean log distance of each point [B, D] to the nearest other one; at least two points.

    The distance is kept above 1e-6, where two points are the same.
    """
    others = torch.cdist(points, points.detach()).fill_diagonal_(torch.inf)
    nearest = others.detach().argmin(dim=1)
    distances = (points - points[nearest]).pow(2).sum(dim=1).clamp(min=1e-12).sqrt()
    return -distances.log().mean()
