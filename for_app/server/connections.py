"""How long a connection may take: 200 that send a byte a minute would otherwise stay open for ever."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADERS_S = 10.0  # for all headers of a request
BODY_S = 20.0  # for a body, and longer the more of it is there
BODY_BYTES_PER_S = 50_000  # slower than a bad mobile connection
MAX_CONNECTIONS = 500  # at once; below the 1,024 files that a process may usually open
_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class TimedProtocol(H11Protocol):
    """Uvicorn's protocol with a time limit for headers and one for bodies.

    Uvicorn ends only connections that are idle after a request. Whoever is too slow is told 408 where no answer has
    begun, and the connection is closed. Answers have no limit: Gradio's streams of events last as long as their page.
    """

    headers_s = HEADERS_S
    body_s = BODY_S

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._timer: asyncio.TimerHandle | None = None
        self._awaited: Any = None  # the state of h11's that the timer is for
        self._since = 0.0
        self._received = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
            return
        self._watch()

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Start the clock anew when something else is awaited than before."""
        state = self.conn.their_state
        if state is self._awaited:
            return
        self._stop()
        self._awaited, self._since, self._received = state, self.loop.time(), 0
        if state in (h11.IDLE, h11.SEND_BODY):
            self._timer = self.loop.call_at(self._deadline(), self._check)

    def _deadline(self) -> float:
        if self._awaited is h11.IDLE:
            return self._since + self.headers_s
        return self._since + self.body_s + self._received / BODY_BYTES_PER_S

    def _check(self) -> None:
        if self.transport.is_closing():
            return
        if self.flow.read_paused:  # it is this server that is slow
            self._since = self.loop.time()
        deadline = self._deadline()
        if deadline > self.loop.time():
            self._timer = self.loop.call_at(deadline, self._check)
            return
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            self.transport.write(_TOO_SLOW)
        self.transport.close()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
