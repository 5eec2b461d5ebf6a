"""Every image's score for every category, straight from an embedding store: what evaluation ranks.

Legend: M images, N embeddings per image, C categories, Co joint width.
"""

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from for_model.errors import StoreError, UsageError
from for_search.store.store import Store

_BLOCK_ROWS = 1024  # embeddings; larger blocks leave the processor's caches
_BLOCK_SCORES = 1 << 22  # similarities held at once, 8 bytes each


@torch.inference_mode()
def score_matrix(
    store: Store, text_embeddings: ArrayLike | torch.Tensor, block: int | None = None
) -> NDArray[np.float32]:
    """The score of every image for every text: max_i cos(t, y_i) over the image's N embeddings.

    store: of M images.
    text_embeddings: [C, Co], unit-norm.
    block: images at a time, by default as many as keep a block near 1,024 embeddings; it bounds the memory besides the
        result, and doesn't change the result.
    Returns [C, M] float32, columns in the order of `store.images`; [C, 0] or [0, M] for nothing to score.
    Raises StoreError for another width than Co, UsageError for texts that aren't finite vectors or a block below 1.

    Sums run in float64 and are rounded once. In float32 a sum depends on where in a block its row happens to lie, so
    that equal embeddings would miss a tie by 1e-7 and the ranking would depend on the block; float64 takes less than
    twice as long.
    """
    if isinstance(text_embeddings, torch.Tensor):
        text_embeddings = text_embeddings.numpy(force=True)
    texts = torch.from_numpy(np.array(text_embeddings, dtype=np.float64))  # [C, Co]
    n_embeddings, dim = store.info.n_embeddings, store.info.dim
    if texts.ndim != 2:
        raise UsageError(f"text embeddings have the shape {list(texts.shape)}, expected [C, {dim}]")
    if texts.shape[1] != dim:
        raise StoreError(
            f"text embeddings of width {texts.shape[1]} can't be compared with {store.path}, whose width is {dim}: "
            "encode the texts with the store's own backbone and weights"
        )
    if not texts.isfinite().all():
        raise UsageError("text embeddings hold NaN or infinity, expected unit-norm vectors: check the text encoder")
    if block is None:
        rows = min(_BLOCK_ROWS, _BLOCK_SCORES // max(1, len(texts)))
        block = max(1, rows // n_embeddings)
    elif block < 1:
        raise UsageError(f"block is {block}: score at least 1 image at a time")
    scores = np.empty((len(texts), len(store.images)), dtype=np.float32)
    # One buffer for all blocks: of 16 MB, a fresh one each time costs more in page faults than the arithmetic.
    buffer = torch.empty((min(block, len(store.images)) * n_embeddings, dim), dtype=torch.float64)
    column = 0
    for shard in store.iter_shards():
        for start in range(0, len(shard), block):
            # torch widens float16 several times faster than numpy, but wants an array of its own, not a read-only map.
            images = torch.from_numpy(np.array(shard[start : start + block])).reshape(-1, dim)  # [b * N, Co]
            similarities = texts @ buffer[: len(images)].copy_(images).T  # [C, b * N]
            best = similarities.reshape(len(texts), len(images) // n_embeddings, n_embeddings).amax(dim=2)
            scores[:, column : column + best.shape[1]] = best.numpy()
            column += best.shape[1]
    return scores
