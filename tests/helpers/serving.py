"""A page served for real on this machine, for tests, and what a program without `gradio_client` sends to it."""

import asyncio
import contextlib
import gc
import json
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.error import HTTPError

import gradio as gr

from for_app.page import build_app
from for_app.serve import serve
from for_search.library.library import Library
from tests.helpers.patience import PATIENCE_S
from tests.helpers.ports import free_port


@contextlib.contextmanager
def served_page(library: Library) -> Iterator[str]:
    """The address of a page over a library; ended on leaving."""
    app = build_app(library)
    try:
        yield serve(app, port=free_port())
    finally:
        end_page(app)
        del app
        gc.collect()  # gradio leaves sockets to the collector, which warns: better here


def end_page(app: gr.Blocks) -> None:
    """End a page and all that it leaves running or open, however long that takes on a busy machine."""
    app.close()
    app.server.thread.join()  # gradio waits five seconds, and lets it run on
    close_builders_loop()


def close_builders_loop() -> None:
    """Close what building a page leaves open: Gradio gives the thread that builds one a loop, which the collector would
    find in some much later test."""
    with contextlib.suppress(RuntimeError):  # where there is none
        asyncio.get_event_loop_policy().get_event_loop().close()
    asyncio.set_event_loop(None)


def ask(url: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    """The status and body of a request, whatever the status: a POST if there is a body to send."""
    request = urllib.request.Request(f"{url.rstrip('/')}{path}", body, headers or {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
            return response.status, response.read()
    except HTTPError as refused:
        with refused:
            return refused.code, refused.read()


def call(url: str, endpoint: str, data: Any) -> tuple[str, Any]:
    """Call an endpoint over plain HTTP. Returns `complete` and its answer, or `error` and what is said about it."""
    status, answer = ask(url, f"/gradio_api/call/{endpoint}", json.dumps({"data": data}).encode())
    if status != 200:
        return "error", answer.decode()
    _, stream = ask(url, f"/gradio_api/call/{endpoint}/{json.loads(answer)['event_id']}")
    event, _, rest = stream.decode().strip().rpartition("event: ")[2].partition("\n")
    said = json.loads(rest.partition("data: ")[2])
    return event, said[0] if event == "complete" else said


def upload(url: str, name: str, content: bytes) -> tuple[int, bytes]:
    """Upload a file as a browser does. The body of a success is a JSON list of the file's path on the server."""
    boundary = "----for-test"
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n'
    body = (
        f"{head}Content-Type: application/octet-stream\r\n\r\n".encode() + content + f"\r\n--{boundary}--\r\n".encode()
    )
    return ask(url, "/gradio_api/upload", body, {"content-type": f"multipart/form-data; boundary={boundary}"})
