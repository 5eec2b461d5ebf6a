"""Texts to build an index with: names of a wide vocabulary, encoded by the method that made the embeddings.

How complete a compact index's answers are depends on where texts lie beside images, and every backbone has its own way.
"""

import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from for_model.errors import ForError
from for_model.methods.registry import METHODS
from for_model.numpy_text import numpy_text
from for_search.query.presence import random_names
from for_search.store.store import open_store

_log = logging.getLogger(__name__)


def texts_for(store_path: Path) -> NDArray[np.float32] | None:
    """Texts for an index of a store whose engine asks for some, [T, Co] float32, unit-norm.

    None, with a warning, where the text encoder can't be loaded. Raises StoreError for a store that is missing or
    damaged.
    """
    info = open_store(store_path).info
    without_torch = numpy_text(*info.text_space)
    if without_torch is not None:
        return without_torch.embed_names(random_names())
    from for_model.methods.build import build_method
    from for_model.text import embed_categories

    entry = METHODS.get(info.method)
    name = "clip" if entry is None or entry.trained else info.method  # the text encoder is the same with every head
    try:
        method = build_method(name, info.backbone, info.recorded_weights, image_size=info.image_size)
        if method.info.text_space != info.text_space:
            raise ForError(f"its weights are {method.info.weights_sha256[:12]}, not {info.weights_sha256[:12]}")
        return np.ascontiguousarray(embed_categories(method, random_names(), progress=True).numpy(force=True))
    except ForError as error:
        _log.warning("no texts to build the index with, embeddings moved away stand in for them: %s", error)
        return None
