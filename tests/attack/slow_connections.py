"""Connections that send next to nothing: `python -m tests.attack.slow_connections --connections 200`.

A third of them say nothing at all, a third send a header now and then, a third a body that never ends. Meanwhile the
page is asked for again and again. What must hold: each is closed within the limits, and the page is answered.
"""

import argparse
import contextlib
import select
import socket
import sys
import time
import urllib.parse
from unittest.mock import patch

from for_app.server.connections import BODY_S, HEADERS_S, TimedProtocol
from tests.helpers.serving import ask
from tests.helpers.small_page import small_page

_BODY = b"POST /gradio_api/run/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000\r\n\r\n"
_HEADER = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
_DRIPS = (b"", b"x-a: b\r\n", b" ")


def run(connections: int, headers_s: float = HEADERS_S) -> str:
    """Open so many. Returns a line for the report; raises AssertionError for a promise that is broken.

    headers_s: the limit for headers; that for bodies is in proportion.
    """
    body_s = headers_s / HEADERS_S * BODY_S
    with (
        patch.object(TimedProtocol, "headers_s", headers_s),
        patch.object(TimedProtocol, "body_s", body_s),
        small_page() as url,
    ):
        place = urllib.parse.urlsplit(url)
        left: dict[socket.socket, bytes] = {}
        began = time.monotonic()
        for number in range(connections):
            connection = socket.create_connection((place.hostname, place.port))
            connection.sendall((b"", _HEADER, _BODY)[number % 3])
            left[connection] = _DRIPS[number % 3]
        answered, slowest_s = 0, 0.0
        try:
            while left and time.monotonic() < began + body_s + 60:
                asked = time.monotonic()
                assert ask(url, "/gradio_api/startup-events")[0] == 200
                answered, slowest_s = answered + 1, max(slowest_s, time.monotonic() - asked)
                for connection in select.select(list(left), [], [], headers_s / 10)[0]:
                    said = connection.recv(4096)
                    assert said.startswith(b"HTTP/1.1 408 "), said
                    connection.close()
                    del left[connection]
                for connection, drip in left.items():
                    with contextlib.suppress(OSError):  # one that was just closed is read from in the next round
                        connection.sendall(drip)
            lasted = time.monotonic() - began
        finally:
            for connection in left:
                connection.close()
        assert not left, f"{len(left)} slow connections are still open after {lasted:.0f} s"
    return (
        f"{connections} slow connections: {len(left)} left after {lasted:.0f} s (limits {headers_s:g} s for headers, "
        f"{body_s:g} s for bodies); {answered} requests meanwhile, the slowest {1000 * slowest_s:.0f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=200, help="how many (default 200)")
    print(run(parser.parse_args().connections))


if __name__ == "__main__":
    sys.exit(main())
