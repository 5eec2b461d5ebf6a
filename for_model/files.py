"""Files: atomic writing, hashes, and where caches live."""

import contextlib
import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

from filelock import FileLock, Timeout

from for_model.errors import ForError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# What comes with FOR.
CONFIG_DIR = Path(__file__).parent / "backbones" / "model_configs"
WEIGHTS_DIR = Path(__file__).parent / "weights"


def cache_dir() -> Path:
    """The folder for everything that can be made again: `$FOR_CACHE`, else `~/.cache/for`. Not created here."""
    return Path(os.environ.get("FOR_CACHE") or Path.home() / ".cache" / "for")


def is_safe_path(path: str) -> bool:
    """Whether a file name from a dataset stays within its folder and can be written into JSON again."""
    parts = PurePosixPath(path)
    is_text = all(not "\ud800" <= char <= "\udfff" for char in path)
    return bool(parts.parts) and not parts.is_absolute() and ".." not in parts.parts and "\0" not in path and is_text


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file. Raises ValueError, with one line, when it can't be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(str(error)) from error  # what isn't UTF-8 or TOML is a ValueError already


def toml_value(text: str) -> Any:
    """The value of a text such as `25` or `[1, 2]` in TOML; a text that isn't valid TOML is returned as it is."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, on any error it is removed.

    A reader never sees half a file, whatever moment the writer is killed at.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def temporaries_of(names: str) -> re.Pattern[str]:
    """What matches the names of the files that a kill within `atomic_path` leaves behind.

    names: a regular expression of what they were to become.
    """
    return re.compile(rf"\.({names})\..+\.tmp")


def check_writable(folder: Path) -> None:
    """Make a folder if it is missing, and a byte in it, which goes again: before hours of work rather than after.

    Raises OSError when the system refuses that.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".", suffix=".tmp") as stream:
        stream.write(b"0")
        stream.flush()


@contextlib.contextmanager
def locked(path: Path, busy: ForError) -> Iterator[None]:
    """Hold the lock of the file `path`, which the system drops when the process dies, however it dies.

    path: made if it is missing, with its folder; it stays behind, empty.
    busy: the error to raise when another process, or this one, holds the lock already; nobody waits for a lock.
    Raises OSError when the file can't be made, or its file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without a fallback: the lock files that would stand in for locks outlive a process that was killed.
    lock = FileLock(path, blocking=False, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise busy from None
    try:
        yield
    finally:
        lock.release()


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON to `path` atomically, byte-stable for equal values."""
    write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """A manifest with the hash of all its other fields as its last, `sha256`, so that it vouches for itself."""
    return {**value, "sha256": sha256_json(value)}


def is_sealed(value: dict[str, Any]) -> bool:
    """Whether a manifest's own hash is that of its other fields."""
    return value.get("sha256") == sha256_json({name: field for name, field in value.items() if name != "sha256"})


def read_own_json(
    path: Path,
    expected: str,
    again: str,
    error: type[ForError],
    *,
    sealed_by_hash: bool = True,
    others: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """A JSON object that FOR has written: a manifest, say. Its format is checked, and the hash that it has of itself.

    path: the file.
    expected: the format that it must name.
    again: what to do about a damaged one or another format, the end of the error's line.
    error: what to raise.
    sealed_by_hash: whether it was written with `sealed`; not so for files that users may edit.
    others: for formats that are known to be something else, the whole line about such a file.

    Raises FileNotFoundError or NotADirectoryError when there is no such file, for the caller to say what is missing;
    `error`, in one line, when it can't be read, isn't JSON, is of another format, or has been changed.
    """
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as caught:
        raise error(
            f"{path} can't be read ({caught.strerror or caught}): check its permissions and the disk"
        ) from caught
    except (ValueError, RecursionError) as caught:
        raise error(f"{path} is damaged, it isn't valid JSON ({caught}): {again}") from caught
    found = value.get("format") if isinstance(value, dict) else None
    if isinstance(found, str) and found in others:
        raise error(others[found])
    if found != expected:
        raise error(f"{path} has the format {found!r}, expected {expected!r}: {again}")
    if sealed_by_hash and not is_sealed(value):
        raise error(f"{path} is damaged, its own hash differs: {again}")
    return dict(value)


def read_note(path: Path) -> dict[str, Any] | None:
    """The JSON object that a run has written to say how far it has come.

    None when the file isn't there or is damaged: the run then starts from the beginning.
    """
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def slug(*parts: str) -> str:
    """A file's name made of some words."""
    return "_".join(re.sub(r"[^A-Za-z0-9.+-]+", "-", part) for part in parts)


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """The SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def sha256_arrays(
    arrays: Iterable[tuple[str, str, Sequence[int], memoryview]], architecture: Mapping[str, Any] | Sequence[Any]
) -> str:
    """A hash of weights, see `for_model.tensor_files.sha256_state`, whatever library holds them.

    arrays: name, dtype as torch writes it, shape and bytes of each, in the order of their names; an empty dtype where
        all have one that is known.
    architecture: JSON values, what leaves no trace in them.
    """
    digest = hashlib.sha256(json.dumps(architecture, sort_keys=True).encode())
    for name, dtype, shape, data in arrays:
        digest.update(f"\n{' '.join(filter(None, (name, dtype, str(list(shape)))))}\n".encode())
        digest.update(data)
    return digest.hexdigest()
