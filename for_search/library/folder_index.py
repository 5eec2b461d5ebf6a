"""The index of a folder of photographs, kept in FOR's cache: made on first use, and brought up to date later."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from for_model.data.folder import load_folder
from for_model.files import cache_dir, sha256_json
from for_model.methods.protocol import Method
from for_search.library.built_in_index import make_index

if TYPE_CHECKING:
    from for_search.store.embed import Watch

PHOTO_METHOD = "cluster-clip"  # it needs no training, and FOR comes with no head trained on photographs
_REMEMBERED = "remembered"

_log = logging.getLogger(__name__)


def folder_index(root: Path, method: Method, progress: bool = True, watch: "Watch | None" = None) -> Path:
    """The folder of an index over all images under `root`; a later call finds it made.

    A folder that has changed is brought up to date: only images that are new or have changed are embedded, see `embed`.
    Stopped at any moment, the next call goes on. Nothing is written under `root`; the embeddings and the index lie in
    FOR's cache folder.

    root: the folder of photographs.
    method: embeds them.
    progress: show the bar of the embedding on stderr, if that is a terminal.
    watch: see `embed`.
    Raises DataError when `root` isn't a folder of images or none of them is usable, StoreError when another process is
    embedding them just now or the disk is full.
    """
    dataset = load_folder(root)
    place = cache_dir() / "folders" / sha256_json([str(dataset.image_root), method.info.to_json()])[:16]
    index = place / "index"
    if not index.exists():
        _log.info("indexing %d images of %s; the next start is quick", len(dataset.images), dataset.image_root)
    make_index(dataset, method, place / "store", index, progress, watch)
    return index


def remember(index: Path) -> None:
    """Note that an index of `folder_index` shall be among those that `remembered` lists."""
    note = index.parent / _REMEMBERED
    if not note.exists():
        note.touch()


def remembered() -> list[Path]:
    """The indexes that were noted and are still there, in the order in which they were first noted."""
    notes = [note for note in (cache_dir() / "folders").glob(f"*/{_REMEMBERED}") if (note.parent / "index").is_dir()]
    return [note.parent / "index" for note in sorted(notes, key=lambda note: (note.stat().st_mtime_ns, note))]
