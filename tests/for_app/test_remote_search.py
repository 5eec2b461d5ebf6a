"""`search --server`: a page that is served for real answers as the index itself would."""

import gc
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from for_app.page import build_app
from for_app.serve import serve
from for_app.server.users import Users
from for_search import api
from for_search.__main__ import main
from for_search.query.hit_lines import hit_lines
from tests.helpers.pages import Served
from tests.helpers.ports import free_port
from tests.helpers.serving import end_page

pytestmark = [pytest.mark.slow, pytest.mark.gradio]


def search(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["search", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def answered(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    code, out, err = search(capsys, *arguments, "--json")
    assert (code, err) == (0, "")
    return {name: value for name, value in json.loads(out).items() if name != "latency_ms"}


def test_it_answers_as_the_page_does(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    library, other, page = served.library, served.library.names[2], ["--server", served.url]
    searcher = library.searcher(other)
    image = searcher.index.images[3]
    expected = api.search(library, "umbrella", 5)
    wanted = json.loads(json.dumps({name: value for name, value in expected.items() if name != "latency_ms"}))
    assert answered(capsys, "", "umbrella", "-k", "5", *page) == wanted
    code, out, _ = search(capsys, "", "umbrella", "-k", "5", *page)
    assert (code, out) == (0, hit_lines(expected) + "\n")
    several = answered(capsys, other, "--all", "dog", "tree", "--none", "cat", "-k", "3", *page)
    assert [thing["role"] for thing in several["hits"][0]["things"]] == ["all", "all", "none"]
    like = answered(capsys, other, "--like", str(image.id), "-k", "2", *page)
    assert like["hits"][0]["id"] == image.id
    file = answered(capsys, other, "red", "--like", str(searcher.image_path(image)), "--weight", "0", "-k", "1", *page)
    assert file["hits"][0]["id"] == image.id
    filtered = answered(capsys, other, "dog", "--where", "width > 1", "-k", "2", *page)
    assert len(filtered["hits"]) == 2


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nowhere", "dog"], "no index is called 'nowhere'"),
        (["", "dog", "-k", "0"], "k is 0"),
        (["", "dog", "--where", "colour = 1"], "can't be understood"),
        (["", "dog", "--exact", "--device", "cpu"], "--device, --exact: the page of --server decides that itself"),
        (["", "concept:none"], "concept"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    served: Served, capsys: pytest.CaptureFixture[str], arguments: list[str], line: str
) -> None:
    code, out, err = search(capsys, *arguments, "--server", served.url)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert line in err


def test_a_login(served: Served, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    app = build_app(served.library)
    url = serve(app, port=free_port(), auth=Users.only("ann", "secret"))
    try:
        code, _, err = search(capsys, "", "umbrella", "--server", url)
        assert code == 2
        assert "asks for a login: give --auth" in err
        code, _, err = search(capsys, "", "umbrella", "--server", url, "--auth", "ann:wrong")
        assert code == 2
        assert "has no such user, or another password" in err
        assert search(capsys, "", "umbrella", "--server", url, "--auth", "ann:secret")[0] == 0
        monkeypatch.setenv("FOR_AUTH", "ann:secret")
        assert search(capsys, "", "umbrella", "--server", url)[0] == 0
    finally:
        end_page(app)
        del app
        gc.collect()


class _Another(http.server.BaseHTTPRequestHandler):
    """Another server than FOR: answers everything with its `said`."""

    said = (200, b"hello")

    def do_POST(self) -> None:
        status, body = self.said
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def another(status: int, body: bytes) -> Iterator[str]:
    handler = type("Handler", (_Another,), {"said": (status, body)})
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "body"),
    [(200, b"hello"), (200, b"[]"), (200, b'{"data": [1]}'), (404, b'{"detail": "Not Found"}'), (500, b"oops")],
)
def test_what_is_no_page_of_for_is_one_line(capsys: pytest.CaptureFixture[str], status: int, body: bytes) -> None:
    with another(status, body) as url:
        code, out, err = search(capsys, "", "dog", "--server", url)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"no page of FOR answers at {url}" in err


@pytest.mark.parametrize("url", ["127.0.0.1:7860", "ftp://a", "http://", "nonsense"])
def test_an_address_that_is_none(capsys: pytest.CaptureFixture[str], url: str) -> None:
    code, _, err = search(capsys, "", "dog", "--server", url)
    assert code == 2
    assert "expected a page's address" in err


def test_nobody_there(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = search(capsys, "", "dog", "--server", f"http://127.0.0.1:{free_port()}")
    assert (code, err.count("\n")) == (2, 1)
    assert "start one with `python app.py`" in err
