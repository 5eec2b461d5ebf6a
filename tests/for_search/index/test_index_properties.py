"""An index against brute force on whatever hypothesis thinks of: small collections, many ties, any depth."""

import tempfile
from pathlib import Path
from unittest.mock import patch

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from for_search.index import flat_engine
from for_search.index.index_files import build_index
from tests.helpers.store_making import dyadic_units, make_store


@settings(max_examples=25)
@given(
    st.integers(1, 12),
    st.integers(1, 5),
    st.sampled_from([4, 8, 16]),
    st.integers(1, 15),
    st.integers(1, 4),
    st.integers(0, 2**32 - 1),
)
def test_search_is_brute_force(n_images: int, n_embeddings: int, dim: int, k: int, n_queries: int, seed: int) -> None:
    """Cosines are multiples of 1/4, so equal ones are equal to the last bit: they go by image, then by embedding."""
    embeddings = dyadic_units((n_images, n_embeddings, dim), seed)
    queries = dyadic_units((n_queries, dim), seed + 1)
    with tempfile.TemporaryDirectory() as folder, patch.object(flat_engine, "_FIRST_FETCH", 2):  # so that it grows
        make_store(Path(folder) / "store", embeddings, shard_size=5)
        answers = build_index(Path(folder) / "store", Path(folder) / "index").search(queries, k)
    for query, hits in zip(queries, answers, strict=True):
        cosines = embeddings.astype(np.float64) @ query.astype(np.float64)  # [M, N]
        expected = sorted((-cosines[i].max(), 10 + 3 * i, int(cosines[i].argmax())) for i in range(n_images))[:k]
        assert [(-hit.score, hit.image.id, hit.embedding) for hit in hits] == expected
