"""Many visitors at once: how long a search takes when one asks, and when twenty do.

  python -m tests.benchmarks.load                                    # starts the app on the built-in scenes
  python -m tests.benchmarks.load --url http://127.0.0.1:7860        # asks one that is running
  python -m tests.benchmarks.load --clients 20 --seconds 120 --k 12 --pause 0

Each client calls the API's `search` again and again over plain HTTP, as `gradio_client` does, with queries of its own.
Ends with an error if any request failed, or if the 95th percentile of the clients' time is more than 10 times the
median of a client alone (--ratio). The clients are people who look at what they find, if not for long: each pauses
for about half a second between two searches. With --pause 0 they are twenty programs that keep the processor busy,
and then wait about 20 / c times as long as one alone where c searches fit beside one another, however well the server
does: the figure to read is searches a second.
"""

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Sequence

from tests.helpers.paths import REPOSITORY

ALONE_SECONDS = 10
NOUNS = ("umbrella", "dog", "guitar", "pizza", "red car", "airplane", "a cat on a bed", "clock", "cake", "robot")


def search_once(url: str, query: str, k: int, session: str) -> float:
    """One search through the API, as `gradio_client` makes it: a visitor keeps the session.

    Returns its seconds; raises when it isn't answered.
    """
    started = time.perf_counter()
    body = json.dumps({"data": [query, k, "", [], [], [], ""], "session_hash": session}).encode()
    request = urllib.request.Request(f"{url}/gradio_api/call/search", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        event = json.load(response)["event_id"]
    with urllib.request.urlopen(f"{url}/gradio_api/call/search/{event}", timeout=60) as response:
        said = response.read().decode()
    if "event: complete" not in said or '"hits"' not in said:
        raise RuntimeError(f"{query!r}: {said[:200]}")
    return time.perf_counter() - started


def run_clients(url: str, clients: int, seconds: float, k: int, pause: float = 0.0) -> tuple[list[float], list[str]]:
    """Let clients ask for some seconds, each with a pause between its searches, half to one and a half times as long.

    Returns every search's seconds, and what went wrong.
    """
    times: list[float] = []
    errors: list[str] = []
    end = time.monotonic() + seconds

    def client(number: int) -> None:
        asked, session, rng = 0, uuid.uuid4().hex, random.Random(number)
        while time.monotonic() < end:
            time.sleep(pause * rng.uniform(0.5, 1.5))
            query = f"{NOUNS[(number + asked) % len(NOUNS)]} {number}-{asked}"  # never asked before
            asked += 1
            try:
                times.append(search_once(url, query, k, session))
            except Exception as error:  # counted and shown
                errors.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times, errors


def start_app(port: int, index: Sequence[str] = ()) -> "subprocess.Popen[str]":
    """The app on its built-in scenes, or with `--index FOLDER`, once it serves."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "app.py", "--port", str(port), *index],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    if "images to search" not in line:
        process.terminate()
        raise SystemExit(f"the app didn't start: {line}")
    return process


def measure(url: str, clients: int, seconds: float, k: int, pause: float, allowed: float) -> int:
    """Measure and print. Returns the exit code."""
    search_once(url, "warm up", k, "warm-up")
    alone, failed = run_clients(url, 1, min(ALONE_SECONDS, seconds), k)
    if failed or not alone:
        print(f"FAIL: one client alone had {len(failed)} errors: {failed[:1]}")
        return 1
    median = statistics.median(alone)
    print(f"one client: {len(alone):,} searches, median {1e3 * median:.1f} ms")
    times, errors = run_clients(url, clients, seconds, k, pause)
    if len(times) < 2:
        print(f"FAIL: {len(times)} searches, {len(errors)} errors: {errors[:3]}")
        return 1
    p95 = statistics.quantiles(times, n=20)[-1]
    ratio = p95 / median
    print(
        f"{clients} clients for {seconds:g} s, {pause:g} s between searches: {len(times):,} searches, "
        f"{len(times) / seconds:.1f} a second, "
        f"p50 {1e3 * statistics.median(times):.1f} ms, p95 {1e3 * p95:.1f} ms, {len(errors)} errors"
    )
    for error in errors[:3]:
        print(f"  {error}")
    ok = not errors and ratio < allowed
    print(f"{'OK' if ok else 'FAIL'}: p95 is {ratio:.1f} times the median of one client, {allowed:g} allowed")
    return 0 if ok else 1


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="of an app that is running (default: start one, on the built-in scenes)")
    parser.add_argument("--index", metavar="FOLDER", help="for the app that is started (default: the built-in scenes)")
    parser.add_argument("--port", type=int, default=7863, help="for the app that is started")
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--k", type=int, default=12, help="images a search")
    parser.add_argument("--pause", type=float, default=0.5, help="seconds between the searches of one client")
    parser.add_argument("--ratio", type=float, default=10, help="allowed of p95 to the median of one client")
    arguments = parser.parse_args(argv)
    load = (arguments.clients, arguments.seconds, arguments.k, arguments.pause, arguments.ratio)
    if arguments.url:
        return measure(arguments.url.rstrip("/"), *load)
    process = start_app(arguments.port, ["--index", arguments.index] if arguments.index else [])
    try:
        return measure(f"http://127.0.0.1:{arguments.port}", *load)
    finally:
        process.terminate()
        process.wait(20)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        print(f"resident memory of the app at its largest {peak / 1e9:.2f} GB")


if __name__ == "__main__":
    sys.exit(main())
