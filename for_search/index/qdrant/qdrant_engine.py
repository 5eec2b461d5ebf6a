"""An engine whose rows lie on a Qdrant server or cluster: it finds images there and scores them here.

Legend: Q queries, S images in all, N rows an image, Co joint width.
"""

import contextlib
import json
import logging
import re
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from for_model.errors import ForError, StoreError, UsageError
from for_model.files import write_json
from for_search.index.checked_file import damaged
from for_search.index.engine_protocol import BuildOptions, FoundImages, ImageEngine, Recall
from for_search.index.flat_engine import SUM_ERROR, score_rows
from for_search.index.qdrant.collection import Collection
from for_search.index.qdrant.connection import check_url, name_server
from for_search.index.qdrant.graph_recall import choose_ef

FORMAT = "for-qdrant/1"
NOTE = "collection.json"
_MARGIN = 16  # images asked for beyond twice those that are wanted, as the server's order isn't quite the exact one
_GROWTH = 4
_MOST_IDS = 10_000  # a filter that allows at most so many images is sent to the server
_MOST_FETCHED = 10_000  # of a filter that allows more, so many images are looked at before it is sent in parts
_N_PROBES = 8

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Note:
    """What the engine's only file says.

    url, collection: where the rows are.
    ef: how far a search looks in the server's graph; None where it scans, exactly.
    recall: what that finds; None for all.
    longest: the largest norm of a row.
    probes: numbers of some images and the hash of each one's rows, to tell the collection from another.
    """

    url: str
    collection: str
    n_images: int
    n_embeddings: int
    dim: int
    quantised: bool
    ef: int | None = None
    recall: Recall | None = None
    longest: float = 0.0
    probes: tuple[tuple[int, str], ...] = ()

    @classmethod
    def read(cls, path: Path) -> "_Note":
        """Raises StoreError, in one line, for a file that is missing or isn't as it was written."""
        try:
            value = json.loads(path.read_bytes())
            if value.pop("format") != FORMAT:
                raise ValueError("of another format")
            recall, probes = value.pop("recall"), value.pop("probes")
            note = cls(
                **value,
                recall=None if recall is None else Recall(**recall),
                probes=tuple((int(number), str(digest)) for number, digest in probes),
            )
            if note.url != check_url(note.url) or min(note.n_images, note.n_embeddings, note.dim) < 1:
                raise ValueError("its fields make no sense")
            return note
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, UsageError) as error:
            raise damaged(path, f"{type(error).__name__} {error}") from error

    def write(self, path: Path) -> None:
        value = {**asdict(self), "recall": None if self.recall is None else self.recall.to_json()}
        write_json(path, {"format": FORMAT, **value})

    def collection_at(self) -> Collection:
        return Collection(self.url, self.collection, self.n_embeddings, self.dim, self.quantised)


