"""The folder of an index: built from a store, brought up to date with it, and opened, complete or not at all.

    INDEX/manifest.json     what is in the index, which rows are whose, all hashes
          segment-000001/   an engine's files over some of the store's shards; never changed once they are written
          images-000001.sqlite   the table of images, see `for_search.store.image_table`; never changed either
          lock              held by whoever writes

An index changes in one moment: new segments are written beside the old, and a new manifest is renamed over the old
one. Then segments that are no longer listed are removed. Whoever has opened an index keeps what was there; whoever
reads a manifest just before its segments are removed reads the next one.
"""

import contextlib
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from for_model import files
from for_model.errors import StoreError, UsageError
from for_model.methods.protocol import MethodInfo
from for_search.index.checked_file import BLOCK_BYTES, BUILD_AGAIN, CheckedFile, FileHashes, damaged
from for_search.index.engine_protocol import BuildOptions
from for_search.index.engines import ENGINES
from for_search.index.index import SearchIndex
from for_search.index.segment import Segment
from for_search.store.image_table import Cell, ImageRow, ImageTable, write_image_table
from for_search.store.merging import to_merge
from for_search.store.shards import Shard
from for_search.store.store import FORMAT as STORE_FORMAT
from for_search.store.store import SkippedImage, Store, open_store, problem_of

FORMAT = "for-index/3"
MANIFEST = "manifest.json"
_LOCK = "lock"
_PARTIAL = ".segment-"  # what a build that was killed leaves to the next one: a folder for each set of rows and engine
_SMALL_KIND = "flat"  # of segments that hold less than half of the index: no engine finds rows of few faster

# What an index's folder may hold; the second is the file of the format before this one.
_OWN_NAME = re.compile(r"manifest\.json|index\.faiss|lock|segment-\d+|images-\d+\.sqlite|\..+\.tmp")
_SEGMENT = re.compile(r"segment-(\d+)")
_TABLE = re.compile(r"images-(\d+)\.sqlite")


@dataclass(frozen=True)
class _SegmentNote:
    """A segment as the manifest lists it.

    folder: its name within the index.
    kind: of its engine.
    shards: those of the store whose rows it holds, all of each.
    files: of the engine.
    """

    folder: str
    kind: str
    shards: tuple[Shard, ...]
    files: dict[str, FileHashes]

    @property
    def n_images(self) -> int:
        return sum(shard.n_images for shard in self.shards)

    @classmethod
    def from_json(cls, note: dict[str, Any]) -> "_SegmentNote":
        shards = tuple(Shard(**shard) for shard in note["shards"])
        return cls(note["folder"], note["kind"], shards, {n: FileHashes(**file) for n, file in note["files"].items()})


@dataclass(frozen=True)
class _Manifest:
    """What an index's manifest says.

    store: the hash of the store's manifest that it was made from.
    table: the table of images, its file's name and hashes.
    places: [M] int64, the place of each image among those of all segments.
    """

    store: str
    kind: str
    info: MethodInfo
    dataset: str
    split: str
    image_root: str
    segments: tuple[_SegmentNote, ...]
    table: tuple[str, FileHashes]
    n_images: int
    skipped: tuple[SkippedImage, ...]
    places: NDArray[np.int64]

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "_Manifest":
        """Raises KeyError, TypeError, ValueError or AttributeError for fields that aren't those of the format."""
        n_images, places = int(value["n_images"]), value["places"]
        made = cls(
            str(value["store"]),
            str(value["kind"]),
            MethodInfo(**value["method"]),
            str(value["dataset"]),
            str(value["split"]),
            str(value["image_root"]),
            tuple(_SegmentNote.from_json(segment) for segment in value["segments"]),
            (str(value["table"]["file"]), FileHashes(**value["table"]["hashes"])),
            n_images,
            tuple(SkippedImage(**image) for image in value["skipped"]),
            np.arange(n_images) if places is None else np.array(places, np.int64),
        )
        total = sum(segment.n_images for segment in made.segments)
        if n_images < 1 or len(made.places) != n_images or min(made.info.n_embeddings, made.info.dim) < 1:
            raise ValueError("they contradict each other")
        if np.bincount(made.places, minlength=total).max() > 1 or len(np.bincount(made.places)) > total:
            raise ValueError("its images have no rows of their own")
        if not all(_SEGMENT.fullmatch(segment.folder) for segment in made.segments) or not _TABLE.fullmatch(
            made.table[0]
        ):
            raise ValueError("it leads out of the index")  # as one from elsewhere must not
        return made

    def to_json(self) -> dict[str, Any]:
        places = self.places.tolist()
        return files.sealed(
            {
                "format": FORMAT,
                "store": self.store,
                "kind": self.kind,
                "method": self.info.to_json(),
                "dataset": self.dataset,
                "split": self.split,
                "image_root": self.image_root,
                "segments": [asdict(segment) for segment in self.segments],
                "places": None if places == list(range(len(places))) else places,
                "table": {"file": self.table[0], "hashes": asdict(self.table[1])},
                "n_images": self.n_images,
                "skipped": [asdict(image) for image in self.skipped],
            }
        )


