"""A folder that is followed: each test waits for what it has caused, for as long as that takes, and no longer."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from for_model.errors import DataError
from for_search.library import folder_watch
from for_search.library.folder_watch import follow, follow_index
from for_search.library.library import Library
from tests.helpers.paths import REPOSITORY
from tests.helpers.patience import PATIENCE_S

QUIET_MS = 20


class Followed:
    """`follow` in a thread; `wait` gives the number of the update that comes next."""

    def __init__(self, root: Path, run: Callable[..., None] = follow) -> None:
        self.calls = 0
        self.error: Exception | None = None
        self._called = threading.Semaphore(0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=run, args=(root, self._update, self._stop, QUIET_MS))
        self._thread.start()

    def _update(self) -> None:
        self.calls += 1
        self._called.release()
        if self.error:
            raise self.error

    def wait(self) -> None:
        assert self._called.acquire(timeout=PATIENCE_S)

    def end(self) -> None:
        self._stop.set()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()


def test_each_burst_of_changes_is_one_update_and_errors_end_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "sub").mkdir()
    followed = Followed(tmp_path)
    try:
        followed.wait()  # at once, for what has changed before
        followed.error = DataError("the folder holds no image")
        (tmp_path / "sub" / "new.jpg").touch()
        followed.wait()
        (tmp_path / "sub" / "new.jpg").rename(tmp_path / "other.PNG")
        followed.wait()
        (tmp_path / "sub").rmdir()  # may have held images
        followed.wait()
    finally:
        followed.end()
    assert "the folder holds no image" in caplog.text


def test_what_may_be_an_image(tmp_path: Path) -> None:
    for name, matters in [
        ("a.jpg", True),
        ("a.JPEG", True),
        ("notes.txt", False),
        (".hidden.jpg", False),
        (".a.jpg.part", False),
        ("folder.2024", True),
    ]:
        (tmp_path / name).mkdir() if name.startswith("folder") else (tmp_path / name).touch()
        assert folder_watch._may_matter(tmp_path / name) == matters
    assert folder_watch._may_matter(tmp_path / "gone")
    assert not folder_watch._may_matter(tmp_path / ".gone")


def test_the_page_finds_what_has_just_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The index is opened again under its own name, with the method that is loaded."""
    reopened = threading.Event()

    class FakeLibrary(Library):
        def searcher(self, name: str):  # type: ignore[no-untyped-def]
            return type("Searcher", (), {"image_root": tmp_path, "method": "method of " + name})

        def reopen(self, name: str) -> None:
            asked.append(name)
            reopened.set()

    asked: list[object] = []
    monkeypatch.setattr(folder_watch, "folder_index", lambda root, method, progress: asked.append((root, method)))
    stop = threading.Event()
    thread = threading.Thread(target=follow_index, args=(FakeLibrary(), "mine", stop, QUIET_MS))
    thread.start()
    assert reopened.wait(PATIENCE_S)
    stop.set()
    thread.join(PATIENCE_S)
    assert asked[:2] == [(tmp_path, "method of mine"), "mine"]


CHILD = """
import sys
from pathlib import Path
from for_model.cli import run_command
from for_search.library.folder_watch import follow
sys.exit(run_command(lambda: follow(Path({root!r}), lambda: print("updated", flush=True), quiet_ms=20)))
"""


def test_ctrl_c_ends_it_with_130(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CHILD.format(root=str(tmp_path))],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "updated\n"
        (tmp_path / "new.jpg").touch()
        assert child.stdout.readline() == "updated\n"
        os.kill(child.pid, signal.SIGINT)
        try:
            _, errors = child.communicate(timeout=PATIENCE_S)
        finally:
            child.kill()
    assert (child.returncode, "Traceback" in errors) == (130, False)
