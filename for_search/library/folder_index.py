"""The index of a folder of photographs, kept in FOR's cache: made on first use, made again when the folder changes."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from for_model.data.dataset import Dataset
from for_model.data.folder import load_folder
from for_model.files import cache_dir, sha256_json
from for_model.methods.protocol import Method
from for_search.library.built_in_index import make_index, opens, remove

if TYPE_CHECKING:
    from for_search.store.embed import Watch

PHOTO_METHOD = "cluster-clip"  # it needs no training, and FOR comes with no head trained on photographs

_log = logging.getLogger(__name__)


def folder_index(root: Path, method: Method, progress: bool = True, watch: "Watch | None" = None) -> Path:
    """The folder of an index over all images under `root`; a later call finds it made, and opens it at once.

    What counts as a change: an image that came, went, or is of another size or date. Then all are embedded again, and
    the index from before is removed. Stopped at any moment, the next call goes on. Nothing is written under `root`.

    root: the folder of photographs.
    method: embeds them.
    progress: show the bar of the embedding on stderr, if that is a terminal.
    watch: see `embed`.
    Raises DataError when `root` isn't a folder of images or none of them is usable, StoreError when another process is
    embedding them just now or the disk is full.
    """
    dataset = load_folder(root)
    place = cache_dir() / "folders" / sha256_json([str(dataset.image_root), method.info.to_json()])[:16]
    name = sha256_json(_stamps(dataset))[:16]
    store, index = place / f"{name}-store", place / f"{name}-index"
    if opens(index):
        return index
    _log.info("indexing %d images of %s; the next start is quick", len(dataset.images), dataset.image_root)
    make_index(dataset, method, store, index, progress, watch)
    for earlier in place.iterdir():  # the store is removed as well: the index holds all that searching needs
        if earlier != index:
            remove(earlier)
    return index


def _stamps(dataset: Dataset) -> list[tuple[str, int, int]]:
    """Path, size in bytes and time of change in ns of every image."""
    return [(image.path, *_stamp(dataset.image_root / image.path)) for image in dataset.images]


def _stamp(path: Path) -> tuple[int, int]:
    """Zeros for a file that can't be looked at: embedding will skip it and say why."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns
