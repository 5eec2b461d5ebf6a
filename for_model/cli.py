"""What every command of FOR shares: where its messages go, and how it ends."""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from typing import TypeAlias

from for_model.errors import ForError

Parsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


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
    """Run the command that the arguments name. Returns its exit code, see `run_command`."""
    arguments = parser.parse_args(argv)
    return run_command(lambda: arguments.run(arguments))


def run_command(action: Callable[[], None]) -> int:
    """Run a command's action with its log on stderr.

    Returns the exit code: 0, or 2 with one line on stderr for what the user can mend (a ForError), or 130 when stopped
    by Ctrl-C.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("faiss").setLevel(logging.WARNING)  # it would tell how it was loaded
    try:
        action()
    except ForError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0
