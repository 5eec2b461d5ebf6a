"""Following a folder: what depends on its images is brought up to date whenever they change."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from for_model.data.images import IMAGE_SUFFIXES
from for_model.errors import ForError
from for_search.library.folder_index import folder_index
from for_search.library.library import Library

_log = logging.getLogger(__name__)

_QUIET_MS = 1000  # changes that follow one another more closely are taken together
_LONGEST_MS = 10_000  # but none waits longer than this, however many come
_LOOK_MS = 500  # how soon a request to stop is seen


def follow(
    root: Path, update: Callable[[], object], stop: threading.Event | None = None, quiet_ms: int = _QUIET_MS
) -> None:
    """Call `update` whenever images under `root` have changed, until `stop` is set or Ctrl-C is pressed.

    root: a folder; its subfolders are followed too.
    update: looks by itself for what has changed, and is first called when the folder is being watched, so that no
        change is missed. Of what it raises a ForError is logged, as the next change may mend it.
    stop: ends the following.
    quiet_ms: how long nothing must happen before changes are taken as complete.
    Raises KeyboardInterrupt on Ctrl-C, and what else `update` raises.
    """
    from watchfiles import watch

    logging.getLogger("watchfiles").setLevel(logging.WARNING)  # it would tell each time how many changes it saw
    watching = watch(
        root.expanduser().resolve(),
        watch_filter=lambda _, path: _may_matter(Path(path)),
        debounce=_LONGEST_MS,
        step=quiet_ms,
        stop_event=stop,
        rust_timeout=min(quiet_ms, _LOOK_MS),
        yield_on_timeout=True,
        raise_interrupt=True,
        ignore_permission_denied=True,
    )
    begun = False
    for changes in watching:
        if changes or not begun:
            begun = True
            _attempt(update)


def follow_index(library: Library, name: str, stop: threading.Event | None = None, quiet_ms: int = _QUIET_MS) -> None:
    """Keep an index of a folder up to date, as `folder_index` does, while others search it.

    library, name: the index there, which is opened again whenever it has changed.
    stop, quiet_ms: see `follow`.
    """
    searcher = library.searcher(name)

    def update() -> None:
        folder_index(searcher.image_root, searcher.method, progress=False)
        library.reopen(name)

    follow(searcher.image_root, update, stop, quiet_ms)


def _attempt(update: Callable[[], object]) -> None:
    try:
        update()
    except ForError as error:
        _log.warning("%s", error)


def _may_matter(path: Path) -> bool:
    """Whether a change there can be one of an image: not so for other files, and for hidden ones.

    What has been removed can't be asked whether it was a folder of images, so that it may matter unless its name says
    otherwise.
    """
    return not path.name.startswith(".") and (path.suffix.lower() in IMAGE_SUFFIXES or not path.is_file())
