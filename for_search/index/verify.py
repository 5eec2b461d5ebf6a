"""Checking every byte of what FOR has written: stores, indexes and trained heads."""

from collections.abc import Iterator
from pathlib import Path

from for_model.errors import ForError, UsageError
from for_search.index.index_files import check_index
from for_search.index.index_manifest import MANIFEST
from for_search.store.store import PARTIAL, TIMING, check_store


def verify(path: Path) -> Iterator[tuple[str, ForError | None]]:
    """Check a store, an index or a head, file by file: the name of each, and what is wrong with it.

    Besides all bytes of all files, what the manifest says is checked: its own hash, the ids' order, and that each image
    has a row of its own.
    Raises UsageError for what is none of the three.
    """
    if path.is_file():
        yield _check_head(path)
    elif (path / TIMING).exists() or (path / PARTIAL).exists() or next(path.glob("embeddings-*.npy"), None):
        yield from check_store(path)
    elif (path / MANIFEST).exists():
        yield from check_index(path)
    else:
        raise UsageError(
            f"{path} is no store, index or head: give a folder that embed or index wrote, or a head's file"
        )


def _check_head(path: Path) -> tuple[str, ForError | None]:
    from for_model.methods.head_files import check_head_file

    try:
        check_head_file(path)
    except ForError as error:
        return path.name, error
    return path.name, None
