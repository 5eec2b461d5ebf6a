"""Why an image was found: the embedding that matched, and where in the image it comes from.

Shapes: N embeddings an image, g x g = K cells, Q queries, Co joint width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor

from for_model.data.dataset import ImageId, ImageRecord
from for_model.data.images import load_image
from for_model.errors import UsageError, WeightsError
from for_model.methods.protocol import ExplainingMethod, Method
from for_model.methods.registry import METHODS
from for_search.query.searcher import HEAD_MISSING, Searcher

# What embeddings are scored by: queries [Q, Co], unit-norm, or a function from embeddings [N, Co] to their scores [N].
Wanted: TypeAlias = NDArray[np.float32] | Callable[[NDArray[np.float32]], NDArray[np.float32]]

# An embedding kept as float16 has a cosine of 1 with itself to about 1e-6; another image's, or another decoder's, less.
_SAME = 0.999

# Okabe and Ito's, which people who see colours differently tell apart; on a grey picture.
THING_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")


@dataclass(frozen=True)
class Evidence:
    """Where the embedding of an image that matches best comes from.

    embedding: which, in 0..N-1.
    score: its inner product with the query, the best over several queries.
    cells: [g, g] float32 in 0..1, row 0 at the image's top; the cells' shares in the embedding over the largest share.
    meaning: what the shares are, which differs between methods.
    as_indexed: whether the image still gives the embedding that was indexed; if not, it has changed since.
    """

    image: ImageRecord
    embedding: int
    score: float
    cells: NDArray[np.float32]
    meaning: str
    as_indexed: bool

    def to_json(self) -> dict[str, Any]:
        """The evidence as JSON values; the image by its id alone."""
        return {
            "id": self.image.id,
            "embedding": self.embedding,
            "score": self.score,
            "cells": [[round(float(share), 4) for share in row] for row in self.cells],
            "meaning": self.meaning,
            "as_indexed": self.as_indexed,
        }


def find_evidence(searcher: Searcher, image_id: ImageId, wanted: Wanted) -> Evidence:
    """The evidence for a match of an image of the index.

    wanted: a text's one embedding, the embeddings of an image that was searched with, or what scores embeddings.
    Of embeddings that score the same, the lowest-numbered one.
    Raises UsageError for an id that the index doesn't have or a method that can't tell, WeightsError when the index's
    trained head isn't at hand, ImageError when the image can't be decoded, StoreError when it lies outside its folder.
    """
    return find_evidences(searcher, image_id, [wanted])[0]


def find_evidences(searcher: Searcher, image_id: ImageId, things: Sequence[Wanted]) -> tuple[Evidence, ...]:
    """The evidence for each of several things that were searched for at once; the image is looked at once.

    things: each as `find_evidence` takes it. Raises as that does.
    """
    image, indexed, method, made, shares = _explained(searcher, image_id)
    found = []
    for wanted in things:
        scores = wanted(indexed) if callable(wanted) else (indexed @ wanted.T).max(axis=1)  # [N]
        embedding = int(scores.argmax())
        found.append(
            Evidence(
                image=image,
                embedding=embedding,
                score=float(scores[embedding]),
                cells=cell_map(shares[embedding]),
                meaning=meaning(method),
                as_indexed=float(made[embedding] @ indexed[embedding]) > _SAME,
            )
        )
    return tuple(found)


@dataclass(frozen=True)
class ImageParts:
    """The embeddings of an image as its parts, so that a place in it can be told from the others.

    cells: [N, g, g] float32 in 0..1, as `Evidence` has them for one embedding.
    part: [g, g] int64, the embedding that has most to do with each place, of those that have as much the first.
    as_indexed: whether the image still gives the embeddings that were indexed.
    """

    image: ImageRecord
    cells: NDArray[np.float32]
    part: NDArray[np.int64]
    meaning: str
    as_indexed: bool

    def to_json(self) -> dict[str, Any]:
        """The parts as JSON values; the image by its id alone."""
        return {
            "id": self.image.id,
            "part": self.part.tolist(),
            "cells": np.round(self.cells.astype(np.float64), 3).tolist(),
            "meaning": self.meaning,
            "as_indexed": self.as_indexed,
        }


def find_parts(searcher: Searcher, image_id: ImageId) -> ImageParts:
    """The parts of an image of the index. Raises as `find_evidence` does.

    A place belongs to the embedding of which it is the largest share: to a small part rather than to a large one that
    covers it too.
    """
    image, indexed, method, made, shares = _explained(searcher, image_id)
    cells = np.stack([cell_map(each) for each in shares])  # [N, g, g]
    of_all = shares / np.maximum(shares.sum(axis=1, keepdims=True), 1e-12)  # [N, K]
    part = of_all.argmax(axis=0).reshape(cells.shape[1:])
    same = bool(((made * indexed).sum(axis=1) > _SAME).all())
    return ImageParts(image, cells, part, meaning(method), same)


def _explained(
    searcher: Searcher, image_id: ImageId
) -> tuple[ImageRecord, NDArray[np.float32], ExplainingMethod, NDArray[np.float32], NDArray[np.float32]]:
    """An image, its embeddings in the index [N, Co], the method, the embeddings that it makes now [N, Co], and the
    cells' shares in them [N, K]."""
    image = searcher.index.image(image_id)
    method = explaining_method(searcher)
    # decoded as embedding decodes it, so that the same pixels give the same embedding
    picture = load_image(searcher.image_path(image), target=2 * method.info.image_size)
    made, shares = method.explain_images(method.preprocess(picture)[None])
    arrays = [tensor[0].numpy(force=True).astype(np.float32) for tensor in (made, shares)]
    return image, searcher.index.embeddings(image.id), method, arrays[0], arrays[1]


