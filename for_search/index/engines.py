"""Search engines by kind: the one place where an engine is added."""

from for_search.index.compact.compact_engine import CompactEngine
from for_search.index.engine_protocol import Engine
from for_search.index.flat_engine import FlatEngine
from for_search.index.gpu_engine import GpuEngine
from for_search.index.qdrant.qdrant_engine import QdrantEngine

_CLASSES: tuple[type[Engine], ...] = (FlatEngine, CompactEngine, GpuEngine, QdrantEngine)
ENGINES: dict[str, type[Engine]] = {engine.kind: engine for engine in _CLASSES}
