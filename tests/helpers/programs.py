"""Python programs for tests to kill or to measure, forked from one that has imported torch: that takes seconds."""

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FORKING = multiprocessing.get_context("forkserver")
_FORKING.set_forkserver_preload(
    ["torch", "for_model.data.folder", "for_search.index.index_files", "for_search.store.embed"]
)


@dataclass(frozen=True)
class Program:
    """A program that runs; what it writes goes to files in `folder`."""

    process: Any
    folder: Path

    def ended(self) -> bool:
        return not self.process.is_alive()

    def wait(self) -> int:
        """Wait until it ends. Returns its exit code, which is negative for a signal."""
        self.process.join()
        return int(self.process.exitcode)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def said(self) -> tuple[str, str]:
        """What it has written to standard output and to standard error."""
        return (self.folder / "out").read_text(), (self.folder / "error").read_text()


def _run(folder: str, code: str, arguments: tuple[str, ...], variables: Mapping[str, str]) -> None:
    for descriptor, name in ((1, "out"), (2, "error")):
        file = os.open(Path(folder, name), os.O_WRONLY)
        os.dup2(file, descriptor)
        os.close(file)
    os.environ.update(variables)
    sys.argv = ["-c", *arguments]
    exec(compile(code, "<a test's program>", "exec"), {"__name__": "__main__"})


@contextmanager
def program(code: str, *arguments: str, **variables: str) -> Iterator[Program]:
    """Run code as `python -c code arguments` would, with more environment variables; ended on leaving."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("out", "error"):
            Path(folder, name).touch()
        process = _FORKING.Process(target=_run, args=(folder, code, arguments, variables))
        process.start()
        running = Program(process, Path(folder))
        try:
            yield running
        finally:
            running.kill()
            process.close()
