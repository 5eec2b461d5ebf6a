"""Requests that make no sense, and what the log says of them: `python -m tests.attack.junk_requests --requests 5000`.

Each request is made at random, from sound ones that are broken in a place, to bytes that are no HTTP. What must hold:
every one is answered by a line, none by a status of 500 or more; the log has no trace; and the page is shown afterwards
as before.
"""

import argparse
import collections
import contextlib
import io
import json
import logging
import random
import socket
import sys
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from typing import Any

from tests.helpers.patience import PATIENCE_S
from tests.helpers.serving import ask
from tests.helpers.small_page import small_page

GETS = (
    "/",
    "/config",
    "/info",
    "/gradio_api/info",
    "/gradio_api/file=",
    "/gradio_api/call/search/",
    "/static/",
    "/gradio_api/queue/data?session_hash=nobody",
    "/gradio_api/stream/a/b/c/playlist.m3u8",
    "/assets/",
    "/svelte/",
    "/gradio_api/stream/a/b/c/d.ts",
    "/gradio_api/openapi.json",
    "/pwa_icon/",
    "/gradio_api/custom_component/a/b/c/d",
    "/gradio_api/deep_link?session_hash=a",
    "/monitoring/",
    "/gradio_api/token",
    "/?deep_link=",
    "/gradio_api/login_check",
    "/logout",
    "/theme.css",
    "/for/search",
    "/gradio_api/vibe-code/",
)
POSTS = (
    "/gradio_api/run/search",
    "/gradio_api/run/search_image",
    "/gradio_api/api/predict",
    "/gradio_api/queue/join",
    "/gradio_api/call/search",
    "/gradio_api/call/v2/search",
    "/gradio_api/call/search_image",
    "/gradio_api/cancel",
    "/gradio_api/reset",
    "/gradio_api/upload",
    "/gradio_api/component_server",
    "/gradio_api/process_recording",
    "/gradio_api/stream/x",
    "/gradio_api/stream/x/close",
    "/login",
    "/gradio_api/vibe-edit/",
)
TYPES = (
    "application/json",
    "text/plain",
    "multipart/form-data",
    "multipart/form-data; boundary=x",
    "application/x-www-form-urlencoded",
    "\xff",
    "",
)
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "QUERY")
LEAVES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1e308,
    2**70,
    "",
    "dog",
    "\0",
    "\ud800",
    "../etc/passwd",
    [],
    {},
    [[[]]],
    {"path": "/etc/passwd"},
    {"path": 3},
    {"__type__": "update"},
    {"path": "x", "meta": {"_type": "gradio.FileData"}},
    {"a": {"b": []}},
    "a" * 5000,
)
KEYS = (
    "data",
    "fn_index",
    "session_hash",
    "event_id",
    "trigger_id",
    "api_name",
    "event_data",
    "batched",
    "component_id",
)


ENDS = ("x", "%", "../../etc/passwd", "\0", "é" * 50, "a" * 300, "//", "=", "\n")
HEADERS = (
    "Cookie: =;;\xff",
    "Range: bytes=9-1",
    "X-Forwarded-Host: \xff[",
    "X-Forwarded-Proto: x,,y",
    "Origin: null",
    "Accept-Encoding: br;q=x",
    "X-Forwarded-For: a, b",
    "Authorization: Basic \xff",
    "If-Range: x",
)


def _value(chance: random.Random, depth: int = 0) -> Any:
    kind = chance.random()
    if depth > 3 or kind < 0.6:
        return chance.choice(LEAVES)
    if kind < 0.8:
        return [_value(chance, depth + 1) for _ in range(chance.randrange(5))]
    return {chance.choice(KEYS): _value(chance, depth + 1) for _ in range(chance.randrange(4))}


def _body(chance: random.Random) -> bytes:
    if chance.random() < 0.2:
        return chance.randbytes(chance.randrange(300))
    body: Any = {
        "data": [_value(chance) for _ in range(chance.randrange(6))],
        "fn_index": chance.choice([0, 1, 2, 3, -1, 10**6]),
        "session_hash": f"s{chance.randrange(50)}",
        "event_id": "x",
        "trigger_id": 1,
    }
    for _ in range(chance.randrange(3)):
        body[chance.choice(KEYS)] = _value(chance)
    text = json.dumps(body if chance.random() < 0.9 else _value(chance)).encode()
    return text[: chance.randrange(len(text) + 1)] if chance.random() < 0.1 else text


def junk(chance: random.Random, port: int) -> bytes:
    """One request that makes no sense, or nearly none, as it goes over the wire."""
    if chance.random() < 0.05:
        return chance.randbytes(chance.randrange(1, 200)) + b"\r\n\r\n"
    post = chance.random() < 0.6
    path = chance.choice(POSTS if post else GETS)
    if chance.random() < 0.5:
        path += urllib.parse.quote(chance.choice(ENDS))
    if chance.random() < 0.2:
        path += "?" + urllib.parse.urlencode(
            {chance.choice(KEYS): str(chance.choice(LEAVES)).encode("utf-8", "replace")}
        )
    body = _body(chance) if post else b""
    method = chance.choice(METHODS) if chance.random() < 0.1 else ("POST" if post else "GET")
    host = chance.choice(["evil.com", "", "\xff"]) if chance.random() < 0.05 else f"127.0.0.1:{port}"
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close"]
    if body or post:
        kind = chance.choice(TYPES) if chance.random() < 0.3 else TYPES[0]
        lines += [f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
    if chance.random() < 0.2:
        lines.append(chance.choice(HEADERS))
    return "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + body


def answer(port: int, request: bytes) -> int:
    """The status of the answer; 0 for none. A stream of events that begins is an answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as connection:
        connection.sendall(request)
        said = b""
        while len(said) < 12 and (part := connection.recv(4096)):
            said += part
    return int(said[9:12]) if said.startswith(b"HTTP/1.") else 0


@contextlib.contextmanager
def _logged() -> Iterator[io.StringIO]:
    """All that this process logs or writes, but for what libraries in C write."""
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    logging.getLogger().addHandler(handler)
    try:
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            yield log
    finally:
        logging.getLogger().removeHandler(handler)


def run(requests: int, seed: int) -> str:
    """Send so many. Returns a line for the report; raises AssertionError for a promise that is broken."""
    chance = random.Random(seed)
    statuses: Counter[int] = collections.Counter()
    with _logged() as log:
        with small_page() as url:
            port = int(urllib.parse.urlsplit(url).port or 0)
            for _ in range(requests):
                request = junk(chance, port)
                status = answer(port, request)
                assert 200 <= status < 500, (status, request)
                statuses[status // 100] += 1
            time.sleep(1)  # events that were begun end
            assert ask(url, "/")[0] == 200, "the page is gone"
        said = log.getvalue()
    traces = said.count("Traceback (most recent call last)")
    assert traces == 0, said[: said.find("Traceback") + 6000][-8000:]
    kinds = ", ".join(f"{count:,} of {status}xx" for status, count in sorted(statuses.items()))
    return f"{requests:,} junk requests: {kinds}; {said.count(chr(10)):,} lines in the log, {traces} traces"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=5000, help="how many (default 5000)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(run(arguments.requests, arguments.seed))


if __name__ == "__main__":
    sys.exit(main())
