"""The folder of an index: built from a store, and opened, complete or not at all."""

import contextlib
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from for_model import files
from for_model.data.dataset import ImageRecord
from for_model.errors import StoreError, UsageError
from for_model.methods.protocol import MethodInfo
from for_search.index.engine_protocol import BuildOptions, Engine, damaged
from for_search.index.engines import ENGINES
from for_search.index.index import SearchIndex
from for_search.store.store import FORMAT as STORE_FORMAT
from for_search.store.store import MANIFEST as STORE_MANIFEST
from for_search.store.store import SkippedImage, Store, open_store

FORMAT = "for-index/2"
MANIFEST = "manifest.json"
_START_BYTES = 4096


def build_index(
    store_path: Path, out: Path, kind: str = "flat", recall: float = 0.99, texts: NDArray[np.float32] | None = None
) -> SearchIndex:
    """Build the search index of an embedding store.

    out: the index's folder. An index that is there already is replaced, once the new one is complete; anything else
    there is refused. Killed at any moment, the build leaves the old index or none, never half of one, and the next one
    goes on where this one ended, if its engine can.
    kind: of the engine.
    recall: the share of the best 50 images that an approximate engine is to find.
    texts: [T, Co] float32, texts to measure that with; None for embeddings of the store, moved away as texts are.
    Raises UsageError for an unknown kind, a recall that isn't above 0 and up to 1, or an `out` that isn't an index,
    StoreError for a store that is missing, damaged or empty, or when the index can't be written.
    """
    if kind not in ENGINES:
        raise UsageError(f"no engine {kind!r}: choose one of {', '.join(sorted(ENGINES))}")
    if not 0 < recall <= 1:
        raise UsageError(f"a recall of {recall:g}: ask for a share above 0 and up to 1, such as 0.99")
    store = open_store(store_path)
    if not store.images:
        raise StoreError(f"{store_path} holds no image: there is nothing to index")
    target = Path(out).resolve()
    _refuse_foreign(target)
    try:
        with contextlib.ExitStack() as stack:
            partial = None
            if ENGINES[kind].resumes:
                key = [FORMAT, files.sha256_file(store_path / STORE_MANIFEST), kind]
                partial = stack.enter_context(_kept_on_kill(target, key))
            folder = stack.enter_context(_replacing(target))
            _write(store, ENGINES[kind], folder, BuildOptions(store.info.n_embeddings, recall, texts, partial))
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
            name: (int(f["bytes"]), str(f["sha256"]), str(f["start_sha256"])) for name, f in manifest["files"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged(path / MANIFEST, f"not the fields of {FORMAT}: {type(error).__name__} {error}") from error
    if kind not in ENGINES:
        raise StoreError(
            f"{path} is of kind {kind!r}, known are {', '.join(sorted(ENGINES))}: update FOR or rebuild it"
        )
    engine = ENGINES[kind]
    if shape != (info.n_embeddings, info.dim) or min(shape) < 1 or not images or set(listed) != set(engine.file_names):
        raise damaged(path / MANIFEST, "its fields contradict each other")
    for name, (n_bytes, sha256, start_sha256) in listed.items():
        _check_file(path / name, n_bytes, start_sha256, sha256 if verify == "full" else None)
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


def _start_sha256(path: Path) -> str:
    """The hash of a file's first 4 KiB, which hold an engine's header: cheap enough to check at every opening."""
    with path.open("rb") as stream:
        return hashlib.sha256(stream.read(_START_BYTES)).hexdigest()


def _check_file(path: Path, n_bytes: int, start_sha256: str, sha256: str | None) -> None:
    """Raise StoreError unless a file has this size and these hashes; without `sha256` only its start is read."""
    try:
        found = path.stat().st_size
        if found != n_bytes:
            raise damaged(path, f"it has {found} bytes, its manifest says {n_bytes}")
        if _start_sha256(path) != start_sha256 or (sha256 is not None and files.sha256_file(path) != sha256):
            raise damaged(path, "its bytes differ from those that were written")
    except OSError as error:
        raise StoreError(f"can't read {path}: {error.strerror or error}; build the index again") from error


def _write(store: Store, engine: type[Engine], folder: Path, options: BuildOptions) -> None:
    """Write the complete index of `store` into the empty `folder`, down to the disk."""
    store.verify()
    dim = store.info.dim
    shards = tqdm(store.iter_shards(), "index", total=len(store.shards), unit="shard", disable=None)
    blocks = (np.asarray(shard).reshape(-1, dim) for shard in shards)
    engine.build(blocks, len(store.images) * store.info.n_embeddings, dim, folder, options)
    listed = {}
    for name in engine.file_names:
        path = folder / name
        _sync(path)
        listed[name] = {
            "bytes": path.stat().st_size,
            "sha256": files.sha256_file(path),
            "start_sha256": _start_sha256(path),
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
    known = {MANIFEST}.union(*(engine.file_names for engine in ENGINES.values()))
    if not target.is_dir() or not {entry.name for entry in target.iterdir()} <= known:
        raise UsageError(f"{target} exists and isn't a search index: choose another folder for the index")


@contextlib.contextmanager
def _kept_on_kill(target: Path, key: list[Any]) -> Iterator[Path]:
    """Yield the folder beside `target` that keeps what a build has done so far, for the next one if this one is killed.

    key: what makes two builds the same. What builds of another key left behind is removed.
    On success the folder is removed. Raises StoreError when another process is at the same build.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = target.parent / f".{target.name}.{files.sha256_json(key)[:16]}.partial"
    for stale in target.parent.glob(f".{glob.escape(target.name)}.*.partial"):
        if stale != folder:
            with contextlib.suppress(OSError, StoreError), _locked(stale):
                shutil.rmtree(stale)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_locked(folder))
        except OSError:  # a file system without locks
            folder.mkdir(exist_ok=True)
        try:
            yield folder
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            if folder.exists() and {entry.name for entry in folder.iterdir()} <= {"lock"}:
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target`; on success it takes `target`'s place, on any error it is removed.

    What an earlier build that was killed left behind is removed too: a build holds a lock on its folder for as long
    as its process lives, so a folder that can be locked is nobody's.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for stale in target.parent.glob(f".{glob.escape(target.name)}.*.building"):
        with contextlib.suppress(OSError, StoreError), _locked(stale):
            shutil.rmtree(stale)
    folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".building"))
    new, old = folder / "new", folder / "old"
    try:
        with contextlib.ExitStack() as stack:
            # A file system without locks loses the cleaning up, nothing else.
            with contextlib.suppress(OSError, StoreError):
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


def _locked(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Hold the lock of a build's folder. Raises StoreError when another build holds it."""
    return files.locked(folder / "lock", StoreError(f"{folder} is being written by another process"))
