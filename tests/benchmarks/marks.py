"""How long a mark takes in the page: from the click on ✓ or ✗ until the gallery has moved, in a headless Chromium.

  python -m tests.benchmarks.marks                              # the app on its built-in scenes
  python -m tests.benchmarks.marks --index FOLDER --marks 60    # on an index of one's own
  python -m tests.benchmarks.marks --check                      # an error where the median is above 200 ms

Searches for a few names, and marks results from the top, three right ones to a wrong one; each mark learns anew from
all marks of its name, answers, and draws. Pictures that come into view load after it.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence

from tests.benchmarks.load import start_app
from tests.helpers.browser import Page, open_page

NAMES = ("umbrella", "dog", "pizza")
TARGET_MS = 200

# Counted from before the mark until the gallery without it is drawn.
_MARK = """new Promise(done => {
  const shot = document.querySelector("#grid li[data-id]"), id = shot.dataset.id, started = performance.now();
  const look = () => {
    const there = [...document.querySelectorAll("#grid li[data-id]")].some(each => each.dataset.id === id);
    if (there || document.body.matches(".searching")) requestAnimationFrame(look);
    else requestAnimationFrame(() => done(performance.now() - started));
  };
  shot.querySelector(".mark[data-kind=%s]").click();
  look();
})"""


def measure(page: Page, url: str, name: str, marks: int) -> list[float]:
    """The milliseconds of each of so many marks of what is found for a name."""
    page.open(f"{url}?q={name}&k=24")
    page.wait('document.querySelectorAll("#grid li[data-id]").length == 24 && !document.body.matches(".searching")')
    return [page.value(_MARK % ("wrong" if number % 4 == 3 else "right")) for number in range(marks)]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", metavar="FOLDER", help="for the app that is started (default: the built-in scenes)")
    parser.add_argument("--port", type=int, default=7865, help="for the app that is started")
    parser.add_argument("--marks", type=int, default=40, help="of each name")
    parser.add_argument("--check", action="store_true", help="an error where the median is above the target")
    arguments = parser.parse_args(argv)
    process = start_app(arguments.port, ["--index", arguments.index] if arguments.index else [])
    try:
        with open_page() as page:
            measure(page, f"http://127.0.0.1:{arguments.port}", NAMES[0], 2)  # the first ones import what learns
            times = [measure(page, f"http://127.0.0.1:{arguments.port}", name, arguments.marks) for name in NAMES]
    finally:
        process.terminate()
        process.wait(20)
    every = sorted(each for of_name in times for each in of_name)
    median = statistics.median(every)
    result = {
        "marks": len(every),
        "median_ms": round(median, 1),
        "p95_ms": round(every[int(0.95 * len(every))], 1),
        "last_of_a_name_ms": round(statistics.median(of_name[-1] for of_name in times), 1),
    }
    print(json.dumps(result))
    if arguments.check:
        print(f"{'OK' if median <= TARGET_MS else 'FAIL'}: the median is {median:.0f} ms, at most {TARGET_MS} allowed")
    return int(arguments.check and median > TARGET_MS)


if __name__ == "__main__":
    sys.exit(main())
