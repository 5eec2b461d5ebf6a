"""Index a folder of images in the background, one at a time, while others search; it can be watched and stopped."""

import logging
import threading
from dataclasses import dataclass, replace
from pathlib import Path

from for_model.errors import ForError, UsageError
from for_search.library.folder_index import folder_index, remember
from for_search.library.library import Library

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildState:
    """How far a build is.

    running: whether it goes on.
    done, total: images.
    message: what to tell the visitor.
    name: of the index, once it can be searched.
    """

    running: bool = False
    done: int = 0
    total: int = 0
    message: str = ""
    name: str | None = None


class _Stopped(Exception):
    """Raised in the build's thread when it was asked to stop."""


class Builder:
    """Adds indexes of folders to a library. Several threads may share one; a second build is refused while one runs.

    What a stopped build has embedded is kept in FOR's cache, and the same build goes on from there. What is built is
    remembered: `Library.add_remembered` adds it to the library of a later start.
    """

    def __init__(self, library: Library) -> None:
        self._library = library
        self._state = BuildState()
        self._stop = threading.Event()
        self._lock = threading.Lock()

    @property
    def state(self) -> BuildState:
        return self._state

    def start(self, root: Path, method: str, backbone: str) -> None:
        """Begin to index all images under `root`, and return at once.

        root: the folder.
        method: its name, as `build_method` takes it.
        backbone: its name; a backbone that an open index uses is not loaded a second time.

        Raises UsageError when another build is running, or for a root that isn't a folder.
        """
        root = root.expanduser()
        if not root.is_dir():
            raise UsageError(f"{root} is not a folder on the machine that serves this page")
        with self._lock:
            if self._state.running:
                raise UsageError("another folder is being indexed: wait for it, or stop it")
            self._state = BuildState(running=True, message=f"loading {backbone}")
            self._stop.clear()
        threading.Thread(target=self._run, args=(root, method, backbone), name="build", daemon=True).start()

    def stop(self) -> None:
        """Ask the build to end; it does so after the image that it is at. Nothing happens when none is running."""
        self._stop.set()

    def _run(self, root: Path, method: str, backbone: str) -> None:
        from for_model.methods.build import build_method

        try:
            built = build_method(method, backbone, loaded=self._library.backbone(backbone))
            path = folder_index(root, built, progress=False, watch=self._watch)
            name = self._library.add(path, built=True)
            remember(path)
            state = BuildState(message="ready to be searched", name=name)
        except _Stopped:
            state = replace(self._state, message="stopped; the same folder and method go on from here")
        except ForError as error:
            state = BuildState(message=str(error))
        except Exception:
            _log.exception("an index of %s could not be built", root)
            state = BuildState(message="something went wrong here, and is in the server's log")
        self._state = replace(state, running=False)

    def _watch(self, done: int, total: int) -> None:
        if self._stop.is_set():
            raise _Stopped
        self._state = BuildState(running=True, done=done, total=total, message="embedding")
