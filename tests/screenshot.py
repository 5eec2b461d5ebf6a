"""Write the README's picture: the page at its default index, in a real browser.

python tests/screenshot.py docs/search.png --query umbrella
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from browser import open_page

from app import DEFAULT_K, build_app, serve
from for_eval.default_index import default_index
from for_eval.folder_index import PHOTO_METHOD, folder_index
from for_eval.search import Searcher, load_searcher
from for_model import photo_lite
from for_model.clip_method import build_method

LOADED = """document.querySelectorAll("#gallery img").length == {k}
  && [...document.querySelectorAll("#gallery img")].every(image => image.complete && image.naturalWidth)"""


def _searcher(images: Path | None) -> Searcher:
    if images is None:
        return load_searcher(default_index())
    method = build_method(PHOTO_METHOD, photo_lite.NAME)
    return load_searcher(folder_index(images, method), method=method)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--query", default="umbrella")
    parser.add_argument("--images", type=Path, help="a folder of photographs, searched with photo-lite")
    parser.add_argument("--port", type=int, default=7861)
    arguments = parser.parse_args(argv)
    app = build_app(_searcher(arguments.images))
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
