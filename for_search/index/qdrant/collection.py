"""A collection on a Qdrant server that holds the rows of images, one point an image: numpy arrays in and out.

A point's id is the image's number, 0..S-1; its multivector holds the image's N rows as float16, and `MAX_SIM` with one
query is the best inner product of these. Nothing else is stored: no path, no column.
Legend: Q queries, S images in all, m images, N rows an image, Co joint width.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from for_model.errors import StoreError
from for_search.index.qdrant.connection import asking, connect

if TYPE_CHECKING:
    from qdrant_client import models

_NUMBERS_AT_ONCE = 1 << 19  # of a request, sent as JSON: some 8 MB, a server takes 32 MB
_IDS_AT_ONCE = 10_000
_EDGES, _EF_CONSTRUCT = 16, 256  # of the graph
_OVERSAMPLING = 2.0  # images found by the short copies for each one that is scored again
_INDEXED_ABOVE = 10_000  # kB of a segment of the server's
_POLL_S = 1.0


@dataclass(frozen=True)
class Collection:
    """See above. Threads may share one.

    url: of the server, as the index has it.
    name: of the collection.
    n_embeddings: N.
    dim: Co.
    quantised: whether the server has short copies of the rows, and a graph over them.
    """

    url: str
    name: str
    n_embeddings: int
    dim: int
    quantised: bool

    def create(self) -> None:
        """Make the collection, empty."""
        from qdrant_client import models

        vectors = models.VectorParams(
            size=self.dim,
            distance=models.Distance.DOT,  # cosine would have the rows made unit-norm, and so changed
            datatype=models.Datatype.FLOAT16,
            on_disk=self.quantised,  # a scan of all rows wants them in memory
            multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
        )
        graph = models.HnswConfigDiff(m=_EDGES if self.quantised else 0, ef_construct=_EF_CONSTRUCT)
        int8 = models.ScalarQuantizationConfig(type=models.ScalarType.INT8, quantile=0.99, always_ram=True)
        optimizers = models.OptimizersConfigDiff(indexing_threshold=_INDEXED_ABOVE) if self.quantised else None
        self._ask(
            "create_collection",
            vectors_config=vectors,
            hnsw_config=graph,
            quantization_config=models.ScalarQuantization(scalar=int8) if self.quantised else None,
            optimizers_config=optimizers,
        )

    def exists(self) -> bool:
        return bool(self._ask("collection_exists"))

    def remove(self) -> None:
        self._ask("delete_collection")

    def count(self) -> int:
        """How many images it holds."""
        return int(self._ask("count", exact=True).count)

    def check(self) -> None:
        """Raise StoreError unless it is there and holds multivectors of the width and kind of the index."""
        params = self._ask("get_collection").config.params.vectors
        comparator = getattr(getattr(params, "multivector_config", None), "comparator", None)
        found = tuple(str(getattr(each, "value", each)) for each in (getattr(params, "distance", None), comparator))
        if (getattr(params, "size", None), *found) != (self.dim, "Dot", "max_sim"):
            raise self.damaged("it holds vectors of another kind")

    def damaged(self, reason: str) -> StoreError:
        return StoreError(
            f"the collection {self.name!r} at {self.url} is damaged or of another index, {reason}: build the index "
            "again, with --rebuild"
        )

    def upload(self, first: int, images: NDArray[np.float16]) -> None:
        """Add images of [m, N, Co], numbered from `first`; returns when the server has them on its disk."""
        from qdrant_client import models

        step = max(1, _NUMBERS_AT_ONCE // (self.n_embeddings * self.dim))
        for start in range(0, len(images), step):
            part = images[start : start + step]
            ids = list(range(first + start, first + start + len(part)))
            points = models.Batch(ids=ids, vectors=part.astype(np.float64).tolist())
            self._ask("upsert", points=points, wait=True)

    def drop(self, numbers: NDArray[np.int64]) -> None:
        """Remove images."""
        from qdrant_client import models

        for part in _in_parts(numbers.tolist(), _IDS_AT_ONCE):
            self._ask("delete", points_selector=models.PointIdsList(points=part), wait=True)

    def wait_until_indexed(self, n_images: int) -> None:
        """Wait until the server has the copies and the graph of all that was uploaded."""
        with tqdm(total=n_images, desc="the server's graph", unit="image", disable=None) as bar:
            while True:
                info = self._ask("get_collection")
                bar.update(min(n_images, info.indexed_vectors_count or 0) - bar.n)
                status = str(getattr(info.status, "value", info.status))
                if status == "green":
                    return
                if status == "red":
                    raise StoreError(f"the Qdrant server at {self.url} can't index {self.name!r}: see its log")
                time.sleep(_POLL_S)

    def images(self, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """The rows of some images, [m, N, Co] float32; NaN for those that aren't there."""
        found = np.full((len(numbers), self.n_embeddings, self.dim), np.nan, np.float32)
        places: dict[int, list[int]] = {}
        for place, number in enumerate(numbers.tolist()):
            places.setdefault(number, []).append(place)
        step = max(1, _NUMBERS_AT_ONCE // (self.n_embeddings * self.dim))
        for part in _in_parts(list(places), step):
            for record in self._ask("retrieve", ids=part, with_vectors=True, with_payload=False):
                rows = np.asarray(record.vector, dtype=np.float32)
                if rows.shape != found.shape[1:] or not np.isfinite(rows).all():
                    raise self.damaged(f"image {record.id} has the shape {list(rows.shape)}")
                found[places[int(record.id)]] = rows
        return found

    def best(
        self, searches: Sequence[tuple[NDArray[np.float32], NDArray[np.int64] | None]], limit: int, ef: int | None
    ) -> list[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """The images whose best row has the largest inner product, by the server's sums, of queries in float16.

        searches: a query [Co], and the numbers of the images to choose from or None for all, each.
        limit: how many to find.
        ef: how far to look in the graph; None to look at all rows.

        Returns scores [m] float32, descending, and numbers [m] int64, of each search.
        """
        from qdrant_client import models

        if ef is None:
            params = models.SearchParams(exact=True)
        else:
            copies = models.QuantizationSearchParams(rescore=True, oversampling=_OVERSAMPLING)
            params = models.SearchParams(hnsw_ef=max(ef, limit), quantization=copies)
        requests = [
            models.QueryRequest(query=[query.tolist()], filter=_only(ids), params=params, limit=limit)
            for query, ids in searches
        ]
        answers = self._ask("query_batch_points", requests=requests)
        return [
            (
                np.array([point.score for point in answer.points], np.float32),
                np.array([point.id for point in answer.points], np.int64),
            )
            for answer in answers
        ]

    def _ask(self, what: str, **arguments: Any) -> Any:
        client = connect(self.url)
        with asking(self.url, self.name):
            return getattr(client, what)(self.name, **arguments)


def _only(ids: NDArray[np.int64] | None) -> "models.Filter | None":
    from qdrant_client import models

    return None if ids is None else models.Filter(must=[models.HasIdCondition(has_id=ids.tolist())])


def _in_parts(values: list[int], size: int) -> Iterable[list[int]]:
    return (values[start : start + size] for start in range(0, len(values), size))