def explaining_method(searcher: Searcher) -> ExplainingMethod:
    """The searcher's method, if it can tell where its embeddings come from; see `find_evidence` for what is raised."""
    if not searcher.embeds_images:
        raise WeightsError(HEAD_MISSING)
    method = searcher.method
    if not isinstance(method, ExplainingMethod):
        raise UsageError(f"{method.info.method} can't tell where its embeddings come from")
    return method


def meaning(method: Method) -> str:
    """What the cells' shares of a method are, in words. Raises UsageError for a method that has none."""
    entry = METHODS.get(method.info.method)
    if entry is None or entry.evidence is None:
        raise UsageError(f"{method.info.method} can't tell where its embeddings come from")
    return entry.evidence


def cell_map(shares: NDArray[np.float32]) -> NDArray[np.float32]:
    """[K] shares, K = g * g, row by row -> [g, g] float32 in 0..1, over the largest share; zeros stay zeros."""
    side = round(len(shares) ** 0.5)
    cells = shares.reshape(side, side)
    largest = float(cells.max())
    return cells / largest if largest > 0 else cells


def heat_map(image: Image.Image, cells: NDArray[np.float32]) -> Image.Image:
    """The image in grey with the cells' shares laid over it, black through red to bright yellow.

    cells: [g, g] in 0..1, which cover the whole image, however long its sides. The scale (matplotlib's `inferno`) grows
    evenly in lightness, so it can be read without telling red from green. Returns an RGB image of the same size.
    """
    from matplotlib import colormaps

    shares = np.asarray(Image.fromarray(cells).resize(image.size, Image.Resampling.BILINEAR))
    colours = colormaps["inferno"](shares)[..., :3] * 255
    grey = np.asarray(image.convert("L"), dtype=np.float64)[..., None]
    return Image.fromarray((0.45 * grey + 0.55 * colours).astype(np.uint8))


def things_map(image: Image.Image, maps: Sequence[NDArray[np.float32]]) -> Image.Image:
    """The image in grey with the cells' shares of several things laid over it, each in the colour of its place.

    maps: [g, g] in 0..1 each, of things in the order of THING_COLOURS; with more things than colours they begin again.
    Where things meet, their colours mix by their shares. Returns an RGB image of the same size.
    """
    grey = np.asarray(image.convert("L"), dtype=np.float64)[..., None]
    resized = [np.asarray(Image.fromarray(cells).resize(image.size, Image.Resampling.BILINEAR)) for cells in maps]
    if not resized:
        return Image.fromarray(np.repeat(grey, 3, axis=2).astype(np.uint8))
    shares = np.stack(resized).astype(np.float64)[..., None]  # [things, H, W, 1]
    colours = np.array([ImageColor.getrgb(THING_COLOURS[i % len(THING_COLOURS)]) for i in range(len(maps))])
    total = shares.sum(axis=0)
    mixed = (shares * colours[:, None, None]).sum(axis=0) / np.maximum(total, 1e-9)  # [H, W, 3]
    opacity = 0.75 * np.clip(shares.max(axis=0), 0, 1)
    return Image.fromarray(((1 - opacity) * grey + opacity * mixed).astype(np.uint8))
