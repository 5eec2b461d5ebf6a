"""A plain folder of images, without labels."""

import logging
import os
from collections import deque
from pathlib import Path

from for_model.data.dataset import Dataset, ImageRecord
from for_model.data.images import IMAGE_SUFFIXES, escape_name
from for_model.errors import DataError

_log = logging.getLogger(__name__)


def load_folder(root: Path) -> Dataset:
    r"""Every image file under `root`, at any depth, as a dataset without labels (split `all`).

    The id of an image is its path relative to `root`, with forward slashes; images are sorted by it. A file counts by
    its suffix, in upper or lower case, whether it can be decoded or not. Left out: names that begin with a dot,
    symbolic links that lead out of `root` or in a circle, their number logged, and links to folders that are listed
    under their own names. A link to an image within `root` is an image of its own. A name that isn't valid UTF-8 is
    listed with its odd bytes as `\xNN`; embedding skips and records it.

    root: the folder.

    Raises DataError when `root` isn't a folder, holds no image, or one of its folders can't be read.
    """
    root = Path(root).expanduser().resolve()
    if not root.is_dir():
        what = "is a file" if root.exists() else "doesn't exist"
        raise DataError(f"{root} {what}: expected a folder of images")
    names, not_followed = _list(root)
    if not names:
        raise DataError(f"{root} holds no image: expected files such as .jpg, .png or .webp there or in its subfolders")
    if not_followed:
        _log.warning("%s: %d symbolic links lead out of it, or in a circle, and were not followed", root, not_followed)
    ids = {escape_name(name) for name in names}
    odd = len(ids - set(names))
    if odd:
        _log.warning("%s: %d file names are not valid UTF-8 and can't be embedded; rename them", root, odd)
    return Dataset(
        name="folder", split="all", image_root=root, images=tuple(ImageRecord(name, name) for name in sorted(ids))
    )


def _list(root: Path) -> tuple[list[str], int]:
    """Relative paths of the images under `root` (resolved), unsorted, and how many links lead out of it.

    Real folders are walked before linked ones, and none twice: a link that loops, or that leads to a folder which is
    listed under its own name, adds nothing, while one to a hidden folder within `root` does.
    """
    names: list[str] = []
    not_followed = 0
    seen: set[Path] = set()
    pending = deque([root])
    while pending:
        folder = pending.popleft()
        real = folder.resolve()
        if real in seen:
            continue
        seen.add(real)
        for entry in _entries(folder):
            if entry.name.startswith("."):
                continue
            path = folder / entry.name
            if entry.is_symlink() and not _stays_inside(path, root):
                not_followed += 1
            elif entry.is_dir():
                (pending.append if entry.is_symlink() else pending.appendleft)(path)
            elif path.suffix.lower() in IMAGE_SUFFIXES:
                names.append(path.relative_to(root).as_posix())
    return names, not_followed


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder by name, so that of two links to one folder the same is always the first."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            f"{escape_name(str(folder))} can't be read ({error.strerror}): make it readable, or move it out"
        ) from error


def _stays_inside(link: Path, root: Path) -> bool:
    """Whether a symbolic link leads to a place within `root`; a link to itself doesn't."""
    try:
        return link.resolve().is_relative_to(root)
    except (OSError, RuntimeError):  # Python < 3.13 raises RuntimeError for links in a circle
        return False
