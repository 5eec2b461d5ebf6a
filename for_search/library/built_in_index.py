"""The index that the app opens when it is given none: MiniScenes' validation split, made on first use."""

import logging
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from for_model.data.dataset import Dataset
from for_model.data.registry import load_dataset
from for_model.errors import StoreError
from for_model.files import cache_dir
from for_model.methods.protocol import LazyMethod, Method
from for_search.index.index_files import build_index, open_index
from for_search.library.vocabulary_sample import texts_for
from for_search.store.store import MANIFEST, open_store, store_path

if TYPE_CHECKING:
    from for_search.store.embed import Watch

DEFAULT_DATASET = "miniscenes"

_log = logging.getLogger(__name__)


def default_index(method: LazyMethod, progress: bool = True) -> Path:
    """The folder of the index over MiniScenes' 2,000 validation scenes; a later call finds it made.

    The first call draws the scenes, embeds them and builds the index, all in FOR's cache folder, and logs what it does.
    Stopped at any moment, the next call goes on. The embeddings are those that the leaderboard uses, so whichever of
    the two comes first makes them. A damaged index or store is made again: everything here is FOR's own.

    method: loaded only to embed.
    progress: show the bar of the embedding on stderr, if that is a terminal (drawing scenes has a bar of its own).
    Raises StoreError when another process is making the embeddings just now or the disk is full.
    """
    _log.info("opening the built-in scenes (drawn in the first minute, if this is the first start)")
    dataset = load_dataset(DEFAULT_DATASET)
    store = store_path(dataset, method.info)
    index = cache_dir() / "indexes" / store.name
    if opens(index):
        return index
    _log.info("embedding and indexing %d scenes for the first search; this happens once", len(dataset.images))
    make_index(dataset, method.get(), store, index, progress)
    return index


def make_index(
    dataset: Dataset, method: Method, store: Path, index: Path, progress: bool = True, watch: "Watch | None" = None
) -> None:
    """Embed a dataset and index it, in folders of FOR's own: what is damaged there is made again.

    dataset, method: what is embedded, and with which method.
    store: the folder of the embeddings; one that was stopped half way is gone on with, a finished one brought up to
        date.
    index: the folder of the index, which is brought up to date with the store.
    progress: show the bar of the embedding on stderr, if that is a terminal.
    watch: see `embed`.
    """
    from for_search.store.embed import embed

    if not _opens_or_unfinished(store):
        remove(store)
    embed(dataset, method, store, progress=progress, watch=watch)
    if not opens(index):
        remove(index)  # a damaged one may hold files that `build_index` refuses to write beside
    build = partial(build_index, store, index, texts=partial(texts_for, store))
    try:
        build()
    except StoreError as error:
        if _is_sound(store):
            raise
        _log.warning("%s; making it again", error)
        remove(store)
        embed(dataset, method, store, progress=progress, watch=watch)
        build()


def opens(index: Path) -> bool:
    """Whether a sound index is there. Compares every byte, at the speed of memory."""
    if not index.exists():
        return False
    try:
        open_index(index, verify="full")
    except StoreError as error:
        _log.warning("%s; making it again", error)
        return False
    return True


def _opens_or_unfinished(store: Path) -> bool:
    """Whether there is a store that opens, or none yet, or one that is half made, which `embed` goes on with."""
    if not store.exists() or (store.is_dir() and not (store / MANIFEST).exists()):
        return True
    try:
        open_store(store)
    except StoreError as error:
        _log.warning("%s; making it again", error)
        return False
    return True


def _is_sound(store: Path) -> bool:
    """Whether every byte of a store is as it was written."""
    try:
        open_store(store).verify()
    except StoreError:
        return False
    return True


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it; a link, not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
