"""Pseudo-labels for whoever asks: an image of an index or another one, a vocabulary, a threshold. No web framework."""

import concurrent.futures
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from for_model.data.dataset import ImageId, ImageRecord
from for_model.data.images import load_image
from for_model.methods.protocol import Method
from for_search.library.library import Library
from for_search.query.image_labels import (
    DATASET,
    OWN,
    ImageLabels,
    find_labels,
    judged,
    labelling_method,
    vocabulary_names,
)
from for_search.query.searcher import Searcher
from for_search.query.vocabulary_texts import VocabularyTexts

if TYPE_CHECKING:
    from torch import Tensor

# The threshold of a label's probability, if none is asked for: the paper's for ImageNet-21K (section 4.1). Among a few
# hundred names a probability is much larger, and 0.3 is what FOR is trained with on MiniScenes.
DEFAULT_THRESHOLD = 0.3
DEFAULT_THRESHOLDS = {"imagenet21k": 5e-4}

_POLL_S = 0.2
_TEXTS = (
    VocabularyTexts()
)  # shared by all visitors: a vocabulary's embeddings depend on nothing but its names and the model

Report = Callable[[int, int], None]


def default_vocabulary(library: Library, index: str) -> str:
    """The names that an index's dataset is annotated with, if it is, else ImageNet-21K."""
    return DATASET if library.labels(index) is not None else "imagenet21k"


def label_image(
    library: Library,
    index: str,
    image: Image.Image | ImageId,
    vocabulary: str,
    own: str | Sequence[str] = "",
    threshold: float | None = None,
    report: Report | None = None,
) -> tuple[Image.Image, ImageLabels]:
    """An image and its pseudo-labels, compared with its annotations where it has some.

    index: a name of the library; its backbone is used.
    image: RGB, or the id of one of the index.
    vocabulary, own: see `vocabulary_names`.
    threshold: in 0..1; None for the vocabulary's own.
    report: called now and then with the numbers of names that are embedded and that there are, while the vocabulary is
        being embedded: seconds, or much longer the first time for ImageNet-21K on a large model.
    Raises UsageError for what makes no sense or isn't there, ImageError for an image of the index that can't be
    decoded, and what opening the index raises.
    """
    searcher = library.searcher(index)
    method = labelling_method(searcher.method)
    dataset = library.labels(index)
    names = vocabulary_names(vocabulary, dataset, own)
    record = None if isinstance(image, Image.Image) else searcher.index.image(image)
    if record is not None:  # decoded as for embedding
        image = load_image(searcher.image_path(record), target=2 * method.info.image_size)
    assert isinstance(image, Image.Image)
    texts = _embedded(method, names, vocabulary != OWN, report)
    wanted = DEFAULT_THRESHOLDS.get(vocabulary, DEFAULT_THRESHOLD) if threshold is None else threshold
    found = find_labels(method, image, names, texts, wanted)
    if record is not None and dataset is not None:
        found = judged(found, dataset, record.id)
    return image, found


def _embedded(method: Method, names: Sequence[str], keep: bool, report: Report | None) -> "Tensor":
    embedding = _TEXTS.embedding(method, names, keep)
    while report is not None and not embedding.texts.done():
        report(embedding.done, embedding.total)
        concurrent.futures.wait([embedding.texts], timeout=_POLL_S)
    return embedding.texts.result()


def sample_images(searcher: Searcher, count: int, seed: int) -> list[ImageRecord]:
    """Some images of an index to choose from, in the order of their ids; all of them when there are fewer."""
    images = searcher.index.images
    chosen = np.random.default_rng(seed).permutation(len(images))[:count]
    return [images[position] for position in sorted(chosen.tolist())]
