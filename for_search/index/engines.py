"""Search engines by kind."""

from for_search.index.engine_protocol import VectorIndex
from for_search.index.flat_engine import FlatIndex

KINDS: dict[str, type[VectorIndex]] = {FlatIndex.kind: FlatIndex}
