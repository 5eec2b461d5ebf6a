"""Write the README's picture: the page at its default index, in a real browser.

python tests/screenshot.py docs/search.png --query umbrella
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from browser import open_page

from app import serve
from for_app.page import build_app
from for_app.search_tab import DEFAULT_K
from for_eval.folder_index import PHOTO_METHOD, folder_index
from for_eval.library import Library
from for_eval.search import load_searcher
from for_model import photo_lite
from for_model.clip_method import build_method

LOADED = """document.querySelectorAll("#gallery img").length == {k}
  && [...document.querySelectorAll("#gallery img")].every(image => image.complete && image.naturalWidth)"""


def _library(images: Path | None) -> Library:
    if images is None:
        return Library.built_in()
    method = build_method(PHOTO_METHOD, photo_lite.NAME)
    library = Library()
    library.add_opened(load_searcher(folder_index(images, method), method=method))
    return library


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--query", default="umbrella")
    parser.add_argument("--images", type=Path, help="a folder of photographs, searched with photo-lite")
    parser.add_argument("--port", type=int, default=7861)
    arguments = parser.parse_args(argv)
    app = build_app(_library(arguments.images))
    url = serve(app, port=arguments.port)
    try:
        with open_page() as page:
            page.open(f"{url}?q={quote(arguments.query)}", width=1280, height=800)
            page.wait(LOADED.format(k=DEFAULT_K))
            page.screenshot(arguments.out)
    finally:
        app.close()


if __name__ == "__main__":
    main()
