"""What every command of FOR shares: where its messages go, and how it ends.

0     done
2     something that the user can mend: one line on stderr says what
130   stopped by Ctrl-C
141   who read the output has gone, as `| head -1` does: nothing is said, as with other commands
"""

import argparse
import atexit
import contextlib
import errno
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType, TracebackType
from typing import Any, TypeAlias

from for_model.errors import ForError

Parsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

STOPPED, CLOSED_PIPE = 130, 141
_STOPPED_LINE = "stopped; the same command goes on from here"

# What to do about what the system refuses; other refusals are told without advice.
_ADVICE = {
    errno.ENOSPC: "make room there, or choose another folder",
    errno.EDQUOT: "make room there, or choose another folder",
    errno.EFBIG: "choose a folder that takes larger files",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "choose a folder that you may read and write",
    errno.EPERM: "choose a folder that you may read and write",
    errno.ENOTDIR: "a file stands where a folder is expected",
    errno.EEXIST: "a file stands where a folder is expected",
    errno.EISDIR: "a folder stands where a file is expected",
    errno.EMFILE: "raise the limit with `ulimit -n 4096`",
}
# Libraries that write files themselves tell of a full disk in words of their own.
_FULL = ("No space left on device", "database or disk is full", "disk I/O error", "File too large")


def package_parser(
    package: str, description: str | None, epilog: str, commands: Sequence[Callable[[Parsers], None]]
) -> argparse.ArgumentParser:
    """The parser of `python -m PACKAGE COMMAND ...`.

    description, epilog: of its --help, printed as they stand.
    commands: each adds the parser of one command, with what it runs as the default of `run`.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {package}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parsers = parser.add_subparsers(dest="command", required=True)
    for add in commands:
        add(parsers)
    return parser


def run_package(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    """Run the command that the arguments name. Returns its exit code, see `run_command`.

    Raises SystemExit as argparse does, after --help and for arguments that it doesn't know.
    """

    def run() -> None:
        arguments = parser.parse_args(argv)
        arguments.run(arguments)

    return run_command(run)


def run_command(action: Callable[[], None]) -> int:
    """Run a command's action with its log on stderr. Returns the exit code; see the top of this module."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("faiss").setLevel(logging.WARNING)  # it would tell how it was loaded
    with _noticed_interrupts() as interrupts:
        try:
            try:
                for stream in (sys.stdout, sys.stderr):
                    if hasattr(stream, "reconfigure"):
                        stream.reconfigure(errors="backslashreplace")  # a terminal that isn't UTF-8 shows escapes
                action()
            finally:
                sys.stdout.flush()
        except BrokenPipeError:
            _leave(sys.stdout)
            return CLOSED_PIPE
        except ForError as error:
            return _end(f"error: {error}", STOPPED if interrupts else 2)
        except KeyboardInterrupt:
            return _end(_STOPPED_LINE, STOPPED)
        except Exception as error:
            if interrupts:  # libraries make other errors of a Ctrl-C while they are imported
                return _end(_STOPPED_LINE, STOPPED)
            line = _refusal(error)
            if line is None:
                raise
            logging.getLogger(__name__).debug("%s", line, exc_info=error)
            return _end(f"error: {line}", 2)
    return 0


def print_json(value: Any, indent: int | None = None) -> None:
    """Print a JSON value, in ASCII where the terminal takes no UTF-8: what a terminal escapes is no JSON any more."""
    takes_all = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    print(json.dumps(value, indent=indent, ensure_ascii=not takes_all), flush=True)


def _refusal(error: BaseException) -> str | None:
    """A line for what the system has refused; None for any other error, which is a mistake in FOR."""
    import sqlite3

    from for_model.files import cache_dir

    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename2 or error.filename}: " if error.filename else ""
        if not where and error.errno == errno.ENOSPC and not _takes_writing(sys.stdout):
            where = "the output: "
        said, number = f"{where}{error.strerror}", error.errno
    elif isinstance(error, sqlite3.OperationalError) or any(words in str(error) for words in _FULL):
        said, number = " ".join(str(error).split()), errno.ENOSPC
    else:
        return None
    advice = _ADVICE.get(number)
    if str(cache_dir()) in said:
        advice = f"{advice or 'look at that folder'}, with FOR_CACHE=FOLDER before the command"
    return f"{said}{f'; {advice}' if advice else ''}"


def _takes_writing(stream: Any) -> bool:
    try:
        stream.flush()
    except OSError:
        return False
    return True


def _end(line: str, code: int) -> int:
    """Say how a command ended, if anybody listens, and return its exit code."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr)
    for stream in (sys.stderr, sys.stdout):
        if not _takes_writing(stream):
            _leave(stream)
    return code


def _leave(stream: Any) -> None:
    """Let nothing more be written to where nobody reads, such as what Python writes when it ends."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


@contextlib.contextmanager
def _noticed_interrupts() -> Iterator[list[int]]:
    """Yield a list that holds something once Ctrl-C was pressed, whatever becomes of the KeyboardInterrupt."""
    noticed: list[int] = []

    def notice(number: int, frame: FrameType | None) -> None:
        noticed.append(number)
        if _imports_torch(frame):  # its C++ would end the program as crashed; asked again in a moment
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            return
        raise KeyboardInterrupt

    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield noticed
        return
    signal.signal(signal.SIGINT, notice)
    before = signal.signal(signal.SIGALRM, notice)
    try:
        yield noticed
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _imports_torch(frame: FrameType | None) -> bool:
    """Whether a module of torch is being imported."""
    while frame is not None:
        if frame.f_code.co_name == "<module>" and str(frame.f_globals.get("__name__")).partition(".")[0] == "torch":
            return True
        frame = frame.f_back
    return False


def _end_quietly(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A Ctrl-C before a command has begun, or after it has ended, is told as one within it; all else as before."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    _end(_STOPPED_LINE, STOPPED)
    os._exit(STOPPED)


# Every command's `__main__` imports this module before what takes long.
sys.excepthook = _end_quietly
# A Ctrl-C while Python itself ends finds nothing to stop any more; it would end the program as killed.
atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
