"""What a visitor who means harm can't do: read files, reach other machines, fill the memory, or stop the others."""

import http.client
import io
import json
import logging
import struct
import threading
import urllib.parse
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from for_app.gate import MAX_BODY_BYTES
from for_app.views.pictures import pictures_of
from for_search.library.library import Library
from for_search.query.searcher import Query, Searcher
from tests.helpers.patience import PATIENCE_S
from tests.helpers.serving import ask, call, served_page, upload
from tests.helpers.tiny_index import make_searcher

pytestmark = [pytest.mark.slow, pytest.mark.gradio]

SECRET = b"the secret of this machine"
REST = ["", None, None, None, ""]  # of what a search takes: the first index, no combination, no condition


@dataclass(frozen=True)
class Target:
    url: str
    searcher: Searcher
    folder: Path

    @property
    def linked(self) -> str:
        """The id of an image whose file is a link out of the image folder."""
        return str(self.searcher.index.images[0].id)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("attacked")
    searcher = make_searcher(folder, 12)
    (folder / "secret.txt").write_bytes(SECRET)
    Image.new("RGB", (160, 160), (255, 0, 0)).save(folder / "private.jpg")
    inside = searcher.image_path(searcher.index.images[0])
    inside.unlink()
    inside.symlink_to(folder / "private.jpg")
    library = Library()
    library.add_opened(searcher)
    with served_page(library) as url:
        yield Target(url, searcher, folder)


def raw_get(url: str, path: str) -> tuple[int, bytes]:
    """GET a path as it is written: `urllib` would tidy it up."""
    address = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=PATIENCE_S)
    try:
        connection.putrequest("GET", path, skip_accept_encoding=True)
        connection.endheaders()
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_no_file_can_be_fetched_by_its_path(target: Target) -> None:
    secret = target.folder / "secret.txt"
    up = "../" * 12
    image = target.folder / "scenes" / "val" / "000000000002.jpg"
    assert image.is_file()
    quoted = urllib.parse.quote(str(secret), safe="")
    paths = [str(secret), str(image), f"{up}{secret}", quoted, quoted.replace("%2F", "%252F"), f"file://{secret}"]
    routes = ["gradio_api/file=", "file=", "gradio_api/file/", "static/", "assets/", "svelte/", "gradio_api/stream/"]
    for route in routes:
        for path in [*paths, up.replace("/", "%2f") + quoted, up.replace(".", "%2e") + str(secret).lstrip("/")]:
            status, body = raw_get(target.url, f"/{route}{path}")
            assert status >= 300, (route, path, status)
            assert SECRET not in body
            assert not body.startswith(b"\xff\xd8")


def test_a_link_out_of_the_image_folder_shows_nothing(target: Target) -> None:
    ((shown, problem),) = pictures_of(target.searcher, target.searcher.index.images[:1])
    assert problem == "outside the image folder"
    assert (255, 0, 0) not in [colour for _, colour in shown.getcolors(1 << 16) or []]
    event, said = call(target.url, "pseudo_label", [None, target.linked, "", "", None, None])
    assert event == "error"
    assert str(target.folder) not in json.dumps(said)
    other = str(target.searcher.index.images[1].id)
    assert call(target.url, "pseudo_label", [None, other, "", "", None, 0.0])[0] == "complete"


@pytest.mark.parametrize("path", ["/etc/passwd", "{folder}/private.jpg", "{folder}/scenes/val/000000000002.jpg", ""])
@pytest.mark.parametrize("meta", [{}, {"meta": {"_type": "gradio.FileData"}}])
def test_only_an_upload_can_be_used_as_one(target: Target, path: str, meta: dict[str, Any]) -> None:
    named = path.format(folder=target.folder)
    event, said = call(target.url, "pseudo_label", [{"path": named, **meta}, "", "", "", None, None])
    assert event == "error"
    assert "root:" not in json.dumps(said)
    assert "labels" not in json.dumps(said)


def test_nothing_is_fetched_from_elsewhere(target: Target) -> None:
    asked: list[str] = []

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/x.png"
        for path in (
            f"file={address}",
            f"file={address.replace('http', 'HTTP')}",
            f"proxy={address}",
            f"file/{address}",
        ):
            assert raw_get(target.url, f"/gradio_api/{path}")[0] == 403, path
        meta = {"_type": "gradio.FileData"}
        for wrong in (address, address.replace("http", "HtTp"), "https://203.0.113.7/x.png", "ftp://203.0.113.7/x"):
            for data in ([{"path": wrong, "meta": meta}], [[{"a": {"path": wrong, "meta": meta}}]]):
                event, said = call(target.url, "search", [*data, 3, *REST])
                assert event == "error"
                assert "not fetched here" in str(said)
        server.shutdown()
    assert asked == []


