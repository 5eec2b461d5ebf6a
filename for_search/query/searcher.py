"""Free text or an image in, ranked images out: an index together with the method that encodes its queries.

Shapes: Q embeddings of a query, N embeddings an image, M images, Co joint width.
"""

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from for_model.data.dataset import ImageId, ImageRecord
from for_model.errors import StoreError, UsageError, WeightsError
from for_model.files import sha256_file
from for_model.methods.packaged_heads import packaged_heads
from for_model.methods.protocol import LazyMethod, Method
from for_model.methods.registry import METHODS
from for_search.index.index import Hit, SearchIndex
from for_search.index.index_files import open_index
from for_search.query.presence import BEST_IMAGES, IndexScale, index_scale
from for_search.query.ranking import best_columns
from for_search.query.text_batches import TextBatches

if TYPE_CHECKING:
    from for_model.backbones.protocol import ImageTextBackbone

MAX_QUERY_CHARACTERS = 300  # the tokenizer cuts a longer query anyway
HEAD_MISSING = (
    "the trained head of this index isn't at hand, which it takes to look at images: "
    "start the app with --head and the path of its head.safetensors"
)


@dataclass(frozen=True)
class SearchResult:
    """The answer to one query.

    hits: at most k, best first.
    encode_ms: the text's way through the encoder.
    search_ms: the index's.
    probabilities: of each hit, how probable it is that the image holds what the text names, never larger than the one
        before; None where that isn't known, see `Searcher.judged`.
    cutoff: the least probability of a good match; None without probabilities.
    """

    query: str
    k: int
    hits: tuple[Hit, ...]
    encode_ms: float
    search_ms: float
    probabilities: tuple[float, ...] | None = None
    cutoff: float | None = None

    @property
    def latency_ms(self) -> float:
        return self.encode_ms + self.search_ms

    @property
    def n_good(self) -> int | None:
        """How many hits, the first ones, are good matches; None where that isn't known."""
        if self.probabilities is None or self.cutoff is None:
            return None
        return count_good(self.probabilities, self.cutoff)

    def to_json(self, paths: bool = True) -> dict[str, Any]:
        """The answer as JSON values; ranks count from 1.

        paths: whether to give each image's path, relative to the index's root.
        """
        n_good = self.n_good
        return {
            "query": self.query,
            "k": self.k,
            **({} if n_good is None else {"n_good": n_good, "cutoff": self.cutoff}),
            "hits": [
                {
                    "rank": rank,
                    "id": hit.image.id,
                    **({"path": hit.image.path} if paths else {}),
                    "score": hit.score,
                    **self._judgement(rank),
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

    def _judgement(self, rank: int) -> dict[str, Any]:
        """What JSON says of the hit of a rank, from 1, beside its score."""
        n_good = self.n_good
        if self.probabilities is None or n_good is None:
            return {}
        return {"probability": round(self.probabilities[rank - 1], 4), "good": rank <= n_good}


@dataclass(frozen=True)
class Query:
    """What is searched for, encoded for one index's joint space.

    label: the text, or words for an image.
    embeddings: [Q, Co] float32, unit-norm; one for a text, those of an image for an image.
    encode_ms: how long that took; 0 where nothing had to be encoded.
    is_text: whether it is a text alone: what a score means is known of texts only.
    """

    label: str
    embeddings: NDArray[np.float32]
    encode_ms: float
    is_text: bool = False


@dataclass(frozen=True)
class Searcher:
    """An index and its method. Searching changes neither, so several threads may share one.

    index: what is searched.
    encoder: the method, which may be loaded only when something has to be encoded.
    image_root: the folder that the images' paths are relative to.
    texts: embeddings of some texts, each [Co], which are searched for without loading the method.
    """

    index: SearchIndex
    encoder: LazyMethod
    image_root: Path
    texts: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    @cached_property
    def _batches(self) -> TextBatches:
        return TextBatches(self.encoder)

    @cached_property
    def scale(self) -> IndexScale | None:
        """What a text's scores mean in this index, made on first use; None where it has too few images to tell."""
        return index_scale(self.index, self.encoder)

    @property
    def method(self) -> Method:
        """The method, loaded now if it isn't yet. Raises what that raises."""
        return self.encoder.get()

    def search(self, text: str, k: int = 10, exact: bool = False) -> SearchResult:
        """The k images that match a text best (all of them when there are fewer), with the time it took.

        exact: look at every embedding, whatever the index's engine. Raises UsageError for an empty text or k < 1.
        """
        return self.find(self.text_query(text), k, exact=exact)

    def text_query(self, text: str) -> Query:
        """Encode a free text, as `embed_queries` does.

        One of `texts` doesn't wait until the method is loaded, and none does if its weights come with FOR.

        Raises UsageError for an empty text, and what loading the method raises.
        """
        if text in self.texts and not self.encoder.loaded:
            return Query(text, self.texts[text][None], 0.0, is_text=True)
        if not self.encoder.reads_texts:
            self.encoder.get()  # before the clock starts: encode_ms is without loading
        start = time.perf_counter()
        embeddings = self._batches.embed(text)[None]  # [1, Co]
        return Query(text, embeddings, (time.perf_counter() - start) * 1e3, is_text=True)

    def image_query(self, image: Image.Image, label: str = "your image") -> Query:
        """Encode an image into the embeddings that it would have in the index.

        Raises WeightsError when the index's trained head isn't at hand.
        """
        if not self.embeds_images:
            raise WeightsError(HEAD_MISSING)
        method = self.method
        start = time.perf_counter()
        embeddings = method.encode_images(method.preprocess(image)[None])[0]  # [N, Co]
        return Query(label, embeddings.numpy(force=True).astype(np.float32), (time.perf_counter() - start) * 1e3)

    def like_query(self, image_id: ImageId, embedding: int | None = None) -> Query:
        """Search with an image of the index: all of it, or what one of its embeddings stands for.

        embedding: in 0..N-1; None for all. Raises UsageError for an id or embedding that the index doesn't have.
        """
        embeddings = self.index.embeddings(image_id)
        if embedding is None:
            return Query(f"like image {image_id}", embeddings, 0.0)
        if not 0 <= embedding < len(embeddings):
            raise UsageError(f"embedding {embedding} of image {image_id!r}: expected 0 to {len(embeddings) - 1}")
        return Query(f"like part {embedding} of image {image_id}", embeddings[embedding : embedding + 1], 0.0)

    def mixed_query(self, image: Query, text: str, weight: float = 0.5) -> Query:
        """Like this image, but more as a text says: a weighted sum in the joint space, made unit-norm again.

        Each of the image's embeddings moves towards the text's, so that what the image shows besides is looked for too.

        image: of `image_query` or `like_query`.
        text: "red", say.
        weight: the text's, in 0..1; 0 searches with the image alone, 1 with the text alone.

        Raises UsageError for another weight, and as `text_query` does.
        """
        if not isinstance(weight, int | float) or not 0 <= weight <= 1:
            raise UsageError(
                f"the weight is {weight!r}: expected a number from 0 (the image alone) to 1 (the text alone)"
            )
        wanted = self.text_query(text)
        mixed = (1 - weight) * image.embeddings + weight * wanted.embeddings  # [Q, Co]
        # an embedding and a text that are exactly opposite leave nothing to search with: then it stays what it was
        norms = np.linalg.norm(mixed, axis=1, keepdims=True)
        mixed = np.where(norms > 1e-6, mixed / np.maximum(norms, 1e-6), image.embeddings).astype(np.float32)
        return Query(f"{image.label}, {text}", mixed, image.encode_ms + wanted.encode_ms)

    def judged(self, query: Query, result: SearchResult) -> SearchResult:
        """The result with how probable each hit is to hold what the query names.

        As it came for a query that isn't a text, and in an index of too few images; see `presence`. The first call
        may take seconds. Raises what loading the method raises.
        """
        if not query.is_text or self.scale is None:
            return result
        if not result.hits:
            return replace(result, probabilities=(), cutoff=self.scale.numbers.cutoff)
        found = np.stack([self.index.embeddings(hit.image.id) for hit in result.hits[:BEST_IMAGES]])
        scale = self.scale.of_search(query.embeddings, found)
        probabilities = scale.probability(np.array([hit.score for hit in result.hits]))
        return replace(result, probabilities=tuple(probabilities.tolist()), cutoff=scale.numbers.cutoff)

    def find(
        self, query: Query, k: int = 10, allowed: NDArray[np.bool_] | None = None, exact: bool = False
    ) -> SearchResult:
        """The k images that match a query best (all of them when there are fewer), with the time it took.

        allowed: [M], the images to choose from, see `SearchIndex.where`; None for all.
        An image's score is the mean over the query's Q embeddings of the best cosine with one of the image's N: for a
        text the best cosine, for an image how much of what it shows is found again. The hit's embedding is the one of
        the best pair. Equal scores in order of image id.
        exact: as in `search`; a query of several embeddings always is. Raises UsageError for k < 1.
        """
        start = time.perf_counter()
        one = len(query.embeddings) == 1
        hits = self.index.search(query.embeddings, k, allowed, exact)[0] if one else self._find_all(query, k, allowed)
        return SearchResult(query.label, k, tuple(hits), query.encode_ms, (time.perf_counter() - start) * 1e3)

    def _find_all(self, query: Query, k: int, allowed: NDArray[np.bool_] | None) -> list[Hit]:
        scores = self.index.score_images(query.embeddings).mean(axis=0)  # [M]
        hits = []
        for column in best_columns(scores, k, allowed):
            image = self.index.images[column]
            best = (self.index.embeddings(image.id) @ query.embeddings.T).max(axis=1)  # [N]
            hits.append(Hit(image, float(scores[column]), int(best.argmax())))
        return hits

    @property
    def embeds_images(self) -> bool:
        """Whether `method` makes embeddings like the index's; not so for a trained head whose file isn't at hand."""
        own, made = self.encoder.info, self.index.info
        return (own.method, own.settings, own.image_size) == (made.method, made.settings, made.image_size)

    def image_path(self, image: ImageRecord) -> Path:
        """The absolute path of an image; whether a file is there is not looked at.

        Raises StoreError for a path or a link that leads out of the image root: an index may come from somewhere else.
        """
        path = Path(os.path.normpath(self.image_root / image.path))
        if not path.is_relative_to(self.image_root) or not _stays_inside(path, self.image_root):
            raise StoreError(f"image {image.id!r} of {self.index.path} has a path outside {self.image_root}: {path}")
        return path


def count_good(probabilities: Sequence[float], cutoff: float) -> int:
    """How many of some probabilities, in descending order, are those of good matches."""
    return sum(probability >= cutoff for probability in probabilities)


def clean_query(text: str) -> str:
    """At most MAX_QUERY_CHARACTERS of a text, without half surrogate pairs, which JSON can hold but UTF-8 can't."""
    return text[:MAX_QUERY_CHARACTERS].encode("utf-8", "replace").decode()


def without_paths(line: str, places: Iterable[str]) -> str:
    """A line without some paths of this machine, the longest first, so that no end of a longer one is left."""
    for place in sorted(places, key=len, reverse=True):
        line = line.replace(place, "…")
    return line


def _stays_inside(path: Path, root: Path) -> bool:
    """Whether `path`, its links followed, still lies under `root`."""
    try:
        return path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError, ValueError):  # a link to itself, a NUL character
        return False


def load_searcher(
    index_path: Path,
    device: str | None = None,
    *,
    weights: str | None = None,
    image_root: Path | None = None,
    method: Method | None = None,
) -> Searcher:
    """Open an index, with the method that made it to encode its queries; see `searcher_of`.

    Raises StoreError when the index is missing or damaged, and as `searcher_of` does.
    """
    return searcher_of(open_index(index_path), device, weights=weights, image_root=image_root, method=method)


def searcher_of(
    index: SearchIndex,
    device: str | None = None,
    *,
    weights: str | None = None,
    image_root: Path | None = None,
    method: Method | LazyMethod | None = None,
    texts: Mapping[str, NDArray[np.float32]] | None = None,
    heads: Sequence[Path] = (),
    loaded: "ImageTextBackbone | None" = None,
) -> Searcher:
    """The searcher of an open index, its method rebuilt: now, or when it is needed, where texts can be encoded without.

    device: None for CUDA where there is one, else the CPU.
    weights: the weights' file, for an index made from one (it records the file's name only); None for what it records.
    image_root: where the images lie now; None for where they lay when they were embedded.
    method: a method that is built already, instead of building one.
    texts: see `Searcher`.
    heads: files of trained heads, one of which may be the index's; the one that comes with FOR is known without.
    loaded: the index's backbone, if it is in memory already.
    Raises StoreError when the method isn't of the index's text space, WeightsError when weights or a head can't be had.
    """
    if method is None:
        method = _method_of(index, weights, device, heads, loaded)
    encoder = method if isinstance(method, LazyMethod) else LazyMethod.of(method)
    index.check_method(encoder.info)
    root = Path(index.image_root) if image_root is None else image_root
    return Searcher(index, encoder, Path(os.path.normpath(root.expanduser().absolute())), texts or {})


def _method_of(
    index: SearchIndex,
    weights: str | None,
    device: str | None,
    heads: Sequence[Path],
    loaded: "ImageTextBackbone | None",
) -> LazyMethod:
    """The index's method, or, if its head was trained and isn't at hand, one with the same text encoder: queries need
    no more. Of weights that come with FOR it is described alone."""
    info = index.info
    entry = METHODS.get(info.method)
    spec = info.method
    if entry is None or entry.trained:
        head = _head_of(index, heads)
        spec = str(head or "clip")
        info = info if head else replace(info, method="clip", n_embeddings=1, settings={})
    elif entry.takes_count:
        spec = f"{info.method}:{info.n_embeddings}"
    load = partial(_rebuild, index, spec, weights, device, loaded)
    described = LazyMethod(info, load)
    if weights is None and device is None and loaded is None and described.numpy_text is not None:
        return described
    return LazyMethod.of(load())


def _rebuild(
    index: SearchIndex, spec: str, weights: str | None, device: str | None, loaded: "ImageTextBackbone | None"
) -> Method:
    """A method, its name as `build_method` takes it, on the backbone that an index was made with."""
    from for_model.methods.build import build_method

    info = index.info
    try:
        return build_method(
            spec,
            info.backbone,
            weights or info.recorded_weights,
            image_size=info.image_size,
            device=device,
            loaded=loaded,
        )
    except WeightsError as error:
        if weights is not None:
            raise
        raise WeightsError(
            f"{index.path} was made with the weights {info.weights!r}, which can't be loaded ({error}); "
            "if they are a file, give its path"
        ) from error


def _head_of(index: SearchIndex, heads: Sequence[Path]) -> Path | None:
    """The file among `heads`, and the one that comes with FOR, that made the index; None when none did."""
    files = [*heads, *packaged_heads(index.info.backbone)]
    wanted = index.info.settings.get("head_sha256")
    return next((file for file in files if sha256_file(file) == wanted), None)
