"""How far a search looks in a server's graph: chosen with one half of some queries, measured with the other half.

Legend: Q queries, Co joint width.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from for_search.index.compact.calibration import aimed_at, recall_queries
from for_search.index.engine_protocol import BuildOptions, Recall

_K = 50  # images asked for
_N_QUERIES = 64  # of each kind
_EFS = (128, 256, 512, 1024, 2048, 4096, 8192)

# how far to look, None for everywhere; queries [Q, Co]; k -> numbers of the images found, of each query
ImageSearch = Callable[[int | None, NDArray[np.float32], int], list[NDArray[np.int64]]]


def choose_ef(
    find: ImageSearch, read: Callable[[int, int], NDArray[np.float32]], n_images: int, options: BuildOptions
) -> tuple[int, Recall]:
    """The least `ef` that finds the share of the best images that is asked for, the largest where none does, and what
    it finds. Everything is compared with the server's exact scan.

    read: gives so many rows from a row on, [m, Co].
    """
    k = min(_K, n_images)
    kinds = recall_queries(n_images * options.n_embeddings, read, options, _N_QUERIES)
    truths = {kind: find(None, queries, k) for kind, queries in kinds.items()}
    ef, found = 0, []
    for ef in tqdm(_EFS, "how far to look", unit="setting", disable=None):
        found = [_shares(find(ef, queries, k), truths[kind]) for kind, queries in kinds.items()]
        if min(shares[::2].mean() for shares in found) >= aimed_at(options.recall) or ef >= n_images:
            break
    held_out = np.concatenate([shares[1::2] for shares in found])
    mean = min(float(shares[1::2].mean()) for shares in found)  # what is promised holds for each kind
    return ef, Recall(options.recall, mean, float(held_out.min()), k, len(held_out), " and ".join(kinds))


def _shares(found: list[NDArray[np.int64]], truths: list[NDArray[np.int64]]) -> NDArray[np.float64]:
    return np.array([np.isin(truth, its).mean() for its, truth in zip(found, truths, strict=True)])
