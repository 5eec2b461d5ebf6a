"""Bringing the folder of an index up to date with a store: which segments stay, which are written, what is removed.

An index changes in one moment: new segments are written beside the old, and a new manifest is renamed over the old
one. Then segments that are no longer listed are removed.
"""

import contextlib
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from for_model import files
from for_model.errors import StoreError, UsageError
from for_search.index.checked_file import FileHashes
from for_search.index.engine_protocol import BuildOptions, ImageEngine
from for_search.index.engines import ENGINES
from for_search.index.index_manifest import (
    MANIFEST,
    SEGMENT_NAME,
    TABLE_NAME,
    IndexManifest,
    SegmentNote,
    index_manifest_of,
    read_index_manifest,
)
from for_search.store.merging import to_merge
from for_search.store.shards import Shard
from for_search.store.store import Store

_LOCK = "lock"
_PARTIAL = ".segment-"  # what a build that was killed leaves to the next one: a folder for each set of rows and engine
_DEFAULT_KIND = "flat"

# What an index's folder may hold; the second is the file of the format before this one.
_OWN_NAME = re.compile(r"manifest\.json|index\.faiss|lock|segment-\d+|images-\d+\.sqlite|\..+\.tmp")


def refuse_foreign(target: Path) -> None:
    """Raise UsageError when `target` holds something that isn't an index: it would be lost in it, or be removed."""
    if target.exists() and not (target.is_dir() and all(_OWN_NAME.fullmatch(entry.name) for entry in target.iterdir())):
        raise UsageError(f"{target} exists and isn't a search index: choose another folder for the index")


@contextlib.contextmanager
def writing_index(target: Path) -> Iterator[None]:
    """Hold the lock of an index; the folder is removed again when nothing came of it that the next build can use."""
    busy = StoreError(f"the index {target} is being written by another process: wait for it to finish")
    with files.locked(target / _LOCK, busy):
        try:
            yield
        except BaseException:
            if not (target / MANIFEST).exists() and not any(target.glob(f"{_PARTIAL}*")):
                shutil.rmtree(target, ignore_errors=True)
            raise


