"""Write the README's picture: the page at its default index, in a real browser.

python tests/screenshot.py docs/search.png --query umbrella
"""

import argparse
from pathlib import Path
from urllib.parse import quote

from browser import open_page

from app import DEFAULT_K, build_app, serve
from for_eval.default_index import default_index
from for_eval.search import load_searcher

LOADED = """document.querySelectorAll("#gallery img").length == {k}
  && [...document.querySelectorAll("#gallery img")].every(image => image.complete && image.naturalWidth)"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--query", default="umbrella")
    parser.add_argument("--port", type=int, default=7861)
    arguments = parser.parse_args()
    app = build_app(load_searcher(default_index()))
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
