"""Write the pictures of README and docs: the page at its default index, in a real browser.

python -m tests.screenshot docs                              # every tab, and an opened result
python -m tests.screenshot shots --every                     # each at 1440 x 900 and 390 x 844, light and dark
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
from for_model.backbones import photo_packages
from for_model.methods.build import build_method
from for_search.library.folder_index import PHOTO_METHOD, folder_index
from for_search.library.library import Library
from for_search.query.searcher import load_searcher
from tests.helpers.browser import Page, open_page
from tests.helpers.pages import found

WIDE, PHONE = (1440, 900), (390, 844)
_HITS = 24
# picture -> what the address asks for beside the query, and what is true once the page shows all that it should
SHOWN = {
    "search": ("tab=search", ""),
    "evidence": ("open={best}", "document.querySelector('#viewer-heat').naturalWidth"),
    "compare": ("tab=compare", "document.querySelectorAll('#comparison .shot').length"),
    "labels": ("tab=labels", "document.querySelector('#label-drawing img')?.naturalWidth"),
    "leaderboard": ("tab=leaderboard", "document.querySelector('#boards .charts svg')"),
    "index": ("tab=index", "document.querySelector('#about').innerText.includes('Backbone')"),
}
# what a visitor clicks before there is anything to see
_CLICKED = {"evidence": "#heat", "labels": "#label-samples .grid-container button"}


def _library(images: Path | None) -> Library:
    if images is None:
        return Library.built_in()
    method = build_method(PHOTO_METHOD, photo_packages.NAME)
    library = Library()
    library.add_opened(load_searcher(folder_index(images, method), method=method))
    return library


def _show(page: Page, address: str, name: str, size: tuple[int, int], query: str, dark: bool = False) -> None:
    """Open the page at what a picture shows, and wait until it shows it and has come to rest."""
    _, condition = SHOWN[name]
    page.open("about:blank")
    page.open(address, width=size[0], height=size[1], dark=dark)
    if name in _CLICKED:
        page.click(_CLICKED[name])
    page.wait(condition or found(_HITS, query), seconds=300)
    time.sleep(1)


def _shrunk(page: Page, out: Path) -> None:
    """Write what the window shows with 256 colours, a third of the bytes: the repository keeps these pictures."""
    page.screenshot(out)
    with Image.open(out) as image:
        small = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    small.save(out, optimize=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a .png for the Search tab, or a folder for all")
    parser.add_argument("--query", default="umbrella")
    parser.add_argument("--images", type=Path, help="a folder of photographs, searched with photo-lite")
    parser.add_argument("--every", action="store_true", help="every tab at both sizes, light and dark")
    parser.add_argument("--port", type=int, default=7861)
    arguments = parser.parse_args(argv)
    out: Path = arguments.out
    library = _library(arguments.images)
    # before, so that the times shown are those of a server that runs
    best = library.searcher(library.default).search(arguments.query, 1).hits[0].image.id
    app = build_app(library, allow_build=True, own=True)
    url = serve(app, port=arguments.port)
    addresses = {
        name: f"{url}?q={quote(arguments.query)}&{asked.format(best=best)}" for name, (asked, _) in SHOWN.items()
    }
    try:
        with open_page() as page:
            if out.suffix == ".png":
                _show(page, addresses["search"], "search", WIDE, arguments.query)
                page.screenshot(out)
                return
            out.mkdir(parents=True, exist_ok=True)
            for name, address in addresses.items():
                if not arguments.every:
                    _show(page, address, name, WIDE, arguments.query)
                    _shrunk(page, out / f"{name}.png")
                    continue
                for size in (WIDE, PHONE):
                    for dark in (False, True):
                        _show(page, address, name, size, arguments.query, dark)
                        _shrunk(page, out / f"{name}-{size[0]}-{'dark' if dark else 'light'}.png")
    finally:
        app.close()


if __name__ == "__main__":
    main()