def build_index(
    store_path: Path,
    out: Path,
    kind: str | None = None,
    *,
    rebuild: bool = False,
    recall: float = 0.99,
    texts: NDArray[np.float32] | None = None,
) -> SearchIndex:
    """Build the search index of an embedding store, or bring the one that is there up to date with the store.

    out: the index's folder. An index of anything else is replaced; a folder that holds other files is refused.
    kind: the engine; None for that of the index that is there, or `flat`.
    rebuild: write all rows again into one segment, even where the index is up to date.
    recall: the share of the best 50 images that an approximate engine is to find, in the segments written now.
    texts: [T, Co] float32, texts to measure that with; None for embeddings of the store, moved away as texts are.

    Of an index that is there already, segments whose rows are still in the store stay as they are. What the store has
    more goes into one new segment, together with segments that are small beside it, or of which more than a fifth is
    gone (see `to_merge`); nothing is written where nothing has changed. Others may search the index meanwhile: what
    they see is the index before or after. Killed at any moment, the build leaves the old index, or the new one, or none
    if there was none; the next build with the same rows goes on where it was, if the engine can.
    Raises UsageError for an unknown kind, a recall that isn't above 0 and up to 1, or an `out` that isn't an index;
    StoreError for a store that is missing, damaged or empty, or when the index can't be written, or somebody else is
    writing it.
    """
    if kind is not None and kind not in ENGINES:
        raise UsageError(f"no engine {kind!r}: choose one of {', '.join(sorted(ENGINES))}")
    if not 0 < recall <= 1:
        raise UsageError(f"a recall of {recall:g}: ask for a share above 0 and up to 1, such as 0.99")
    store = open_store(store_path)
    if not store.images:
        raise StoreError(f"{store_path} holds no image: there is nothing to index")
    target = Path(out).resolve()
    _refuse_foreign(target)
    try:
        with _writing(target):
            _update(store, target, kind, rebuild, BuildOptions(store.info.n_embeddings, recall, texts))
    except OSError as error:
        raise StoreError(f"can't write the index to {out}: {error.strerror or error}") from error
    return open_index(Path(out))


def open_index(path: Path, verify: Literal["quick", "full"] = "quick") -> SearchIndex:
    """Open an index; its vectors are mapped from disk, so this takes no longer for a large one.

    verify: `quick` checks the manifest, and the engines' files by their sizes and first MiB; all their other bytes are
        compared before the first search. `full` compares every byte now.
    Raises StoreError, with a line that says what is wrong, when the index is missing, damaged, of another format
    version, of a kind that isn't known, or can't be read.
    """
    path = Path(path)
    while True:
        value = _read_manifest(path)
        try:
            return _open(path, value, verify)
        except StoreError:
            if _read_manifest(path) == value:
                raise
        # The index has changed since its manifest was read, and segments of before are gone.


def check_index(path: Path) -> Iterator[tuple[str, StoreError | None]]:
    """Check every byte of an index: the name of each file, and what is wrong with it."""
    try:
        manifest = _manifest_of(path, _read_manifest(path))
    except StoreError as error:
        yield MANIFEST, error
        return
    yield MANIFEST, None
    table_file, table_hashes = manifest.table
    yield table_file, problem_of(partial(_check_table, path / table_file, table_hashes, manifest.n_images))
    for segment in manifest.segments:
        for name, hashes in segment.files.items():
            file = f"{segment.folder}/{name}"
            yield file, problem_of(partial(_check_file, path / file, hashes))


def _check_file(path: Path, hashes: FileHashes) -> None:
    CheckedFile(path, hashes).check()


def _check_table(path: Path, hashes: FileHashes, n_images: int) -> None:
    CheckedFile(path, hashes).check()
    ids = [image.id for image in ImageTable.open(path)]
    if len(ids) != n_images or any(not a < b for a, b in pairwise(ids)):  # type: ignore[operator]
        raise damaged(path, "its ids are not ascending, or too few")


