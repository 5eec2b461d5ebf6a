"""Free text in, ranked images out: an index together with the method that encodes its queries."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from for_eval.index import Hit, SearchIndex, open_index
from for_model.data.dataset import ImageRecord
from for_model.errors import StoreError, WeightsError
from for_model.methods import Method


@dataclass(frozen=True)
class SearchResult:
    """The answer to one query.

    hits: at most k, best first.  encode_ms: the text's way through the encoder.  search_ms: the index's.
    """

    query: str
    k: int
    hits: tuple[Hit, ...]
    encode_ms: float
    search_ms: float

    @property
    def latency_ms(self) -> float:
        return self.encode_ms + self.search_ms

    def to_json(self) -> dict[str, Any]:
        """The answer as JSON values; `path` is relative to the index's image root, ranks count from 1."""
        return {
            "query": self.query,
            "k": self.k,
            "hits": [
                {
                    "rank": rank,
                    "id": hit.image.id,
                    "path": hit.image.path,
                    "score": hit.score,
                    "embedding": hit.embedding,
                }
                for rank, hit in enumerate(self.hits, start=1)
            ],
            "latency_ms": {
                "encode": round(self.encode_ms, 3),
                "search": round(self.search_ms, 3),
                "total": round(self.latency_ms, 3),
            },
        }


@dataclass(frozen=True)
class Searcher:
    """An index and its method. Searching changes neither, so several threads may share one."""

    index: SearchIndex
    method: Method
    image_root: Path

    def search(self, text: str, k: int = 10) -> SearchResult:
        """The k images that match a text best (all of them when there are fewer), with the time it took.

        Raises UsageError for an empty text or k < 1.
        """
        from for_model.text import embed_queries

        start = time.perf_counter()
        queries = embed_queries(self.method, [text]).numpy(force=True).astype(np.float32)  # [1, Co]
        encoded = time.perf_counter()
        hits = self.index.search(queries, k)[0]
        end = time.perf_counter()
        return SearchResult(text, k, tuple(hits), (encoded - start) * 1e3, (end - encoded) * 1e3)

    def image_path(self, image: ImageRecord) -> Path:
        """The absolute path of an image; whether a file is there is not looked at.

        Raises StoreError for a path that leads out of the image root: an index may come from somewhere else.
        """
        path = Path(os.path.normpath(self.image_root / image.path))
        if not path.is_relative_to(self.image_root):
            raise StoreError(f"image {image.id!r} of {self.index.path} has a path outside {self.image_root}: {path}")
        return path


def load_searcher(
    index_path: Path,
    device: str | None = None,
    *,
    weights: str | None = None,
    image_root: Path | None = None,
    method: Method | None = None,
) -> Searcher:
    """Open an index and rebuild the method that made it, to encode its queries.

    device: None for CUDA where there is one, else the CPU.
    weights: the weights' file, for an index made from one (it records the file's name only); None for what it records.
    image_root: where the images lie now; None for where they lay when they were embedded.
    method: a method that is built already, instead of building one.
    Raises StoreError when the index is missing or damaged, or the method isn't of its text space, and WeightsError
    when its weights can't be had.
    """
    index = open_index(index_path)
    if method is None:
        method = _rebuild(index, weights, device)
    index.check_method(method.info)
    root = Path(index.image_root) if image_root is None else image_root
    return Searcher(index, method, Path(os.path.normpath(root.expanduser().absolute())))


def _rebuild(index: SearchIndex, weights: str | None, device: str | None) -> Method:
    """The index's method, or, if its head was trained, one with the same text encoder: queries need no more."""
    from for_model.clip_method import DUAL_ENCODERS, METHODS, build_method

    info = index.info
    # The packaged weights are labelled by their model's name in lower case, which isn't a name to load them by.
    recorded = None if info.weights == info.backbone.lower() else info.weights
    try:
        return build_method(
            info.method if info.method in (*METHODS, *DUAL_ENCODERS) else "clip",
            info.backbone,
            weights or recorded,
            image_size=info.image_size,
            clusters=info.settings.get("clusters"),
            device=device,
        )
    except WeightsError as error:
        if weights is not None:
            raise
        raise WeightsError(
            f"{index.path} was made with the weights {info.weights!r}, which can't be loaded ({error}); "
            "if they are a file, give its path"
        ) from error


def format_hits_text(result: SearchResult) -> str:
    """The hits as lines for a terminal: rank, score, number of the embedding that matched, path.

    Characters of a path that a terminal would act on, or can't show, are escaped. No hits give one line that says so.
    """
    if not result.hits:
        return "no images"
    rank_width = len(str(len(result.hits)))
    embedding_width = max(len(str(hit.embedding)) for hit in result.hits)
    return "\n".join(
        f"{rank:>{rank_width}}  {hit.score:.4f}  {hit.embedding:>{embedding_width}}  {_printable(hit.image.path)}"
        for rank, hit in enumerate(result.hits, start=1)
    )


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
