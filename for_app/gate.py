"""What never reaches Gradio: requests that would make this server fetch from other machines, and bodies without end.

Gradio fetches a file whose path is an address, wherever a visitor writes one, and passes on what it finds there. FOR
needs nothing from elsewhere, so such requests are refused before they are looked at any further.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY_BYTES = 1_000_000  # of anything but an upload; a list of 1,000 names of 100 characters fits
MAX_UPLOAD_BODY_BYTES = 22_000_000  # the largest file and what is around it
_MAX_THROWN_AWAY_BYTES = 200_000_000

_ADDRESS = re.compile(r"\s*[a-z][a-z0-9+.-]+:/", re.IGNORECASE)
_FETCHES = re.compile(r"/proxy=|/file[=/]\s*[a-z][a-z0-9+.-]+:/", re.IGNORECASE)
_CONTROLS = re.compile(r"[\x00-\x1f\x7f]")  # Gradio makes an address of the path, in an event that is long accepted


class Gate:
    """ASGI middleware around Gradio's server."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif _CONTROLS.search(scope["path"]):
            await refuse(send, 400, "a path has no control characters")
        elif _FETCHES.search(scope["path"]):
            await refuse(send, 403, "nothing is fetched from other machines here")
        elif scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
        elif re.search(r"/upload/?$", scope["path"]):
            await self._upload(scope, receive, send)
        else:
            await self._post(scope, receive, send)

    async def _post(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the whole body, and pass it on if it is short and names no file of another machine."""
        body = b""
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return  # the visitor has gone
            body += message.get("body", b"")
            if len(body) > MAX_BODY_BYTES:
                await refuse(send, 413, f"the request is too large: at most {MAX_BODY_BYTES:,} bytes are accepted")
                return
            if not message.get("more_body"):
                break
        if any(_ADDRESS.match(path) for path in _paths(body)):
            await refuse(send, 400, "addresses are not fetched here: upload the image itself")
            return
        waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return waiting.pop() if waiting else await receive()

        await self._app(scope, replay, send)

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass an upload on as it comes, unless its header tells that it is too large; Gradio counts what comes."""
        length = dict(scope["headers"]).get(b"content-length", b"")
        if not length.isdigit():
            await refuse(send, 411, "tell the length of the upload")
        elif int(length) > MAX_UPLOAD_BODY_BYTES:
            thrown_away = 0
            while thrown_away < _MAX_THROWN_AWAY_BYTES:  # a browser that is still sending doesn't hear the answer
                message = await receive()
                thrown_away += len(message.get("body", b""))
                if not message.get("more_body"):
                    break
            await refuse(send, 413, f"the upload is too large: at most {MAX_UPLOAD_BODY_BYTES:,} bytes are accepted")
        else:
            await self._app(scope, receive, send)


def _paths(body: bytes) -> Iterator[str]:
    """Every text under a key `path`, anywhere in a JSON body; none when it isn't JSON."""
    try:
        waiting: list[Any] = [json.loads(body)]
    except (ValueError, RecursionError):
        return
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if isinstance(value.get("path"), str):
                yield value["path"]
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


async def refuse(send: Send, status: int, why: str) -> None:
    """Answer with a line, as JSON."""
    body = json.dumps({"detail": why}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})