def _open(path: Path, value: dict[str, Any], verify: Literal["quick", "full"]) -> SearchIndex:
    manifest = _manifest_of(path, value)
    info = manifest.info
    n_images = sum(segment.n_images for segment in manifest.segments)
    ranks = np.full(n_images, -1)
    ranks[manifest.places] = np.arange(manifest.n_images)
    table_file, table_hashes = manifest.table
    CheckedFile(path / table_file, table_hashes).check()
    images = ImageTable.open(path / table_file)
    if len(images) != manifest.n_images:
        raise damaged(path / MANIFEST, f"it says {manifest.n_images} images, their table {len(images)}")
    segments, first = [], 0
    for kind in (manifest.kind, *(note.kind for note in manifest.segments)):
        if kind not in ENGINES:
            known = ", ".join(sorted(ENGINES))
            raise StoreError(f"{path} is of kind {kind!r}, known are {known}: update FOR or rebuild it")
    for note in manifest.segments:
        if set(note.files) != set(ENGINES[note.kind].file_names):
            raise damaged(path / MANIFEST, "its fields contradict each other")
        folder = path / note.folder
        checked = tuple(CheckedFile(folder / name, hashes) for name, hashes in note.files.items())
        for file in checked:
            file.check(0, None if verify == "full" else BLOCK_BYTES)
        engine = ENGINES[note.kind].open(folder, note.n_images * info.n_embeddings, info.dim)
        segments.append(Segment(engine, info.n_embeddings, ranks[first : first + note.n_images], checked))
        first += note.n_images
    return SearchIndex(
        path,
        info,
        manifest.dataset,
        manifest.split,
        manifest.image_root,
        manifest.kind,
        images,
        manifest.skipped,
        tuple(segments),
        manifest.places,
        n_bytes=sum(file.n_bytes for note in manifest.segments for file in note.files.values()),
    )


def _manifest_of(path: Path, value: dict[str, Any]) -> _Manifest:
    try:
        return _Manifest.from_json(value)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged(path / MANIFEST, f"not the fields of {FORMAT}: {type(error).__name__} {error}") from error


def _read_manifest(path: Path) -> dict[str, Any]:
    another = {STORE_FORMAT: f"{path} is an embedding store, not a search index: build an index from it"}
    try:
        return files.read_own_json(path / MANIFEST, FORMAT, BUILD_AGAIN, StoreError, others=another)
    except (FileNotFoundError, NotADirectoryError) as error:
        what = "has no manifest.json" if path.is_dir() else "is not a folder" if path.exists() else "doesn't exist"
        raise StoreError(f"no search index at {path}: it {what}; build one from an embedding store") from error


def _update(store: Store, target: Path, kind: str | None, rebuild: bool, options: BuildOptions) -> None:
    """Write what makes `target` the index of `store`, unless it is that already; the lock is held."""
    old = _earlier(target)
    if old is not None or not (target / MANIFEST).exists():  # what killed builds have left may be as large as the index
        _remove_all_but(target, _files_of(old), partial=True)
    kind = kind or (old.kind if old else None) or _SMALL_KIND
    usable = not rebuild and old is not None and (old.info.to_json(), old.kind) == (store.info.to_json(), kind)
    there = tuple(segment for segment in old.segments if _is_there(target, segment)) if old and usable else ()
    if old and there == old.segments and old.store == store.sha256 and (target / old.table[0]).is_file():
        return
    names = [entry.name for entry in target.iterdir()]
    numbers = [int(found[1]) for name in names if (found := _SEGMENT.fullmatch(name) or _TABLE.fullmatch(name))]
    number = f"{max(numbers, default=0) + 1:06d}"
    kept, new = _plan(store, there)
    table = f"images-{number}.sqlite"
    if new:
        n_new = sum(shard.n_images for shard in new)
        most = 2 * n_new >= n_new + sum(segment.n_images for segment in kept)
        kept = (*kept, _write_segment(store, new, kind if most else _SMALL_KIND, target / f"segment-{number}", options))
    write_image_table(target / table, _rows(store), store.metadata.types)
    manifest = _Manifest(
        store.sha256,
        kind,
        store.info,
        store.dataset,
        store.split,
        str(store.image_root.absolute()),
        kept,
        (table, FileHashes.of(target / table)),
        len(store.images),
        store.skipped,
        _places(store, kept),
    )
    files.write_json(target / MANIFEST, manifest.to_json())
    _remove_all_but(target, _files_of(manifest))


def _rows(store: Store) -> Iterator[ImageRow]:
    """The rows of the table of images."""
    for image in store.images:
        stamp = store.stamps.get(image.id)
        cells: dict[str, Cell] = {}
        if stamp is not None and stamp.n_bytes:
            mtime = f"{datetime.fromtimestamp(stamp.mtime_ns // 10**9, timezone.utc):%Y-%m-%d %H:%M:%S}"
            cells = {"size": stamp.n_bytes, "mtime": mtime, "taken": mtime, "content": stamp.sha256 or None}
            cells.update(stamp.facts)
        yield ImageRow(image, {**cells, **store.metadata.cells.get(image.id, {})})


