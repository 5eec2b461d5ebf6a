"""What a sketch encoder is trained with: an index's embeddings, and texts, of which it is known whose they are or not.

Legend: M images, N embeddings an image, T texts, P pairs, Co joint width.
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from for_model.data.captions import captions_path, read_captions
from for_model.data.dataset import Dataset
from for_model.data.registry import load_dataset
from for_model.errors import DataError, UsageError
from for_model.methods.protocol import Method
from for_model.text import cached_category_embeddings, embed_queries
from for_search.index.index import SearchIndex
from for_search.index.sketches.sketch_encoder import SketchEncoder
from for_search.index.sketches.training import SketchTexts, SketchTraining, train_sketch_encoder

_MAX_IMAGES, _MAX_TEXTS = 20_000, 10_000  # drawn at random where there are more
_SEED = 0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KnownTexts:
    """Texts, and which images each is known to belong to.

    texts: T of them.
    names: whether they are names, which go into the prompts, or sentences, which don't.
    images: of each text, ids of images; none for a text of which nothing is known.
    """

    texts: tuple[str, ...]
    names: bool
    images: tuple[frozenset[object], ...]


def known_texts(source: str, dataset: Dataset) -> KnownTexts:
    """The texts of a dataset's images.

    source: `captions`, in COCO's format beside the images; `labels`: the names of all categories, of which the base
        ones are known to belong to the images that are labelled with them; or a file of a name or sentence a line.
    Raises UsageError for a dataset without labels, DataError for captions or a file that can't be read.
    """
    if source == "captions":
        captions = read_captions(captions_path(dataset))
        found: dict[str, set[object]] = {}
        for image in dataset.images:
            for caption in captions.get(image.id, ()):
                found.setdefault(caption, set()).add(image.id)
        return KnownTexts(tuple(found), False, tuple(frozenset(images) for images in found.values()))
    if source == "labels":
        if not dataset.labels:
            raise UsageError(f"{dataset.name} has no labels: give captions, or a file of texts, one a line")
        labelled = [
            frozenset(key for key, own in dataset.labels.items() if number in own and category.group == "base")
            for number, category in enumerate(dataset.categories)
        ]
        return KnownTexts(tuple(category.name for category in dataset.categories), True, tuple(labelled))
    try:
        lines = Path(source).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{source} can't be read ({error}): expected captions, labels, or a file of texts") from error
    texts = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not texts:
        raise DataError(f"{source} holds no text: write one a line")
    return KnownTexts(texts, True, (frozenset(),) * len(texts))


def dataset_of(index: SearchIndex, root: Path | None) -> Dataset:
    """The dataset that an index was made of, without images that the index lacks.

    root: where it is; None for where its images were, of a folder of images, and for MiniScenes.
    Raises DataError where it can't be read, as when no root is given.
    """
    if index.dataset == "folder":
        return Dataset("folder", index.split, Path(index.image_root), tuple(index.images))
    dataset = load_dataset(index.dataset, root, index.split)
    known = {image.id for image in index.images}
    return replace(dataset, images=tuple(image for image in dataset.images if image.id in known))


def train_on_index(
    index: SearchIndex, method: Method, known: KnownTexts, made_by: str, settings: SketchTraining
) -> SketchEncoder:
    """Train a sketch encoder on an index's embeddings and texts.

    method: of the index's text space, encodes the texts.
    made_by: for the encoder's file.
    Raises UsageError where there are fewer than two images.
    """
    generator = np.random.default_rng(_SEED)
    chosen = np.sort(generator.permutation(len(index.images))[:_MAX_IMAGES])
    place_of = {index.images[int(position)].id: place for place, position in enumerate(chosen)}
    kept = np.sort(generator.permutation(len(known.texts))[:_MAX_TEXTS]).tolist()
    texts = [known.texts[i] for i in kept]
    if known.names:
        embedded = cached_category_embeddings(method, texts)
    else:
        embedded = torch.cat([embed_queries(method, texts[start : start + 256]) for start in range(0, len(texts), 256)])
    pairs = [
        (place, place_of[image])
        for place, number in enumerate(kept)
        for image in sorted(known.images[number], key=str)
        if image in place_of
    ]
    _log.info("%d images, %d texts, %d pairs", len(chosen), len(texts), len(pairs))
    shown = SketchTexts(embedded.numpy().astype(np.float32), np.array(pairs, np.int64).reshape(-1, 2))
    return train_sketch_encoder(
        index.take(chosen.tolist()).astype(np.float16), shown, index.info.text_space, made_by, settings
    )
