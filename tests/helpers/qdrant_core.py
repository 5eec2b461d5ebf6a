"""The core of Qdrant's server in process, behind the calls of its client that FOR makes.

A server does the same with the same code, behind HTTP and spread over shards. Two things are the core's alone: it
indexes when `get_collection` is asked, not in the background, and a collection is one shard.
"""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import qdrant_edge as core
from qdrant_client import models


class CoreClient:
    """A client of collections in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[str, core.EdgeShard] = {}
        self._params: dict[str, models.VectorParams] = {}
        self._indexed: set[str] = set()

    def create_collection(
        self,
        name: str,
        *,
        vectors_config: models.VectorParams,
        hnsw_config: models.HnswConfigDiff,
        quantization_config: models.ScalarQuantization | None,
        optimizers_config: models.OptimizersConfigDiff | None,
    ) -> None:
        assert (vectors_config.distance, vectors_config.datatype) == (models.Distance.DOT, models.Datatype.FLOAT16)
        vectors = core.EdgeVectorParams(
            size=vectors_config.size,
            distance=core.Distance.Dot,
            datatype=core.VectorStorageDatatype.Float16,
            on_disk=vectors_config.on_disk,
            multivector_config=core.MultiVectorConfig(core.MultiVectorComparator.MaxSim),
        )
        scalar = None if quantization_config is None else quantization_config.scalar
        copies = scalar and core.ScalarQuantizationConfig(core.ScalarType.Int8, scalar.quantile, scalar.always_ram)
        graph = core.HnswIndexConfig(hnsw_config.m, hnsw_config.ef_construct, 10)
        threshold = None if optimizers_config is None else optimizers_config.indexing_threshold
        optimizers = core.EdgeOptimizersConfig(default_segment_number=1, indexing_threshold=threshold)
        config = core.EdgeConfig(vectors, hnsw_config=graph, quantization_config=copies, optimizers=optimizers)
        (self.folder / name).mkdir(parents=True)
        self._open[name] = core.EdgeShard.create(str(self.folder / name), config)
        self._params[name] = vectors_config
        if quantization_config is not None:
            self._indexed.add(name)

    def collection_exists(self, name: str) -> bool:
        return name in self._open

    def delete_collection(self, name: str) -> bool:
        shard = self._open.pop(name, None)
        if shard is not None:
            shard.close()
            shutil.rmtree(self.folder / name)
        return shard is not None

    def get_collection(self, name: str) -> Any:
        if name in self._indexed:
            self._shard(name).optimize()
        info = self._shard(name).info()
        params = SimpleNamespace(vectors=self._params[name])
        return SimpleNamespace(
            config=SimpleNamespace(params=params), status="green", indexed_vectors_count=info.indexed_vectors_count
        )

    def count(self, name: str, exact: bool) -> Any:
        return SimpleNamespace(count=self._shard(name).count(core.CountRequest(exact=exact)))

    def upsert(self, name: str, points: models.Batch, wait: bool) -> None:
        added = [core.Point(number, rows, {}) for number, rows in zip(points.ids, points.vectors, strict=True)]
        self._shard(name).update(core.UpdateOperation.upsert_points(added))

    def delete(self, name: str, points_selector: models.PointIdsList, wait: bool) -> None:
        self._shard(name).update(core.UpdateOperation.delete_points(points_selector.points))

    def retrieve(self, name: str, ids: list[int], with_vectors: bool, with_payload: bool) -> list[Any]:
        records = self._shard(name).retrieve(ids, with_payload, with_vectors)
        return [SimpleNamespace(id=record.id, vector=record.vector) for record in records]

    def query_batch_points(self, name: str, requests: list[models.QueryRequest]) -> list[Any]:
        return [SimpleNamespace(points=self._shard(name).query(_request(request))) for request in requests]

    def _shard(self, name: str) -> core.EdgeShard:
        if name not in self._open:
            raise ValueError(f"Collection {name} not found")
        return self._open[name]


def _request(request: models.QueryRequest) -> core.QueryRequest:
    params = request.params
    copies = params.quantization
    searching = core.SearchParams(
        params.hnsw_ef,
        bool(params.exact),
        copies and core.QuantizationSearchParams(rescore=copies.rescore, oversampling=copies.oversampling),
    )
    ids = request.filter and core.Filter(must=[core.HasIdCondition(set(request.filter.must[0].has_id))])
    query = core.Query.Nearest(getattr(request.query, "nearest", request.query))  # as HTTP or the caller gives it
    return core.QueryRequest(request.limit, query=query, filter=ids, params=searching)
