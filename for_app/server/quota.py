"""How much all uploads together may take on the disk. Gradio deletes each within the hour, see `build_app`."""

import re
from collections.abc import Iterable
from pathlib import Path

import anyio.to_thread
from starlette.types import ASGIApp, Receive, Scope, Send

from for_app.gate import refuse

MAX_UPLOADS_BYTES = 1_000_000_000
MAX_UPLOADS_AT_ONCE = 8


class UploadQuota:
    """ASGI middleware that deletes the oldest uploads when a new one would be too much.

    The newest upload always finds room, so that whoever fills the quota keeps nobody from searching by an image.

    files: the uploads so far, as Gradio counts them.
    """

    def __init__(self, app: ASGIApp, files: Iterable[str], max_bytes: int = MAX_UPLOADS_BYTES) -> None:
        self._app, self._files, self._max_bytes = app, files, max_bytes
        self._coming: list[int] = []  # bytes of each upload that is on its way

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or not re.search(r"/upload/?$", scope["path"]):
            await self._app(scope, receive, send)
            return
        if len(self._coming) >= MAX_UPLOADS_AT_ONCE:
            await refuse(send, 429, "too many uploads at once: try again in a moment")
            return
        length = int(dict(scope["headers"]).get(b"content-length", b"0"))  # the gate has looked at it
        self._coming.append(length)
        try:
            await anyio.to_thread.run_sync(make_room, list(self._files), self._max_bytes - sum(self._coming))
            await self._app(scope, receive, send)
        finally:
            self._coming.remove(length)


def make_room(files: Iterable[str], max_bytes: int) -> None:
    """Delete the oldest of these files until the rest are no more bytes than that; one that is gone is no matter."""
    found = []
    for file in map(Path, files):
        try:
            told = file.lstat()
        except OSError:
            continue
        found.append((told.st_mtime_ns, str(file), told.st_size))
    total = sum(size for _, _, size in found)
    for _, name, size in sorted(found):
        if total <= max_bytes:
            break
        Path(name).unlink(missing_ok=True)
        total -= size
