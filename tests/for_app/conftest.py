"""One page for the tests of its tabs: four methods over the same thirty scenes, in a headless browser."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from for_app.page import build_app
from for_app.serve import serve
from for_search.library.library import Library
from tests.helpers.browser import CHROMIUM, Page, open_page
from tests.helpers.pages import Served
from tests.helpers.ports import free_port
from tests.helpers.serving import end_page
from tests.helpers.tiny_index import make_library


@pytest.fixture(scope="session")
def stocked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Library, Path]:
    """A library, and the folder of its indexes."""
    folder = tmp_path_factory.mktemp("page")
    return make_library(folder), folder


@pytest.fixture(scope="module")
def served(stocked: tuple[Library, Path]) -> Iterator[Served]:
    """Started and ended in each module, because only there the warnings of ending it are expected."""
    library, folder = stocked
    app = build_app(library, allow_build=True)
    yield Served(serve(app, port=free_port()), library, folder)
    end_page(app)
    del app
    gc.collect()  # gradio leaves its event loop and sockets to the collector, which warns: better here, where it may


@pytest.fixture(scope="session")
def browser() -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("no chromium on PATH: apt-get install chromium")
    with open_page() as page:
        yield page