def update_index(store: Store, target: Path, kind: str | None, rebuild: bool, options: BuildOptions) -> None:
    """Write what makes `target` the index of `store`, unless it is that already; the lock is held."""
    old = _earlier(target)
    if old is not None or not (target / MANIFEST).exists():  # what killed builds have left may be as large as the index
        _remove_all_but(target, _files_of(old), partial=True)
    kind = kind or (old.kind if old else None) or _DEFAULT_KIND
    if not ENGINES[kind].on_server and (options.url or options.quantised is not None):
        raise UsageError(f"the engine {kind} asks no server: leave --url and --quantise out, or choose qdrant")
    if old is not None:
        same = [segment.folder for segment in old.segments if segment.kind == kind]
        options = replace(options, earlier=target / same[-1] if same else None)
    usable = not rebuild and old is not None and (old.info.to_json(), old.kind) == (store.info.to_json(), kind)
    there = tuple(segment for segment in old.segments if _is_there(target, segment)) if old and usable else ()
    if old and there == old.segments and old.store == store.sha256 and (target / old.table[0]).is_file():
        return
    names = [entry.name for entry in target.iterdir()]
    numbers = [int(found[1]) for name in names if (found := SEGMENT_NAME.fullmatch(name) or TABLE_NAME.fullmatch(name))]
    number = f"{max(numbers, default=0) + 1:06d}"
    kept, new = _plan(store, there)
    table = f"images-{number}.sqlite"
    if new:
        n_new = sum(shard.n_images for shard in new)
        most = 2 * n_new >= n_new + sum(segment.n_images for segment in kept)
        its_kind = kind if most else ENGINES[kind].small_kind
        kept = (*kept, _write_segment(store, new, its_kind, target / f"segment-{number}", options))
    with files.atomic_path(target / table) as temporary:  # the store's own, which has been checked
        shutil.copyfile(store.images.path, temporary)
    manifest = IndexManifest(
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
    # Of files that are removed, whoever has them open keeps the content; what lies on a server stays there for them
    # until the next update.
    before = {segment.folder for segment in old.segments if ENGINES[segment.kind].on_server} if old else set()
    _remove_all_but(target, _files_of(manifest) | before)
    _drop_gone(target, manifest)


def _is_there(target: Path, segment: SegmentNote) -> bool:
    """Whether a segment's files are those that its engine writes, not another version of it, and have their sizes; what
    is in them is compared by whoever searches."""
    if segment.kind not in ENGINES or not segment.is_of(ENGINES[segment.kind]):
        return False
    try:
        return all((target / segment.folder / n).stat().st_size == h.n_bytes for n, h in segment.files.items())
    except OSError:
        return False


def _earlier(target: Path) -> IndexManifest | None:
    """The manifest of the index that is there; None when there is none that can be used."""
    try:
        return index_manifest_of(target, read_index_manifest(target))
    except StoreError:
        return None


def _plan(store: Store, old: tuple[SegmentNote, ...]) -> tuple[tuple[SegmentNote, ...], list[Shard]]:
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


def _places(store: Store, segments: tuple[SegmentNote, ...]) -> NDArray[np.int64]:
    """[M] int64, the place of each of the store's images among those of all segments."""
    shards = [shard for segment in segments for shard in segment.shards]
    firsts = np.cumsum([0, *(shard.n_images for shard in shards)]).tolist()
    first_of = dict(zip(shards, firsts[:-1], strict=True))
    ends = np.cumsum([shard.n_images for shard in store.shards])
    shift = np.array([first_of[shard] + shard.n_images for shard in store.shards]) - ends
    return store.rows + shift[np.searchsorted(ends, store.rows, side="right")]


def _write_segment(store: Store, shards: list[Shard], kind: str, folder: Path, options: BuildOptions) -> SegmentNote:
    """Write a segment of all rows of some shards, down to the disk."""
    folder.mkdir()
    dim = store.info.dim
    engine = ENGINES[kind]
    if engine.resumes:
        # Removed with all else that isn't listed, once the index is complete.
        key = files.sha256_json([kind, store.info.to_json(), [asdict(shard) for shard in shards]])
        options = replace(options, partial=folder.parent / f"{_PARTIAL}{key[:16]}.tmp")
    n_rows = sum(shard.n_images for shard in shards) * store.info.n_embeddings
    try:
        engine.build(_blocks(store, shards), n_rows, dim, folder, options)
        for name in engine.file_names:
            _sync(folder / name)
        _sync(folder)
        listed = {name: FileHashes.of(folder / name) for name in engine.file_names}
    except BaseException:
        _remove_folder(folder)
        raise
    return SegmentNote(folder.name, kind, tuple(shards), listed)


def _blocks(store: Store, shards: list[Shard]) -> Iterator[NDArray[np.float16]]:
    """The rows of some shards, [m, Co] each, one after the other in memory."""
    for shard in tqdm(shards, "index", unit="shard", disable=None):
        yield np.asarray(store.shard(shard)).reshape(-1, store.info.dim)
        store.files.let_go(shard)


def _sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _files_of(manifest: IndexManifest | None) -> set[str]:
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
            _remove_folder(entry)
        else:
            entry.unlink(missing_ok=True)


def _remove_folder(folder: Path) -> None:
    """Remove a folder of an engine, complete or not, and what the engine keeps elsewhere."""
    for engine in ENGINES.values():
        engine.discard(folder)
    shutil.rmtree(folder, ignore_errors=True)


def _drop_gone(target: Path, manifest: IndexManifest) -> None:
    """Remove the images that are gone from the servers that hold them."""
    there = np.zeros(sum(segment.n_images for segment in manifest.segments), dtype=bool)
    there[manifest.places] = True
    first = 0
    for segment in manifest.segments:
        gone = np.flatnonzero(~there[first : first + segment.n_images])
        first += segment.n_images
        if len(gone) and ENGINES[segment.kind].on_server:
            n_rows = segment.n_images * manifest.info.n_embeddings
            engine = ENGINES[segment.kind].open(target / segment.folder, n_rows, manifest.info.dim)
            assert isinstance(engine, ImageEngine)
            engine.drop_images(gone)