def png_bomb(side: int) -> bytes:
    """A PNG of side x side black pixels in a few kB."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    row = b"\0" * (1 + (side + 7) // 8)
    packer = zlib.compressobj(9)
    pixels = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def jpeg() -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (160, 160, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("bomb.png", png_bomb(20_000), "too large: 20000x20000 pixels"),
        ("bomb.png", png_bomb(8_000), "too large: 8000x8000 pixels"),
        ("text.jpg", b"this is no photograph", "not an image"),
        ("page.html", b"<script>alert(1)</script>", "not an image"),
        ("drawing.svg", b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', "not an image"),
        ("cut.jpg", jpeg()[:2000], "truncated"),
        ("empty.jpg", b"", "empty file"),
    ],
)
def test_what_is_no_image_or_too_large_is_refused_with_the_reason(
    target: Target, name: str, content: bytes, said: str
) -> None:
    status, body = upload(target.url, name, content)
    assert status == 200
    (path,) = json.loads(body)
    event, error = call(target.url, "pseudo_label", [{"path": path}, "", "", "", None, None])
    assert event == "error"
    assert said in str(error)
    assert path not in str(error)
    connection = http.client.HTTPConnection(*urllib.parse.urlsplit(target.url).netloc.split(":"), timeout=PATIENCE_S)
    connection.request("GET", f"/gradio_api/file={urllib.parse.quote(path)}")
    served = connection.getresponse()
    if name.endswith(("html", "svg")):  # a browser keeps it as a file, and runs nothing of it
        assert served.getheader("content-disposition", "").startswith("attachment")
        assert served.getheader("content-type") == "application/octet-stream"
    served.read()
    connection.close()


def test_a_sound_upload_is_labelled_and_a_large_one_refused(target: Target) -> None:
    (path,) = json.loads(upload(target.url, "../../x.jpg", jpeg())[1])
    assert Path(path).name == "x.jpg"
    event, answer = call(target.url, "pseudo_label", [{"path": path}, "", "", "", ["dog", "cat"], 0.0])
    assert event == "complete"
    assert {label["name"] for label in answer["labels"]} == {"dog", "cat"}
    assert upload(target.url, "large.jpg", b"\xff" * 21_200_000)[0] == 413
    assert upload(target.url, "larger.jpg", b"\xff" * 23_000_000)[0] == 413


HOSTILE = {
    "long": "umbrella " * 11_112,
    "emoji": "☂️ 👩‍👩‍👧‍👦 🦄",
    "right to left": "\u202eמטריה مظلة",
    "html": "<img src=x onerror=alert(1)><script>alert(2)</script>",
    "braces": "{} {0} {name} {{}} %s %n ${x} {{7*7}}",
    "nul": "dog\x00cat\x1b[31m",
    "surrogate": "dog \ud800",
    "combining": "a" + "\u0301" * 5000,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_text_is_answered_as_text(target: Target, kind: str) -> None:
    text = HOSTILE[kind]
    event, answer = call(target.url, "search", [text, 3, *REST])
    assert event == "complete", answer
    assert len(answer["hits"]) == 3
    readable = text.encode("utf-8", "replace").decode()
    assert answer["query"] == readable[: len(answer["query"])]
    event, answer = call(
        target.url, "pseudo_label", [None, str(target.searcher.index.images[1].id), "", "own", [text, "dog"], 0]
    )
    if kind in ("long", "combining"):
        assert event == "error"
        assert "characters" in str(answer)
    else:
        assert event == "complete", answer
        assert {label["name"] for label in answer["labels"]} == {readable.strip(), "dog"}


@pytest.mark.parametrize(
    "data",
    [
        ["", 3],
        [" \n\t", 3],
        ["dog", 0],
        ["dog", -5],
        ["dog", 10**9],
        ["dog", "many"],
        ["dog", None],
        [None, 3],
        [{}, 3],
        [],
    ],
)
def test_what_makes_no_sense_gets_one_line(target: Target, data: list[Any]) -> None:
    event, said = call(target.url, "search", [*data, *REST])
    assert event == "error"
    for word in ("Traceback", str(target.folder), ".py"):
        assert word not in json.dumps(said)
    assert call(target.url, "search", ["dog", 2, *REST])[0] == "complete"


def test_bodies_have_an_end(target: Target) -> None:
    large = json.dumps({"data": ["a" * (MAX_BODY_BYTES + 10), 3]}).encode()
    assert ask(target.url, "/gradio_api/call/search", large)[0] == 413
    deep = b'{"data": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert ask(target.url, "/gradio_api/call/search", deep)[0] >= 400
    assert ask(target.url, "/gradio_api/call/search", b"\xff\xfe{")[0] >= 400
    assert call(target.url, "search", ["dog", 2, *REST])[0] == "complete"


def test_an_error_in_one_request_is_logged_and_leaves_the_others_alone(
    target: Target, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = Searcher.text_query

    def text_query(self: Searcher, text: str) -> Query:
        if text == "boom":
            raise RuntimeError(f"a private detail of {target.folder}")
        return real(self, text)

    monkeypatch.setattr(Searcher, "text_query", text_query)
    with caplog.at_level(logging.ERROR), ThreadPoolExecutor(8) as pool:
        queries = ["boom" if i % 3 == 0 else f"dog {i}" for i in range(12)]
        answers = list(pool.map(lambda text: call(target.url, "search", [text, 2, *REST]), queries))
    for text, (event, said) in zip(queries, answers, strict=True):
        assert event == ("error" if text == "boom" else "complete"), said
        if text == "boom":
            assert "something went wrong" in str(said)
            assert "private" not in str(said)
            assert "\n" not in str(said)
    traces = [record for record in caplog.records if record.exc_info and "private detail" in str(record.exc_info[1])]
    assert len(traces) == 4
