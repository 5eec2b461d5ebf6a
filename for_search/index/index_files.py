"""The folder of an index: built from a store, brought up to date with it, and opened, complete or not at all.

What lies in it stands in `index_manifest`, how it changes in `index_updating`. Whoever has opened an index keeps what
was there; whoever reads a manifest just before its segments are removed reads the next one.
"""

from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from for_model.errors import StoreError, UsageError
from for_search.index.checked_file import BLOCK_BYTES, BUILD_AGAIN, CheckedFile, FileHashes, damaged
from for_search.index.engine_protocol import BuildOptions, ImageEngine
from for_search.index.engines import ENGINES
from for_search.index.index import SearchIndex
from for_search.index.index_manifest import MANIFEST, index_manifest_of, read_index_manifest
from for_search.index.index_updating import refuse_foreign, update_index, writing_index
from for_search.index.segment import Segment
from for_search.store.image_table import ImageTable
from for_search.store.store import open_store, problem_of


def build_index(
    store_path: Path,
    out: Path,
    kind: str | None = None,
    *,
    rebuild: bool = False,
    recall: float = 0.99,
    texts: NDArray[np.float32] | Callable[[], NDArray[np.float32] | None] | None = None,
    url: str | None = None,
    quantised: bool | None = None,
) -> SearchIndex:
    """Build the search index of an embedding store, or bring the one that is there up to date with the store.

    out: the index's folder. An index of anything else is replaced; a folder that holds other files is refused.
    kind: the engine; None for that of the index that is there, or `flat`.
    rebuild: write all rows again into one segment, even where the index is up to date.
    recall: the share of the best 50 images that an approximate engine is to find, in the segments written now.
    texts: [T, Co] float32, texts to measure that with, or what gives them, which is called once at most, and only where
        codes are made; None for embeddings of the store, moved away as texts are.
    url, quantised: see `BuildOptions`; of the segments written now.

    Of an index that is there already, segments whose rows are still in the store stay as they are. What the store has
    more goes into one new segment, together with segments that are small beside it, or of which more than a fifth is
    gone (see `to_merge`); nothing is written where nothing has changed. Others may search the index meanwhile: what
    they see is the index before or after. Killed at any moment, the build leaves the old index, or the new one, or none
    if there was none; the next build with the same rows goes on where it was, if the engine can.
    Raises UsageError for an unknown kind, an option that makes no sense for it, a recall that isn't above 0 and up to
    1, or an `out` that isn't an index; StoreError for a store that is missing, damaged or empty, or when the index
    can't be written, or somebody else is writing it.
    """
    if kind is not None and kind not in ENGINES:
        raise UsageError(f"no engine {kind!r}: choose one of {', '.join(sorted(ENGINES))}")
    if not 0 < recall <= 1:
        raise UsageError(f"a recall of {recall:g}: ask for a share above 0 and up to 1, such as 0.99")
    store = open_store(store_path)
    if not store.images:
        raise StoreError(f"{store_path} holds no image: there is nothing to index")
    target = Path(out).resolve()
    refuse_foreign(target)
    try:
        with writing_index(target):
            given = cache(texts if callable(texts) else lambda: texts)
            options = BuildOptions(store.info.n_embeddings, recall, given, url=url, quantised=quantised)
            update_index(store, target, kind, rebuild, options)
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
        value = read_index_manifest(path)
        try:
            return _open(path, value, verify)
        except StoreError:
            if read_index_manifest(path) == value:
                raise
        # The index has changed since its manifest was read, and segments of before are gone.


def check_index(path: Path) -> Iterator[tuple[str, StoreError | None]]:
    """Check every byte of an index: the name of each file, and what is wrong with it."""
    try:
        manifest = index_manifest_of(path, read_index_manifest(path))
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
    manifest = index_manifest_of(path, value)
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
        if not note.is_of(ENGINES[note.kind]):
            raise StoreError(f"{path} holds files of {note.kind} that another version of FOR wrote: {BUILD_AGAIN}")
        folder = path / note.folder
        checked = tuple(CheckedFile(folder / name, hashes) for name, hashes in note.files.items())
        for file in checked:
            file.check(0, None if verify == "full" else BLOCK_BYTES)
        engine = ENGINES[note.kind].open(folder, note.n_images * info.n_embeddings, info.dim)
        its_ranks = ranks[first : first + note.n_images]
        if isinstance(engine, ImageEngine):
            engine.check_images(int((its_ranks >= 0).sum()))
        segments.append(Segment(engine, info.n_embeddings, its_ranks, checked))
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
