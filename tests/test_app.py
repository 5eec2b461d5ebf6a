"""The command that serves the page: its arguments, and what can be fetched from it."""

import gc
import socket
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError

import pytest

from for_app.__main__ import main
from for_app.page import build_app
from for_app.serve import serve
from for_model.data.miniscenes import scenes as miniscenes
from for_search.library.library import Library
from for_search.query.searcher import Searcher
from tests.helpers.paths import REPOSITORY
from tests.helpers.patience import PATIENCE_S
from tests.helpers.ports import free_port
from tests.helpers.programs import program
from tests.helpers.serving import close_builders_loop, end_page
from tests.helpers.tiny_index import make_searcher

pytestmark = [pytest.mark.slow, pytest.mark.gradio]


@dataclass(frozen=True)
class Served:
    url: str
    searcher: Searcher
    folder: Path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("app")
    searcher = make_searcher(folder)
    library = Library()
    library.add_opened(searcher)
    app = build_app(library)
    yield Served(serve(app, port=free_port()), searcher, folder)
    end_page(app)
    del app
    gc.collect()  # gradio leaves its event loop and sockets to the collector, which warns: better here, where it may


def test_no_file_of_the_machine_can_be_fetched(served: Served) -> None:
    inside = served.folder / "scenes" / "annotations" / "instances_val.json"
    for path in (inside, Path("/etc/passwd"), REPOSITORY / "app.py"):
        for route in ("file=", "gradio_api/file="):
            with pytest.raises(HTTPError) as refused:
                urllib.request.urlopen(f"{served.url}{route}{path}", timeout=PATIENCE_S)
            assert refused.value.code in (403, 404)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--index", "/nowhere"], "/nowhere"),
        (["--port", "99999"], "expected 1 to 65535"),
        (["--host", "203.0.113.7"], "--host"),
        (["--image-root", "/nowhere"], "/nowhere is not a folder"),
        (["--image-root", "."], "give that with --index"),
        (["--weights", "/nowhere.safetensors"], "/nowhere.safetensors"),
        (["--auth", "nobody"], "expected USER:PASSWORD"),
        (["--auth", ":secret"], "expected USER:PASSWORD"),
        (["--head", "/nowhere.safetensors"], "give that with --index"),
        (["--index", "/nowhere", "--head", "/nowhere.safetensors"], "no head file /nowhere.safetensors"),
    ],
)
def test_bad_arguments_end_with_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(miniscenes, "DEFAULT_COUNTS", {"val": 2})
    assert main([*arguments, *([] if "--port" in arguments else ["--port", str(free_port())])]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert said in last


def test_a_taken_port_ends_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["--port", str(taken.getsockname()[1])]) == 2
    close_builders_loop()
    error = capsys.readouterr().err
    assert "choose another with --port" in error
    assert error.count("\n") == 1


def test_the_command_serves_an_index_of_ones_own(served: Served) -> None:
    """`python app.py --index DIR`, as a user starts it; the index was made with random weights, so it must ask."""
    port = free_port()
    command = "import runpy; runpy.run_path('app.py', run_name='__main__')"
    arguments = ("--index", str(served.folder / "index"), "--port", str(port), "--weights", "random")
    with program(command, *arguments) as app:
        while not (line := app.said()[0]).endswith("\n"):
            assert not app.ended(), app.said()
            time.sleep(0.05)
        assert f"30 images to search at http://127.0.0.1:{port}" in line
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=PATIENCE_S) as response:
            assert "FOR: find objects in images" in response.read().decode()
