"""The search index: an embedding store arranged for search, and the exact ranking of distinct images.

An index is a folder: the engine's file and `manifest.json`, which repeats what a searcher needs of the store, so that
the store itself may be deleted. Row r of the engine is embedding r % N of image r // N, images in ascending id order.
Legend: M images, N embeddings per image, Q queries, Co joint width, F rows fetched for a query.
"""

import bisect
import contextlib
import fcntl
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from for_eval.engines import KINDS, VectorIndex, damaged
from for_eval.store import FORMAT as STORE_FORMAT
from for_eval.store import SkippedImage, Store, open_store
from for_model import files
from for_model.data.dataset import ImageId, ImageRecord
from for_model.errors import StoreError, UsageError
from for_model.methods import MethodInfo

FORMAT = "for-index/1"
MANIFEST = "manifest.json"
_HEAD_BYTES = 4096
_FIRST_FETCH = 1024  # rows; a scan of 250,000 rows takes nearly as long for 10 of them as for 1,024
_FETCH_GROWTH = 4
_FETCH_BUDGET = 1 << 22  # rows fetched at once over all queries, 12 bytes each
_BLOCK_ROWS = 1 << 14  # rows scored at once, when all are


@dataclass(frozen=True)
class Hit:
    """An image that was found: its score (its best embedding's inner product with the query), and which embedding.

    embedding: in 0..N-1, the lowest-numbered one that reaches the score.
    """

    image: ImageRecord
    score: float
    embedding: int


