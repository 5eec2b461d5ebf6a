"""Uploads together have a limit; the newest finds room."""

import os
from pathlib import Path
from typing import Any

from for_app.server.quota import MAX_UPLOADS_AT_ONCE, UploadQuota, make_room
from tests.helpers.asgi import Welcoming, request


def _files(folder: Path) -> list[str]:
    files = []
    for number in range(4):
        file = folder / f"{number}.jpg"
        file.write_bytes(bytes(100))
        os.utime(file, (1000 - number, 1000 - number))  # the last is the oldest
        files.append(str(file))
    return files


def test_the_oldest_go_first(tmp_path: Path) -> None:
    files = [*_files(tmp_path), str(tmp_path / "gone.jpg")]
    make_room(files, 400)
    assert len(list(tmp_path.iterdir())) == 4
    make_room(files, 250)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0.jpg", "1.jpg"]
    make_room(files, -1)
    assert list(tmp_path.iterdir()) == []


def test_an_upload_makes_room_for_itself(tmp_path: Path) -> None:
    quota = UploadQuota(Welcoming(), _files(tmp_path), max_bytes=450)
    assert request(quota, "POST", "/gradio_api/queue/join", {"content-length": "449"}).status == 200
    assert len(list(tmp_path.iterdir())) == 4
    assert request(quota, "POST", "/gradio_api/upload", {"content-length": "120"}).status == 200
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0.jpg", "1.jpg", "2.jpg"]


def test_few_at_once() -> None:
    statuses: list[int] = []

    class Nested:
        """Asks for one more upload while one is on its way."""

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            async def hear(message: Any) -> None:
                if message["type"] == "http.response.start":
                    statuses.append(message["status"])

            if len(statuses) == 0:
                await quota(scope, receive, hear)
            await send({"type": "http.response.start", "status": 200, "headers": []})

    quota = UploadQuota(Nested(), [])
    request(quota, "POST", "/gradio_api/upload", {"content-length": "1"})
    assert statuses == [429] + [200] * (MAX_UPLOADS_AT_ONCE - 1)
    assert quota._coming == []
