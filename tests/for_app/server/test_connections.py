"""Connections that take their time, against uvicorn with a small application."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from for_app.server import connections
from for_app.server.connections import TimedProtocol


class Impatient(TimedProtocol):
    headers_s = 0.2
    body_s = 0.2


async def _echo(scope: Any, receive: Any, send: Any) -> None:
    length = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        length += len(message.get("body", b""))
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"7")]})
    await send({"type": "http.response.body", "body": f"{length:7d}".encode()})


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, int]]:
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    config = uvicorn.Config(_echo, http=Impatient, log_level="critical", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield listening.getsockname()
    server.should_exit = True
    thread.join()
    listening.close()


def _said(connection: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    connection.settimeout(20)
    said = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(4096):
            said += part
    return said


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    ],
)
def test_a_request_that_does_not_end_is_ended(address: tuple[str, int], begun: bytes) -> None:
    with socket.create_connection(address) as connection:
        connection.sendall(begun)
        assert _said(connection).startswith(b"HTTP/1.1 408 ")


def test_a_byte_now_and_then_is_no_way_around(address: tuple[str, int]) -> None:
    with socket.create_connection(address) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(200):
                connection.sendall(b"x-a: b\r\n")
                time.sleep(0.02)
            pytest.fail("it listened for four seconds")


def test_requests_that_end_are_answered_one_after_the_other(
    address: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "BODY_BYTES_PER_S", 10)
    with socket.create_connection(address) as connection:
        for _ in range(2):
            connection.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 30\r\n\r\n")
            for _ in range(3):  # longer than the limit, but as fast as is asked for
                connection.sendall(b"0123456789")
                time.sleep(0.1)
            said = b""
            while not said.endswith(b"30"):
                part = connection.recv(4096)
                assert part
                said += part
            assert b" 200 " in said


def test_no_more_connections_than_a_process_can_hold(address: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 0)
    with socket.create_connection(address) as connection:
        assert _said(connection) == b""
