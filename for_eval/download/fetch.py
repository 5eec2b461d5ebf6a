"""Fetch the published datasets: say what they are, download, verify, unpack where the readers look, and check.

A download goes on where it stopped (HTTP Range) and gets its name only when its checksum is right; an unpacked file
gets its name only when it is whole. So the same command, run again after anything, does what is left to do.
"""

import contextlib
import errno
import hashlib
import http.client
import logging
import os
import shutil
import stat
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from for_eval.download.sources import PARTS, Archive, Part, Source
from for_model.errors import DataError, UsageError
from for_model.files import is_safe_path, locked

_log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 60.0
_BLOCK = 1 << 20
_UNPACKED = {"annotations": 4, "images": 1}  # times the archive's size, at most: JSON shrinks, JPEG doesn't


def choose_splits(source: Source, names: str) -> tuple[str, ...]:
    """Splits from a list with commas; `val` also stands for `val2017`. All but nuImages's mini when it is empty.

    Raises UsageError for one that the dataset doesn't have.
    """
    known = [split.name for split in source.splits]
    if not names.strip():
        return tuple(name for name in known if name != "mini")
    chosen = []
    for wanted in (name.strip() for name in names.split(",")):
        found = [name for name in known if wanted in (name, name.rstrip("0123456789"))]
        if not found:
            raise UsageError(f"{source.name} has no split {wanted!r}: choose from {', '.join(known)}")
        chosen += found
    return tuple(dict.fromkeys(chosen))


def archives_for(source: Source, splits: Sequence[str], parts: Sequence[Part] = PARTS) -> list[Archive]:
    """The archives that these splits and parts need, in the order in which they are fetched."""
    return [a for a in source.archives if a.part in parts and set(a.splits) & set(splits)]


def is_there(archive: Archive, root: Path) -> bool:
    """Whether all that an archive holds is unpacked in `root`; LVIS's annotations may be in `root/annotations`.

    Raises DataError when the folder can't be looked into.
    """
    if archive.holds[0].endswith("/"):
        return count_images(root / archive.holds[0]) >= archive.n_files
    return all((root / name).is_file() or (root / "annotations" / name).is_file() for name in archive.holds)


def count_images(folder: Path) -> int:
    """How many JPEG files a folder holds; 0 when it isn't there. Raises DataError when it can't be read."""
    try:
        with os.scandir(folder) as entries:
            return sum(entry.name.endswith(".jpg") and not entry.name.startswith(".") for entry in entries)
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise DataError(f"{folder} can't be read ({error.strerror}): make it a folder that you can read") from error


def space_needed(archives: Sequence[Archive], root: Path) -> int:
    """Bytes of disk that fetching takes at most: all that is unpacked, and the largest archive beside it."""
    unpacked = sum(_UNPACKED[archive.part] * archive.n_bytes for archive in archives)
    return unpacked + max((a.n_bytes - _size(_download_path(a, root)) for a in archives), default=0)


def describe(source: Source, root: Path, splits: Sequence[str], parts: Sequence[Part] = PARTS) -> list[str]:
    """What a dataset is, where it comes from, what is there already and what will be downloaded; one line each."""
    lines = [f"{source.title}, {source.page}", f"licence: {source.licence}", *source.steps]
    wanted = archives_for(source, splits, parts)
    missing = [archive for archive in wanted if not is_there(archive, root)]
    for archive in wanted:
        begun = _size(_download_path(archive, root)) / archive.n_bytes
        state = "there" if archive not in missing else f"{begun:.0%} there" if begun else "to fetch"
        checked = "SHA-256" if archive.sha256 else "size and CRC, no checksum is published"
        lines.append(f"  {state:<9}  {_gb(archive.n_bytes):>8}  {archive.url}  (checked by {checked})")
    if missing:
        free = shutil.disk_usage(_existing(root)).free
        lines.append(f"into {root}: {_gb(space_needed(missing, root))} of disk, {_gb(free)} are free")
    kept = [str(path) for a in wanted if a not in missing and (path := _download_path(a, root)).exists()]
    if kept:
        lines.append(f"unpacked, and no longer needed: {', '.join(kept)}")
    return lines


def fetch(source: Source, root: Path, splits: Sequence[str], parts: Sequence[Part] = PARTS, keep: bool = False) -> None:
    """Download and unpack what isn't there yet. Shows progress bars; goes on where it stopped.

    root: the dataset's folder, made if need be; archives lie in its `downloads`.
    keep: leave the archives there once they are unpacked.
    Raises DataError when the disk is too small or full, the network can't be reached, or an archive isn't as published;
    UsageError when another fetch runs on the folder.
    """
    missing = [archive for archive in archives_for(source, splits, parts) if not is_there(archive, root)]
    if not missing:
        return
    needed, free = space_needed(missing, root), shutil.disk_usage(_existing(root)).free
    if needed > free:
        raise DataError(
            f"{source.name} needs {_gb(needed)} in {root}, {_gb(free)} are free: make room, choose another --root, "
            "or fetch less with --only or --splits"
        )
    with _one_at_a_time(root), _disk_errors(root):
        for archive in missing:
            path = _download_path(archive, root)
            if path.exists():
                _verify(path, archive, "delete it and run the same command again")
            else:
                _download(archive, path, source.page)
            unpack(path, archive, root)
            if not keep:
                path.unlink()


@contextlib.contextmanager
def _one_at_a_time(root: Path) -> Iterator[None]:
    busy = UsageError(f"another fetch is running on {root}: wait for it, or stop it")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(root / "downloads" / ".lock", busy))
        except OSError as error:
            raise DataError(f"{root} can't be written to ({error.strerror}): choose another --root") from error
        yield


