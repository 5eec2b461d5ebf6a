"""The wait for the first result: from the start of the app, on the built-in scenes, with their index made before.

  python -m tests.benchmarks.start
  python -m tests.benchmarks.start --runs 5

Starts the app anew for each run. Prints the seconds until it serves, until a browser shows the pictures of the first
example (until the API answers it, where there is no Chromium), and until the API answers a text that nobody has
searched for before, which takes the network. Ends with an error if the median of the first result is above 10 s.
"""

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Iterator, Sequence

from tests.benchmarks.load import NOUNS, search_once, start_app
from tests.helpers.browser import CHROMIUM, Page, open_page

MAX_SECONDS = 10
_PICTURES = (
    "(p => p.length >= 12 && p.every(i => i.complete && i.naturalWidth))([...document.querySelectorAll('#grid img')])"
)


@contextlib.contextmanager
def browser() -> Iterator[Page | None]:
    """An open browser; None where there is none."""
    if CHROMIUM is None:
        yield None
    else:
        with open_page() as page:
            yield page


def one_start(port: int) -> tuple[float, float, float]:
    """Start the app and end it. Returns the seconds from the start: serving, first result, first new text."""
    url = f"http://127.0.0.1:{port}"
    with browser() as page:
        began = time.perf_counter()
        process = start_app(port)
        try:
            serving = time.perf_counter() - began
            if page is None:
                search_once(url, NOUNS[0], 12, "first")
            else:
                page.open(url)
                page.wait(_PICTURES)
            first = time.perf_counter() - began
            search_once(url, f"{NOUNS[0]} {began}", 12, "first")
            return serving, first, time.perf_counter() - began
        finally:
            process.terminate()
            process.wait(20)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--port", type=int, default=7864)
    arguments = parser.parse_args(argv)
    one_start(arguments.port)  # makes what isn't made, and brings the packages into memory
    firsts = []
    for _ in range(arguments.runs):
        serving, first, new = one_start(arguments.port)
        firsts.append(first)
        where = "by the API" if CHROMIUM is None else "in the browser"
        print(f"serving after {serving:.1f} s, first result {where} after {first:.1f} s, new text after {new:.1f} s")
    median = statistics.median(firsts)
    ok = median <= MAX_SECONDS
    print(f"{'OK' if ok else 'FAIL'}: first result after {median:.1f} s (median), {MAX_SECONDS} allowed")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
