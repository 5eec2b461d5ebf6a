import asyncio
import json
from typing import Any

import pytest

from for_app.gate import MAX_BODY_BYTES, MAX_UPLOAD_BODY_BYTES, Gate


def send_through(
    method: str, path: str, parts: list[bytes] | None = None, headers: list[tuple[bytes, bytes]] | None = None
) -> tuple[int, bytes | None]:
    """The status, and the body that got through to the application, None if it wasn't reached."""
    reached: list[bytes] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while method == "POST":
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        reached.append(body)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    pieces = parts or [b""]
    waiting = [
        {"type": "http.request", "body": part, "more_body": number < len(pieces)}
        for number, part in enumerate(pieces, start=1)
    ]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return waiting.pop(0) if waiting else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": headers or []}
    asyncio.run(Gate(application)(scope, receive, send))  # type: ignore[arg-type]
    return sent[0]["status"], reached[0] if reached else None


def test_what_is_sound_passes_unchanged() -> None:
    body = json.dumps(
        {"data": ["http://is.text/here", {"path": "/tmp/gradio/x.png", "url": "http://own/file=x"}]}
    ).encode()
    assert send_through("POST", "/gradio_api/call/search", [body[:9], body[9:]]) == (200, body)
    assert send_through("POST", "/gradio_api/call/search", [b"not json"]) == (200, b"not json")
    for path in ("/", "/gradio_api/file=/tmp/gradio/a.png", "/gradio_api/file=C:/x", "/config"):
        assert send_through("GET", path)[0] == 200


def test_a_path_with_control_characters_is_refused() -> None:
    for path in ("/a\n", "/\0", "/gradio_api/call/\x7f"):
        assert send_through("POST", path) == (400, None)


@pytest.mark.parametrize("route", ["file=", "file/", "proxy=", "x/file="])
@pytest.mark.parametrize("scheme", ["http:/", "HTTPS:/", " http:/", "ftp:/", "file:/"])
def test_addresses_in_a_path_are_refused(route: str, scheme: str) -> None:
    assert send_through("GET", f"/gradio_api/{route}{scheme}/elsewhere/x.png") == (403, None)


@pytest.mark.parametrize("address", ["http://x/y", "HTTPS://x", " http://x", "ftp://x", "gopher:/x"])
def test_files_of_other_machines_are_refused(address: str) -> None:
    for data in ([{"path": address}], [{"a": [[{"path": address, "meta": {}}]]}]):
        assert send_through("POST", "/gradio_api/run/search", [json.dumps({"data": data}).encode()]) == (400, None)
    escaped = b'{"data": [{"path": "\\u0068ttp://x"}]}'
    assert send_through("POST", "/gradio_api/run/search", [escaped]) == (400, None)


def test_long_bodies_are_refused_before_they_are_all_there() -> None:
    part = b"a" * 300_000
    assert send_through("POST", "/gradio_api/run/search", [part] * 9) == (413, None)
    assert send_through("POST", "/gradio_api/run/search", [b"a" * MAX_BODY_BYTES])[0] == 200


def test_uploads_tell_their_length_and_have_an_end() -> None:
    def header(length: int) -> list[tuple[bytes, bytes]]:
        return [(b"content-length", str(length).encode())]

    assert send_through("POST", "/gradio_api/upload", [b"x"]) == (411, None)
    assert send_through("POST", "/gradio_api/upload", [b"x"], [(b"content-length", b"-5")]) == (411, None)
    assert send_through("POST", "/gradio_api/upload", [b"x", b"y"], header(MAX_UPLOAD_BODY_BYTES + 1)) == (413, None)
    body = b"x" * (MAX_BODY_BYTES + 5)
    assert send_through("POST", "/gradio_api/upload", [body], header(len(body))) == (200, body)