class QdrantEngine(ImageEngine):
    """Images on a server, one point each, see `collection`.

    The server finds images by its own sums, for which it rounds the query to float16, so they may be wrong by as much
    as that rounding changes an inner product. The engine asks for more images than are wanted, until all that could be
    among the best are there, fetches the rows of these, and scores them as the flat engine does, to the bit. So an
    index that isn't quantised gives what a scan of all rows here would give.

    A filter is a list of images, computed by the index's own table, not the server's: the server needn't know any
    column, there is one language of conditions, and what is found is what the table says. Few images are sent as ids,
    and the server scans these alone; where many are allowed, what it finds is filtered here.
    """

    kind: ClassVar[str] = "qdrant"
    small_kind: ClassVar[str] = "qdrant"
    on_server: ClassVar[bool] = True
    file_names: ClassVar[tuple[str, ...]] = (NOTE,)
    resumes: ClassVar[bool] = True

    def __init__(self, note: _Note, collection: Collection) -> None:
        self._note, self._collection = note, collection

    @property
    def recall(self) -> Recall | None:
        return self._note.recall

    @classmethod
    def build(
        cls, blocks: Iterable[NDArray[np.float16]], n_rows: int, dim: int, folder: Path, options: BuildOptions
    ) -> None:
        url, quantised = _wanted(options)
        n_images = n_rows // options.n_embeddings
        work = options.partial or folder / "partial"
        work.mkdir(exist_ok=True)
        note = _Note(url, _new_name(folder), n_images, options.n_embeddings, dim, quantised)
        begun = _begun(work, note)
        if begun is None:
            cls.discard(work)
            note.write(work / NOTE)  # before the collection is made, so that a killed build leaves none that is unknown
        else:
            note = begun
        collection = note.collection_at()
        if not collection.exists():
            collection.create()
        done = collection.count()
        probed = {int(number): "" for number in np.linspace(0, n_images - 1, min(n_images, _N_PROBES))}
        first, longest = 0, 0.0
        for images in _by_image(blocks, options.n_embeddings):
            longest = max(longest, float(np.linalg.norm(images.astype(np.float32), axis=2).max()))
            for number in probed:
                if first <= number < first + len(images):
                    probed[number] = _digest(images[number - first])
            # Images go there in order, so what is there already is the first of them.
            skipped = min(max(0, done - first), len(images))
            collection.upload(first + skipped, images[skipped:])
            first += len(images)
        note = replace(note, longest=longest, probes=tuple(probed.items()))
        if quantised:
            collection.wait_until_indexed(n_images)
            note = cls(note, collection)._with_recall(options)
        note.write(folder / NOTE)
        (work / NOTE).unlink()
        if options.partial is None:
            work.rmdir()

    @classmethod
    def open(cls, folder: Path, n_rows: int, dim: int) -> "QdrantEngine":
        note = _Note.read(folder / NOTE)
        if (note.n_images * note.n_embeddings, note.dim) != (n_rows, dim):
            rows = note.n_images * note.n_embeddings
            raise damaged(folder / NOTE, f"it is of {rows} rows of width {note.dim}; the index has {n_rows} of {dim}")
        collection = note.collection_at()
        collection.check()
        if collection.count() > note.n_images:
            raise collection.damaged("it holds more images")
        probes = collection.images(np.array([number for number, _ in note.probes], np.int64))
        for (number, digest), rows in zip(note.probes, probes, strict=True):
            if np.isfinite(rows).all() and _digest(rows.astype(np.float16)) != digest:
                raise collection.damaged(f"image {number} is another")
        return cls(note, collection)

    @classmethod
    def discard(cls, folder: Path) -> None:
        if not (folder / NOTE).is_file():
            return
        try:
            _Note.read(folder / NOTE).collection_at().remove()
        except ForError as error:
            _log.warning("what the server holds of an index that is gone stays there: %s", error)

    def check_images(self, n_images: int) -> None:
        found = self._collection.count()
        if found < n_images:
            raise self._collection.damaged(f"it holds {found} images of {n_images}")

    def search_images(
        self,
        queries: NDArray[np.float32],
        k: int,
        allowed: NDArray[np.bool_] | None = None,
        exact: bool = False,
    ) -> list[FoundImages]:
        return [self._search(query, k, allowed, exact) for query in queries]

    def score_images(self, queries: NDArray[np.float32], start: int, count: int) -> NDArray[np.float32]:
        scores = np.full((len(queries), count), -np.inf, np.float32)
        numbers = np.arange(start, start + count)
        lengths = [_length(query) for query in queries]
        searches = [(query / length, numbers) for query, length in zip(queries, lengths, strict=True)]
        for row, length, (found, images) in zip(
            scores, lengths, self._collection.best(searches, count, None), strict=True
        ):
            row[images - start] = found * np.float32(length)
        return scores

    def images(self, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._collection.images(numbers)

    def rows(self, start: int, count: int) -> NDArray[np.float32]:
        n_embeddings = self._note.n_embeddings
        first, last = start // n_embeddings, -(-(start + count) // n_embeddings)
        rows = self.images(np.arange(first, last)).reshape(-1, self._note.dim)
        skipped = start - first * n_embeddings
        return rows[skipped : skipped + count].copy()

    def drop_images(self, numbers: NDArray[np.int64]) -> None:
        try:
            self._collection.drop(numbers)
        except ForError as error:
            _log.warning("images that are gone stay on the server until the next update: %s", error)

    def _search(
        self, query: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None, exact: bool
    ) -> FoundImages:
        numbers = self._candidates(query, k, allowed, exact)
        if not len(numbers):
            return FoundImages(np.empty(0, np.float32), np.empty(0, np.int64), np.empty(0, np.int64))
        rows = self.images(numbers)
        there = np.isfinite(rows).all(axis=(1, 2))  # one that was removed since the search isn't found
        numbers, rows = numbers[there], rows[there]
        flat = rows.reshape(-1, self._note.dim).astype(np.float16)
        scores = score_rows(query, flat).reshape(len(numbers), self._note.n_embeddings)
        embeddings = scores.argmax(axis=1)
        best = scores.max(axis=1)
        order = np.lexsort((numbers, -best))
        return FoundImages(best[order], numbers[order], embeddings[order])

    def _candidates(
        self, query: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None, exact: bool
    ) -> NDArray[np.int64]:
        """The numbers of all images that can be among the k best or tie with the last of them, by the server's scores.

        An image whose score the server gets wrong by `doubt` at most is among the k best only if its score there lies
        less than twice that below the k-th best of all.
        """
        note = self._note
        unit = query / _length(query)
        doubt = note.longest * (float(np.linalg.norm(unit - unit.astype(np.float16).astype(np.float32))) + SUM_ERROR)
        ef = None if exact or note.ef is None else note.ef
        n_allowed = note.n_images if allowed is None else int(np.count_nonzero(allowed))
        k = min(k, n_allowed)
        if not k:
            return np.empty(0, np.int64)
        if allowed is not None and n_allowed <= _MOST_IDS:
            return self._candidates_of(np.flatnonzero(allowed), unit, k, doubt)
        fetch = (2 * k + _MARGIN) * note.n_images // n_allowed
        while True:
            fetch = min(fetch, note.n_images)
            ((scores, numbers),) = self._collection.best([(unit, None)], fetch, ef)
            is_all = not len(scores) == fetch < note.n_images
            ending = -np.inf if is_all else scores[-1]
            if allowed is not None:
                scores, numbers = scores[allowed[numbers]], numbers[allowed[numbers]]
            if len(scores) >= k and ending < scores[k - 1] - 2 * doubt:
                return numbers[scores >= scores[k - 1] - 2 * doubt]
            if is_all and ef is None:
                return numbers
            if is_all:
                ef = None  # the graph doesn't lead to as many as there are
            fetch *= _GROWTH
            if allowed is not None and fetch > max(_MOST_FETCHED, _GROWTH * k):
                return self._candidates_of(np.flatnonzero(allowed), unit, k, doubt)

    def _candidates_of(
        self, ids: NDArray[np.int64], query: NDArray[np.float32], k: int, doubt: float
    ) -> NDArray[np.int64]:
        """The same among the images of some ids, which the server scans; `_MOST_IDS` of them at a time."""
        fetch = 2 * k + _MARGIN
        while True:
            scores, numbers = np.empty(0, np.float32), np.empty(0, np.int64)
            endings = []
            for start in range(0, len(ids), _MOST_IDS):
                part = ids[start : start + _MOST_IDS]
                ((its_scores, its_numbers),) = self._collection.best([(query, part)], fetch, None)
                endings.append(its_scores[-1] if len(its_scores) == fetch < len(part) else -np.inf)
                scores, numbers = np.concatenate([scores, its_scores]), np.concatenate([numbers, its_numbers])
                order = np.argsort(-scores, kind="stable")
                if len(order) > k:  # what can't be among the best any more is let go
                    order = order[scores[order] >= scores[order[k - 1]] - 2 * doubt]
                scores, numbers = scores[order], numbers[order]
            if max(endings) == -np.inf or (len(scores) >= k and max(endings) < scores[k - 1] - 2 * doubt):
                return numbers
            fetch *= _GROWTH

    def _with_recall(self, options: BuildOptions) -> _Note:
        def found(ef: int | None, queries: NDArray[np.float32], k: int) -> list[NDArray[np.int64]]:
            engine = QdrantEngine(replace(self._note, ef=ef), self._collection)
            return [engine._search(query, k, None, False).images[:k] for query in queries]

        ef, recall = choose_ef(found, self.rows, self._note.n_images, options)
        return replace(self._note, ef=ef, recall=recall)


def _wanted(options: BuildOptions) -> tuple[str, bool]:
    """The server and whether it quantises, as asked for or as the index has it already."""
    earlier = None
    if options.earlier is not None:
        with contextlib.suppress(StoreError):  # one that is damaged says nothing
            earlier = _Note.read(options.earlier / NOTE)
    url = earlier.url if earlier else None
    if options.url:
        url = check_url(options.url)
        name_server(url)
    if url is None:
        raise UsageError("the engine qdrant needs a server: give --url, such as http://localhost:6333")
    return url, earlier.quantised if options.quantised is None and earlier else bool(options.quantised)


def _begun(work: Path, note: _Note) -> _Note | None:
    """What a killed build with the same options has begun; None if there is none."""
    try:
        begun = _Note.read(work / NOTE)
    except StoreError:
        return None
    return begun if replace(begun, collection=note.collection) == note else None


def _new_name(folder: Path) -> str:
    """A name that no other collection has, by which people can tell whose it is."""
    words = re.sub(r"[^a-z0-9]+", "-", folder.parent.name.lower()).strip("-")[:40]
    return "-".join(filter(None, ("for", words, secrets.token_hex(8))))


def _by_image(blocks: Iterable[NDArray[np.float16]], n_embeddings: int) -> Iterator[NDArray[np.float16]]:
    """[R, Co] rows in blocks of any size -> [m, N, Co] whole images, m at least 1."""
    rest: NDArray[np.float16] | None = None
    for block in blocks:
        rows = np.asarray(block) if rest is None or not len(rest) else np.concatenate([rest, block])
        whole = len(rows) // n_embeddings * n_embeddings
        rest = rows[whole:]
        if whole:
            yield rows[:whole].reshape(-1, n_embeddings, rows.shape[1])


def _digest(rows: NDArray[Any]) -> str:
    return xxhash.xxh3_64_hexdigest(np.ascontiguousarray(rows, dtype="<f2").tobytes())


def _length(query: NDArray[np.float32]) -> float:
    """What to divide a query by so that float16 holds it; scores are in proportion."""
    return float(np.linalg.norm(query)) or 1.0