@contextlib.contextmanager
def _disk_errors(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "the disk is full" if full else f"{error.filename or root}: {error.strerror or error}"
        raise DataError(f"fetching into {root} stopped, {what}: the same command goes on from here") from error


def _download_path(archive: Archive, root: Path) -> Path:
    return root / "downloads" / archive.name


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _size(path: Path) -> int:
    """Bytes of a download, whole or begun."""
    return next((p.stat().st_size for p in (path, _part(path)) if p.exists()), 0)


def _existing(path: Path) -> Path:
    """The folder itself or the nearest one above that exists."""
    return next(p for p in (path, *path.absolute().parents) if p.exists())


def _gb(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 5e7 else f"{n_bytes / 1e6:.1f} MB"


def _download(archive: Archive, path: Path, page: str) -> None:
    """Fetch an archive to `path`, by way of `path`.part, which an interrupted run leaves and the next one continues.

    A connection that breaks is made again for as long as each brings some bytes.
    """
    part = _part(path)
    if part.exists() and part.stat().st_size > archive.n_bytes:
        part.unlink()
    elsewhere = f"download it another way to {path} (see {page}), and run the same command again"
    with tqdm(total=archive.n_bytes, desc=archive.name, unit="B", unit_scale=True, disable=None) as bar:
        while (have := part.stat().st_size if part.exists() else 0) < archive.n_bytes:
            bar.n = have
            bar.refresh()
            broken = _receive(archive, part, have, bar, elsewhere)
            if part.stat().st_size <= have:
                got = f"{have:,} of {archive.n_bytes:,} bytes"
                raise DataError(f"{archive.url} stopped after {got} ({broken}): {elsewhere}")
    try:
        _verify(part, archive, "it was damaged on its way; run the same command again")
    except DataError:
        part.unlink()
        raise
    part.replace(path)


def _receive(archive: Archive, part: Path, have: int, bar: "tqdm[None]", elsewhere: str) -> str:
    """One connection: append to `part` what comes after its first `have` bytes, or write it anew if the server sends
    all. Returns why it ended. Raises DataError when there is no connection or the server has another file."""
    request = urllib.request.Request(archive.url, headers={"User-Agent": "FOR", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        raise DataError(f"{archive.url} answered {error.code} {error.reason}: {elsewhere}") from error
    except (OSError, http.client.HTTPException) as error:
        raise DataError(
            f"{archive.url} can't be reached ({getattr(error, 'reason', error)}): check the network, or {elsewhere}"
        ) from error
    with response:
        start = have if response.status == 206 else 0
        length = response.headers.get("Content-Length")
        if length is not None and start + int(length) != archive.n_bytes:
            offered = f"{start + int(length):,} bytes, expected {archive.n_bytes:,}"
            raise DataError(f"{archive.url} has {offered}: it isn't the file that was published; {elsewhere}")
        bar.n = start
        with part.open("ab" if start else "wb") as out:
            while True:
                try:
                    block = response.read1(_BLOCK)  # what has come, without waiting for a whole block
                except (OSError, http.client.HTTPException) as error:
                    return str(error) or type(error).__name__
                if not block:
                    return "the server closed the connection"
                out.write(block)
                bar.update(len(block))


def _verify(path: Path, archive: Archive, mend: str) -> None:
    """Compare a download's size and SHA-256 with the published ones. Raises DataError, which ends with `mend`."""
    size = path.stat().st_size
    wrong = "" if size == archive.n_bytes else f"has {size:,} bytes, expected {archive.n_bytes:,}"
    if archive.sha256 and not wrong:
        digest = hashlib.sha256()
        with (
            path.open("rb") as stream,
            tqdm(total=size, desc=f"checking {archive.name}", unit="B", unit_scale=True, disable=None) as bar,
        ):
            while block := stream.read(_BLOCK):
                digest.update(block)
                bar.update(len(block))
        if digest.hexdigest() != archive.sha256:
            wrong = f"has SHA-256 {digest.hexdigest()}, expected {archive.sha256}"
    if wrong:
        raise DataError(f"{path} {wrong}: {mend}")


def unpack(path: Path, archive: Archive, root: Path) -> None:
    """Unpack what an archive holds for `root`, leaving out files that are there in their full size.

    Raises DataError for a damaged archive, one that lacks what it should hold, and names that lead out of `root`.
    """
    damaged = f"delete {path} and run the same command again"
    try:
        with zipfile.ZipFile(path) as content:
            members = [info for info in content.infolist() if not info.is_dir() and _is_held(info.filename, archive)]
            for info in members:
                if not is_safe_path(info.filename) or stat.S_ISLNK(info.external_attr >> 16):
                    raise DataError(f"{path} holds {info.filename!r}, which leads out of the folder: {damaged}")
            if len(members) < archive.n_files:
                raise DataError(f"{path} holds {len(members):,} of the {archive.n_files:,} files wanted: {damaged}")
            for info in tqdm(members, desc=f"unpacking {archive.name}", unit="file", disable=None):
                _unpack_file(content, info, root / info.filename)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise DataError(f"{path} is damaged ({error}): {damaged}") from error
    os.sync()  # once, before the archive goes: a file at a time would take as long as the download
    _log.info("%s: %s files unpacked into %s", archive.name, f"{len(members):,}", root)


def _is_held(name: str, archive: Archive) -> bool:
    return any(name.startswith(held) if held.endswith("/") else name == held for held in archive.holds)


def _unpack_file(content: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> None:
    if target.is_file() and target.stat().st_size == info.file_size:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    with content.open(info) as source, part.open("wb") as out:  # reading to the end checks the CRC
        shutil.copyfileobj(source, out, _BLOCK)
    part.replace(target)
