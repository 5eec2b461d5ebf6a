"""One page for the tests of its tabs: four methods over the same thirty scenes, in a headless browser."""

import gc
from collections.abc import Iterator

import pytest
from browser import CHROMIUM, Page, open_page
from pages import Served
from test_app import free_port
from tiny_index import make_library

from app import serve
from for_app.page import build_app


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("page")
    library = make_library(folder)
    app = build_app(library, allow_build=True)
    yield Served(serve(app, port=free_port()), library, folder)
    app.close()
    del app
    gc.collect()  # gradio leaves its event loop and sockets to the collector, which warns: better here, where it may


@pytest.fixture(scope="session")
def browser() -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("no chromium on PATH: apt-get install chromium")
    with open_page() as page:
        yield page
