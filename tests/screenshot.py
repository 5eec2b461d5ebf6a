"""Write the pictures of README and docs: the page at its default index, in a real browser.

python -m tests.screenshot docs                              # every tab, and an opened result
python -m tests.screenshot docs/search.png --query umbrella  # one
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from for_app.page import build_app
from for_app.serve import serve
from for_app.tabs.compare import DEFAULT_K as COMPARED
from for_app.tabs.search import DEFAULT_K
from for_model.backbones import photo_packages
from for_model.methods.build import build_method
from for_search.library.folder_index import PHOTO_METHOD, folder_index
from for_search.library.library import Library
from for_search.query.searcher import load_searcher
from tests.helpers.browser import Page, open_page

_SHOWN = "[...document.querySelectorAll('{where} img')].filter(i => i.complete && i.naturalWidth).length"
LOADED = f"{_SHOWN.format(where='#gallery')} == {DEFAULT_K}"
# picture -> the tab's label, and what is true once it shows all that it should
TABS = {
    "search": ("Search", LOADED),
    "compare": ("Compare", f"{_SHOWN.format(where='#comparison')} == {4 * COMPARED}"),
    "labels": ("Pseudo-labels", "document.querySelector('#label-drawing img')?.naturalWidth"),
    "leaderboard": ("Leaderboard", "document.querySelector('#ablations .charts svg')"),
    "index": ("Index", "document.querySelector('#about').innerText.includes('Backbone')"),
}


def _library(images: Path | None) -> Library:
    if images is None:
        return Library.built_in()
    method = build_method(PHOTO_METHOD, photo_packages.NAME)
    library = Library()
    library.add_opened(load_searcher(folder_index(images, method), method=method))
    return library


def _settle(page: Page, condition: str) -> None:
    """Wait until a condition is true, and for what moves on the page to come to rest."""
    page.wait(condition, seconds=300)
    time.sleep(1)


def _shrunk(page: Page, out: Path) -> None:
    """Write what the window shows with 256 colours, a third of the bytes: the repository keeps these pictures."""
    page.screenshot(out)
    with Image.open(out) as image:
        small = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    small.save(out, optimize=True)


def _evidence(page: Page, out: Path) -> None:
    """Open the best result and write a picture of where it matched."""
    page.click("#gallery .thumbnail-lg")
    _settle(page, f"{_SHOWN.format(where='#evidence')} == 2")
    page.value("document.querySelector('#evidence').scrollIntoView({ block: 'center' })")
    time.sleep(1)
    _shrunk(page, out)
    page.click("#close")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a .png for the Search tab, or a folder for all")
    parser.add_argument("--query", default="umbrella")
    parser.add_argument("--images", type=Path, help="a folder of photographs, searched with photo-lite")
    parser.add_argument("--port", type=int, default=7861)
    arguments = parser.parse_args(argv)
    out: Path = arguments.out
    library = _library(arguments.images)
    library.searcher(library.default).search(arguments.query)  # so that the times shown are those of a server that runs
    app = build_app(library, allow_build=True)
    url = serve(app, port=arguments.port)
    try:
        with open_page() as page:
            page.open(f"{url}?q={quote(arguments.query)}", width=1280, height=800)
            _settle(page, LOADED)
            if out.suffix == ".png":
                page.screenshot(out)
                return
            _evidence(page, out / "evidence.png")
            for name, (label, loaded) in TABS.items():
                page.value("window.scrollTo(0, 0)")
                page.click("[role=tab]", label)
                _settle(page, loaded)
                _shrunk(page, out / f"{name}.png")
    finally:
        app.close()


if __name__ == "__main__":
    main()
