"""What every command of FOR shares: where its messages go, and how it ends."""

import logging
import sys
from collections.abc import Callable

from for_model.errors import ForError


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
