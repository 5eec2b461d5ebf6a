"""Files behind a URL: object stores such as `s3://` and `gs://`, or whatever else fsspec knows, copied to and fro.

Credentials come from where each provider's package looks for them (environment, its own files, the machine's role);
none is ever part of a URL, and so none comes into a manifest or a log.
"""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from for_model.errors import DataError, UsageError
from for_model.files import atomic_path, cache_dir, is_safe_path, sha256_json, slug

_THREADS = 16  # that wait for the network
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_SECRET = re.compile(r"KEY|SECRET|TOKEN|PASSWORD|CREDENTIAL", re.IGNORECASE)
_RENAMED = frozenset({"file", "local", "sftp", "ssh", "ftp", "smb"})  # where half a file could be seen at its name


def location(text: str) -> Path | str:
    """An argument that names a folder: a URL as it is, anything else as a path."""
    return text if _URL.match(text) else Path(text)


@dataclass(frozen=True)
class RemoteFile:
    """n_bytes: its size.  mtime_ns: of its last change; 0 where the provider doesn't tell."""

    n_bytes: int
    mtime_ns: int


class RemoteFolder:
    """A folder behind a URL. Whatever it does raises DataError, in one line, when the other side can't or won't.

    Raises UsageError for a URL with credentials or a query in it, of an unknown kind, or of one whose package is
    missing.
    """

    def __init__(self, url: str) -> None:
        rest = url.partition("://")[2]
        if "@" in rest.partition("/")[0] or "?" in rest:
            raise UsageError(
                "a URL with a user, a key or a query in it: leave them out, and give credentials by the environment or "
                "the provider's own files"
            )
        self.url = url.rstrip("/")
        try:
            import fsspec

            self._fs, path = fsspec.core.url_to_fs(self.url)
        except ImportError as error:
            raise UsageError(f"{self.url} needs a package that isn't installed: {_line(error)}") from None
        except ValueError as error:
            raise UsageError(f"{self.url} is no URL that can be read: {_line(error)}") from None
        except Exception as error:  # a provider's package may look for credentials already now
            raise self._why(error) from None
        self._path = path.rstrip("/")

    def cache_folder(self, kind: str) -> Path:
        """A folder of its own in FOR's cache, among others of that kind."""
        return cache_dir() / kind / slug(self.url.rpartition("/")[2], sha256_json(self.url)[:12])

    def files(self) -> dict[str, RemoteFile]:
        """All files under the folder, by their paths relative to it; none where it isn't there. Names that would lead
        out of a folder are left out."""
        with self._explained():
            self._fs.invalidate_cache()
            try:
                found: Mapping[str, Any] = self._fs.find(self._path, detail=True)
            except FileNotFoundError:
                return {}
        start = len(self._path) + 1
        listed = {name[start:]: info for name, info in found.items() if name.startswith(f"{self._path}/")}
        return {
            name: RemoteFile(int(info.get("size") or 0), _mtime_ns(info))
            for name, info in sorted(listed.items())
            if is_safe_path(name)
        }

    def read(self, name: str) -> bytes | None:
        """A file's content; None when it isn't there."""
        with self._explained():
            try:
                content: bytes = self._fs.cat_file(f"{self._path}/{name}")
            except FileNotFoundError:
                return None
        return content

    def fetch(self, names: Mapping[str, RemoteFile], folder: Path, progress: str | None = None) -> None:
        """Copy files into a local folder, each under a temporary name first, with the other side's time.

        names: the files, by their names.
        progress: what to write before the bar; None for no bar.
        A file that is gone meanwhile isn't copied.
        """

        def fetch_one(name: str) -> None:
            target = folder / name
            with self._explained(), contextlib.suppress(FileNotFoundError), atomic_path(target) as temporary:
                self._fs.get_file(f"{self._path}/{name}", str(temporary))
            if target.exists():
                mtime_ns = names[name].mtime_ns
                os.utime(target, ns=(mtime_ns, mtime_ns))

        with ThreadPoolExecutor(_THREADS, thread_name_prefix="fetch") as pool:
            done = pool.map(fetch_one, names)
            for _ in tqdm(done, progress, len(names), unit="files", disable=None if progress and names else True):
                pass

    def put(self, path: Path, name: str) -> None:
        """Copy a local file there; whoever reads it meanwhile sees what was there before, or all of it."""
        target = f"{self._path}/{name}"
        with self._explained():
            protocol = self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,)
            half = f"{target}.tmp" if _RENAMED.intersection(protocol) else target
            self._fs.makedirs(target.rpartition("/")[0], exist_ok=True)
            self._fs.put_file(str(path), half)
            if half != target:
                self._fs.mv(half, target)

    def remove(self, names: Iterable[str]) -> None:
        """Remove files; those that aren't there are as they should be."""
        with self._explained():
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    self._fs.rm_file(f"{self._path}/{name}")

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Whatever isn't expected as a DataError; a FileNotFoundError too, where nobody within has taken it."""
        try:
            yield
        except DataError:
            raise
        except Exception as error:  # each provider has errors of its own
            raise self._why(error) from None

    def _why(self, error: Exception) -> DataError:
        what, kind = _line(error), type(error).__name__
        if isinstance(error, PermissionError) or "Forbidden" in kind:
            return DataError(f"{self.url}: no permission ({what}): check what your credentials are allowed to do")
        if "redential" in kind or "redential" in what or "Auth" in kind:
            return DataError(f"{self.url}: no credentials that work ({what}): set them as the provider's tools expect")
        return DataError(f"{self.url} can't be used ({kind}: {what}): check the URL and the network, then run it again")


def fetch_images(url: str, folder: Path, suffixes: Iterable[str]) -> int:
    """Make a local folder hold the images under a URL and no other file; what is there already isn't fetched again.

    suffixes: of images' names, in lower case.

    Returns how many images there are. A file counts as there when it has the size and the time of the other side's.
    Raises as `RemoteFolder` does, DataError also where there is no image.
    """
    remote = RemoteFolder(url)
    wanted = tuple(suffixes)
    found = {
        name: file
        for name, file in remote.files().items()
        if name.lower().endswith(wanted) and not any(part.startswith(".") for part in name.split("/"))
    }
    if not found:
        raise DataError(f"{remote.url} holds no image: expected files such as .jpg, .png or .webp there or below")
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        name = path.relative_to(folder).as_posix()
        if name in found and RemoteFile(path.stat().st_size, path.stat().st_mtime_ns) == found[name]:
            continue
        path.unlink()
    missing = {name: file for name, file in found.items() if not (folder / name).exists()}
    folder.mkdir(parents=True, exist_ok=True)
    remote.fetch(missing, folder, f"fetching from {remote.url}")
    return len(found)


def _mtime_ns(info: Mapping[str, Any]) -> int:
    """When a file was last changed, as the provider's package tells it."""
    for key in ("mtime", "LastModified", "last_modified", "updated", "created"):
        value = info.get(key)
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = datetime.fromisoformat(value.replace("Z", "+00:00"))
        if isinstance(value, datetime):
            value = value.timestamp()
        if isinstance(value, int | float):
            return int(value) * 10**9  # whole seconds: what all file systems keep
    return 0


def _line(error: Exception) -> str:
    """An error's text in one short line, without any secret of the environment."""
    text = " ".join(str(error).split()) or type(error).__name__
    for name, value in os.environ.items():
        if _SECRET.search(name) and len(value) >= 6:
            text = text.replace(value, "***")
    return text[:200]
