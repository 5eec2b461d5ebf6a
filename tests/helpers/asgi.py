"""Requests to an ASGI application in this process, and one that answers them all."""

import asyncio
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Heard:
    """What came back."""

    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""


class Welcoming:
    """An application that answers every request with a status and headers."""

    def __init__(self, status: int = 200, headers: list[tuple[bytes, bytes]] | None = None) -> None:
        self.status, self.headers = status, headers or []
        self.reached: list[dict[str, Any]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.reached.append(scope)
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        await send({"type": "http.response.body", "body": b"welcome"})


def request(
    application: Any,
    method: str = "GET",
    path: str = "/",
    headers: dict[str, str] | list[tuple[str, str]] | None = None,
    body: bytes = b"",
    client: str = "192.0.2.1",
) -> Heard:
    """Send one request, and wait for the whole answer."""
    heard = Heard()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            heard.status, heard.headers = message["status"], list(message["headers"])
        else:
            heard.body += message.get("body", b"")

    pairs = list(headers.items()) if isinstance(headers, dict) else headers or []
    raw = [(key.lower().encode(), value.encode("latin-1")) for key, value in pairs]
    scope = {"type": "http", "method": method, "path": path, "headers": raw, "client": (client, 1)}
    asyncio.run(application(scope, receive, send))
    return heard