@dataclass(frozen=True)
class SearchIndex:
    """An open index. Searching changes nothing in it, so several threads may share one.

    images: M records in ascending order of id.  skipped: those the store left out, with reasons.
    n_bytes: size of the engine's files on disk.
    """

    path: Path
    info: MethodInfo
    dataset: str
    split: str
    image_root: str
    images: tuple[ImageRecord, ...]
    skipped: tuple[SkippedImage, ...]
    n_bytes: int
    vectors: VectorIndex

    @property
    def kind(self) -> str:
        return self.vectors.kind

    def check_method(self, info: MethodInfo) -> None:
        """Raise StoreError unless texts encoded by the method of `info` can be compared with this index."""
        if info.text_space != self.info.text_space:
            raise StoreError(
                f"{self.path} needs queries from {_describe(self.info)}, got {_describe(info)}: "
                "search it with its own backbone and weights, or embed and index the images again"
            )

    def search(self, queries: ArrayLike, k: int) -> list[list[Hit]]:
        """The k images that match each query best, by maximum similarity over an image's embeddings; exact.

        queries: [Q, Co] float32, unit-norm (scores are then cosines).
        Returns Q lists of min(k, M) hits, distinct images, by descending score; equal scores in order of image id.
        An empty `queries` gives an empty list.
        Raises UsageError for k < 1 or queries that aren't finite vectors, StoreError for another width than Co.
        """
        checked = self._checked(queries)
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
            raise UsageError(f"k is {k!r}: ask for at least 1 image")
        k = min(int(k), len(self.images))
        total = len(self.images) * self.info.n_embeddings
        results: list[list[Hit]] = [[] for _ in checked]
        waiting = np.arange(len(checked))
        fetch = max(_FIRST_FETCH, 2 * k)
        while waiting.size:
            fetch = min(fetch, total)
            step = max(1, _FETCH_BUDGET // fetch)
            unfinished = []
            for part in (waiting[start : start + step] for start in range(0, len(waiting), step)):
                all_scores, all_rows = self.vectors.search_rows(checked[part], fetch)
                for query, scores, rows in zip(part, all_scores, all_rows, strict=True):
                    best = _best_rows(scores, rows, self.info.n_embeddings, k)
                    # A later row could still reach an image's score, or tie with the last image, unless it must be
                    # worse than the k-th image; so only then (or with nothing left to fetch) is the answer final.
                    if fetch == total or rows[-1] < 0 or (len(best) == k and scores[-1] < scores[best[-1]]):
                        results[query] = [self._hit(int(rows[i]), float(scores[i])) for i in best]
                    else:
                        unfinished.append(query)
            waiting = np.array(unfinished, dtype=np.int64)
            fetch *= _FETCH_GROWTH
        return results

    def score_images(self, queries: NDArray[np.float32], at_most: int | None = None) -> NDArray[np.float32]:
        """The score of every image for every query, as `search` scores them, up to rounding.

        queries: [Q, Co] float32.  at_most: of a larger index, score about so many embeddings only, of blocks of images
        spread evenly over it: enough for a histogram.
        Returns [Q, M] float32, columns in the order of `images`; fewer columns where `at_most` leaves images out.
        """
        n_images, n_embeddings = len(self.images), self.info.n_embeddings
        block = max(1, _BLOCK_ROWS // n_embeddings)
        starts = np.arange(0, n_images, block)
        if at_most is not None and n_images * n_embeddings > at_most:
            n_blocks = max(1, at_most // (block * n_embeddings))
            starts = starts[np.linspace(0, len(starts) - 1, min(n_blocks, len(starts))).astype(np.int64)]
        parts = []
        for start in starts.tolist():
            count = min(block, n_images - start)
            rows = self.vectors.rows(start * n_embeddings, count * n_embeddings)  # [count * N, Co]
            parts.append((queries @ rows.T).reshape(len(queries), count, n_embeddings).max(axis=2))
        return np.concatenate(parts, axis=1)

    def image(self, image_id: ImageId) -> ImageRecord:
        """The image of that id; `"7"` will do for 7, as in an address. Raises UsageError when there is none."""
        return self.images[self._position(image_id)]

    def embeddings(self, image_id: ImageId) -> NDArray[np.float32]:
        """The N embeddings of an image, [N, Co] float32, unit-norm. Raises UsageError for an unknown id."""
        return self.vectors.rows(self._position(image_id) * self.info.n_embeddings, self.info.n_embeddings)

    def _position(self, image_id: ImageId) -> int:
        wanted = type(self.images[0].id)
        with contextlib.suppress(ValueError):
            key: Any = wanted(image_id)
            position = bisect.bisect_left(self.images, key, key=lambda image: image.id)
            if position < len(self.images) and self.images[position].id == key:
                return position
        raise UsageError(f"no image of the index has the id {image_id!r}: take one that a search gave")

    def _hit(self, row: int, score: float) -> Hit:
        image, embedding = divmod(row, self.info.n_embeddings)
        return Hit(self.images[image], score, embedding)

    def _checked(self, queries: ArrayLike) -> NDArray[np.float32]:
        array = np.ascontiguousarray(queries, dtype=np.float32)
        if array.ndim != 2:
            raise UsageError(f"queries have the shape {list(array.shape)}, expected [Q, {self.info.dim}]")
        if array.shape[1] != self.info.dim:
            raise StoreError(
                f"queries of width {array.shape[1]} can't search {self.path}, made by {_describe(self.info)}"
            )
        if not np.isfinite(array).all():
            raise UsageError("queries hold NaN or infinity, expected unit-norm vectors: check the text encoder")
        return array


def _best_rows(scores: NDArray[np.float32], rows: NDArray[np.int64], n_embeddings: int, k: int) -> NDArray[np.int64]:
    """Positions in [F] `rows` of the best row of each of the k best images, by score and then by row; -1 is no row."""
    order = np.lexsort((rows, -scores))
    order = order[rows[order] >= 0]
    _, first = np.unique(rows[order] // n_embeddings, return_index=True)
    return order[np.sort(first)[:k]]


def build_index(store_path: Path, out: Path, kind: str = "flat") -> SearchIndex:
    """Build the search index of an embedding store.

    out: the index's folder. An index that is there already is replaced, once the new one is complete; anything else
    there is refused. Killed at any moment, the build leaves the old index or none, never half of one.
    Raises UsageError for an unknown kind or an `out` that isn't an index, StoreError for a store that is missing,
    damaged or empty, or when the index can't be written.
    """
    if kind not in KINDS:
        raise UsageError(f"no index kind {kind!r}: choose one of {', '.join(sorted(KINDS))}")
    store = open_store(store_path)
    if not store.images:
        raise StoreError(f"{store_path} holds no image: there is nothing to index")
    target = Path(out).resolve()
    _refuse_foreign(target)
    try:
        with _replacing(target) as folder:
            _write(store, KINDS[kind], folder)
    except OSError as error:
        raise StoreError(f"can't write the index to {out}: {error.strerror or error}") from error
    return open_index(Path(out))


def open_index(path: Path, verify: Literal["quick", "full"] = "quick") -> SearchIndex:
    """Open an index; its vectors are mapped from disk, so this takes no longer for a large one.

    verify: `quick` checks the manifest, the files' sizes and their first 4 KiB; `full` reads every byte.
    Raises StoreError, with a line that says what is wrong, when the index is missing, damaged, of another format
    version, or of a kind that isn't known.
    """
    path = Path(path)
    manifest = _read_manifest(path)
    try:
        kind = str(manifest["kind"])
        info = MethodInfo(**manifest["method"])
        images = tuple(ImageRecord(image["id"], image["path"]) for image in manifest["images"])
        skipped = tuple(SkippedImage(**image) for image in manifest["skipped"])
        texts = [str(manifest[name]) for name in ("dataset", "split", "image_root")]
        shape = (int(manifest["n_embeddings"]), int(manifest["dim"]))
        listed = {
            name: (int(f["bytes"]), str(f["sha256"]), str(f["head_sha256"])) for name, f in manifest["files"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged(path / MANIFEST, f"not the fields of {FORMAT}: {type(error).__name__} {error}") from error
    if kind not in KINDS:
        raise StoreError(f"{path} is of kind {kind!r}, known are {', '.join(sorted(KINDS))}: update FOR or rebuild it")
    engine = KINDS[kind]
    if shape != (info.n_embeddings, info.dim) or min(shape) < 1 or not images or set(listed) != set(engine.file_names):
        raise damaged(path / MANIFEST, "its fields contradict each other")
    for name, (n_bytes, sha256, head_sha256) in listed.items():
        _check_file(path / name, n_bytes, head_sha256, sha256 if verify == "full" else None)
    vectors = engine.open(path, len(images) * info.n_embeddings, info.dim)
    n_bytes = sum(size for size, _, _ in listed.values())
    return SearchIndex(path, info, texts[0], texts[1], texts[2], images, skipped, n_bytes, vectors)


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        what = "has no manifest.json" if path.is_dir() else "is not a folder" if path.exists() else "doesn't exist"
        raise StoreError(f"no search index at {path}: it {what}; build one from an embedding store") from error
    except OSError as error:
        raise StoreError(f"can't read {path / MANIFEST}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise damaged(path / MANIFEST, "it isn't valid JSON") from error
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found == STORE_FORMAT:
        raise StoreError(f"{path} is an embedding store, not a search index: build an index from it")
    if found != FORMAT:
        raise StoreError(f"{path} has the format {found!r}, expected {FORMAT!r}: build the index again")
    return manifest


def _describe(info: MethodInfo) -> str:
    return f"{info.backbone} ({info.weights}, sha256 {info.weights_sha256[:12]}, width {info.dim})"


def _head_sha256(path: Path) -> str:
    """The hash of a file's first 4 KiB, which hold an engine's header: cheap enough to check at every opening."""
    with path.open("rb") as stream:
        return hashlib.sha256(stream.read(_HEAD_BYTES)).hexdigest()


def _check_file(path: Path, n_bytes: int, head_sha256: str, sha256: str | None) -> None:
    """Raise StoreError unless a file has this size and these hashes; without `sha256` only its head is read."""
    try:
        found = path.stat().st_size
        if found != n_bytes:
            raise damaged(path, f"it has {found} bytes, its manifest says {n_bytes}")
        if _head_sha256(path) != head_sha256 or (sha256 is not None and files.sha256_file(path) != sha256):
            raise damaged(path, "its bytes differ from those that were written")
    except OSError as error:
        raise StoreError(f"can't read {path}: {error.strerror or error}; build the index again") from error


def _write(store: Store, engine: type[VectorIndex], folder: Path) -> None:
    """Write the complete index of `store` into the empty `folder`, down to the disk."""
    store.verify()
    dim = store.info.dim
    shards = tqdm(store.iter_shards(), "index", total=len(store.shards), unit="shard", disable=None)
    blocks = (np.asarray(shard).reshape(-1, dim) for shard in shards)
    engine.build(blocks, len(store.images) * store.info.n_embeddings, dim, folder)
    listed = {}
    for name in engine.file_names:
        path = folder / name
        _sync(path)
        listed[name] = {
            "bytes": path.stat().st_size,
            "sha256": files.sha256_file(path),
            "head_sha256": _head_sha256(path),
        }
    manifest = {
        "format": FORMAT,
        "kind": engine.kind,
        "method": store.info.to_json(),
        "dataset": store.dataset,
        "split": store.split,
        "image_root": str(store.image_root.absolute()),
        "n_embeddings": store.info.n_embeddings,
        "dim": dim,
        "files": listed,
        "images": [asdict(image) for image in store.images],
        "skipped": [asdict(image) for image in store.skipped],
    }
    files.write_json(folder / MANIFEST, manifest)


def _sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refuse_foreign(target: Path) -> None:
    """Raise UsageError when replacing `target` would delete something that isn't an index."""
    if not target.exists():
        return
    known = {MANIFEST}.union(*(engine.file_names for engine in KINDS.values()))
    if not target.is_dir() or not {entry.name for entry in target.iterdir()} <= known:
        raise UsageError(f"{target} exists and isn't a search index: choose another folder for the index")


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target`; on success it takes `target`'s place, on any error it is removed.

    What an earlier build that was killed left behind is removed too: a build holds a lock on its folder for as long
    as its process lives, so a folder that can be locked is nobody's.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for stale in target.parent.glob(f".{glob.escape(target.name)}.*.building"):
        with contextlib.suppress(OSError), _locked(stale):
            shutil.rmtree(stale)
    folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".building"))
    new, old = folder / "new", folder / "old"
    try:
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):  # a file system without locks loses the cleaning up, nothing else
                stack.enter_context(_locked(folder))
            new.mkdir()
            yield new
            _sync(new)
            if target.exists():
                target.rename(old)
            try:
                new.rename(target)
            except OSError:
                if old.exists():
                    old.rename(target)
                raise
            _sync(target.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder. Raises BlockingIOError when another process holds it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