def _is_there(target: Path, segment: _SegmentNote) -> bool:
    """Whether a segment's files have their sizes; what is in them is compared by whoever searches."""
    try:
        return all((target / segment.folder / n).stat().st_size == h.n_bytes for n, h in segment.files.items())
    except OSError:
        return False


def _earlier(target: Path) -> _Manifest | None:
    """The manifest of the index that is there; None when there is none that can be used."""
    try:
        return _manifest_of(target, _read_manifest(target))
    except StoreError:
        return None


def _plan(store: Store, old: tuple[_SegmentNote, ...]) -> tuple[tuple[_SegmentNote, ...], list[Shard]]:
    """Which segments stay, and which of the store's shards go into a new one."""
    ends = np.cumsum([shard.n_images for shard in store.shards])
    counts = np.bincount(np.searchsorted(ends, store.rows, side="right"), minlength=len(ends))
    alive = Counter(dict(zip(store.shards, counts.tolist(), strict=True)))
    there = {shard for segment in old for shard in segment.shards}
    n_missing = sum(shard.n_images for shard in store.shards if shard not in there)
    living = [sum(alive[shard] for shard in segment.shards) for segment in old]
    merged = to_merge([segment.n_images for segment in old], living, n_missing)
    kept = tuple(segment for i, segment in enumerate(old) if living[i] and i not in merged)
    stays = {shard for segment in kept for shard in segment.shards}
    return kept, [shard for shard in store.shards if shard not in stays]


def _places(store: Store, segments: tuple[_SegmentNote, ...]) -> NDArray[np.int64]:
    """[M] int64, the place of each of the store's images among those of all segments."""
    shards = [shard for segment in segments for shard in segment.shards]
    firsts = np.cumsum([0, *(shard.n_images for shard in shards)]).tolist()
    first_of = dict(zip(shards, firsts[:-1], strict=True))
    ends = np.cumsum([shard.n_images for shard in store.shards])
    shift = np.array([first_of[shard] + shard.n_images for shard in store.shards]) - ends
    return store.rows + shift[np.searchsorted(ends, store.rows, side="right")]


def _write_segment(store: Store, shards: list[Shard], kind: str, folder: Path, options: BuildOptions) -> _SegmentNote:
    """Write a segment of all rows of some shards, down to the disk."""
    folder.mkdir()
    dim = store.info.dim
    engine = ENGINES[kind]
    if engine.resumes:
        # Removed with all else that isn't listed, once the index is complete.
        key = files.sha256_json([kind, store.info.to_json(), [asdict(shard) for shard in shards]])
        options = replace(options, partial=folder.parent / f"{_PARTIAL}{key[:16]}.tmp")
    progress = tqdm(shards, "index", unit="shard", disable=None)
    blocks = (np.asarray(store.shard(shard)).reshape(-1, dim) for shard in progress)
    try:
        engine.build(blocks, sum(shard.n_images for shard in shards) * store.info.n_embeddings, dim, folder, options)
        for name in engine.file_names:
            _sync(folder / name)
        _sync(folder)
        listed = {name: FileHashes.of(folder / name) for name in engine.file_names}
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return _SegmentNote(folder.name, kind, tuple(shards), listed)


def _sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refuse_foreign(target: Path) -> None:
    """Raise UsageError when `target` holds something that isn't an index: it would be lost in it, or be removed."""
    if target.exists() and not (target.is_dir() and all(_OWN_NAME.fullmatch(entry.name) for entry in target.iterdir())):
        raise UsageError(f"{target} exists and isn't a search index: choose another folder for the index")


@contextlib.contextmanager
def _writing(target: Path) -> Iterator[None]:
    """Hold the lock of an index; the folder is removed again when nothing came of it that the next build can use."""
    busy = StoreError(f"the index {target} is being written by another process: wait for it to finish")
    with files.locked(target / _LOCK, busy):
        try:
            yield
        except BaseException:
            if not (target / MANIFEST).exists() and not any(target.glob(f"{_PARTIAL}*")):
                shutil.rmtree(target, ignore_errors=True)
            raise


def _files_of(manifest: _Manifest | None) -> set[str]:
    """What a manifest lists of its index's folder."""
    return {manifest.table[0], *(segment.folder for segment in manifest.segments)} if manifest else set()


def _remove_all_but(target: Path, listed: set[str], partial: bool = False) -> None:
    """Remove what isn't listed: earlier segments, and what killed builds have left.

    partial: leave what a build could go on with.
    """
    for entry in target.iterdir():
        if entry.name in {MANIFEST, _LOCK} or entry.name in listed or (partial and entry.name.startswith(_PARTIAL)):
            continue
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
