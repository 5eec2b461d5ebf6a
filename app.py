"""The web page of FOR: type what you are looking for, see the images that contain it.

Without arguments it searches MiniScenes, a set of drawn scenes that FOR makes itself on the first start (some minutes,
once). To search your own photos, let it index a folder of them (needs `make install-photos`):

  python app.py --images ~/Pictures

or choose backbone and method yourself, embed and index them first:

  python -m for_eval embed --dataset folder --root ~/Pictures --backbone RN50 --method cluster-clip --out store
  python -m for_eval index store --out index
  python app.py --index index
"""

import argparse
import html
import logging
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from for_model.cli import run_command
from for_model.errors import ForError, UsageError

if TYPE_CHECKING:
    import gradio as gr

    from for_eval.search import Searcher

MIN_K, MAX_K, DEFAULT_K = 4, 48, 12
EXAMPLES = {
    "miniscenes": (
        *("umbrella", "dog", "guitar", "skateboard", "pizza", "airplane", "bicycle", "scissors"),
        *("elephant", "cake", "cactus", "robot"),
    ),
}
PHOTO_EXAMPLES = (
    *("person", "dog", "car", "a cup of coffee", "bicycle", "umbrella", "cat", "laptop", "flowers"),
    "a child with a ball",
)

_CSS = """
#head .html-container, #status .html-container, #about .html-container { padding: 0; }
#head h1 { font-size: 1.7rem; letter-spacing: .02em; margin: 0; }
#head p { margin: 0; }
#ask { gap: 8px; }
#line { align-items: center; }
#status { color: var(--neutral-500); overflow-wrap: anywhere; }
.dark #status, .dark #about dt { color: var(--neutral-400); }
#status b, .dark #status b { color: var(--body-text-color); }
#gallery { border: 0; background: none; box-shadow: none; }
#gallery .grid-wrap { max-height: none; min-height: 0; overflow: visible; padding: 0; }
#gallery .grid-container { grid-template-columns: repeat(auto-fill, minmax(180px, 1fr)); grid-auto-rows: auto; }
#gallery .thumbnail-lg { aspect-ratio: auto; height: auto; }
#gallery .thumbnail-lg > img { aspect-ratio: 1; height: auto; border-radius: 0; }
#gallery .grid-container .caption-label {
  position: static; max-width: none; border: 0; padding: 4px 8px; background: none; white-space: normal;
  color: var(--body-text-color); font-variant-numeric: tabular-nums; opacity: 1;
}
#about dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .3rem 1.2rem; margin: 0; }
#about dt { color: var(--neutral-500); }
#about dd { margin: 0; overflow-wrap: anywhere; }
#about ul { margin: 0; padding-left: 1.2rem; max-height: 20rem; overflow-y: auto; }
@media (max-width: 600px) {
  #gallery .grid-container { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  #ask > :first-child { min-width: 0 !important; }
  #ask { flex-wrap: nowrap; }
  #line > *, #k { flex: 1 1 100% !important; }
}
"""

# Keeps the address bar at the search that is shown, so that it can be bookmarked and passed on.
_PUT_IN_ADDRESS = """(query, k) => {
  const url = new URL(window.location.href);
  if (query.trim()) { url.searchParams.set("q", query); url.searchParams.set("k", k); }
  window.history.replaceState(null, "", url);
}"""


def build_app(searcher: "Searcher") -> "gr.Blocks":
    """The page that searches one index. The query in its address, `/?q=umbrella&k=24`, is shown when it opens.

    Also gives the API endpoint `search(query, k)`, see `api_search`.
    """
    _keep_gradio_quiet()
    import gradio as gr

    from for_eval.presentation import MAX_QUERY_CHARACTERS, about_html

    examples = EXAMPLES.get(searcher.index.dataset, PHOTO_EXAMPLES)
    with gr.Blocks(title="FOR: find objects in images", analytics_enabled=False, delete_cache=(3600, 86400)) as app:
        gr.HTML(
            "<h1>FOR</h1><p>Finds the images that contain an object, named in your own words.</p>",
            elem_id="head",
        )
        with gr.Row(elem_id="ask"):
            query = gr.Textbox(
                placeholder="What are you looking for? A name, or a sentence",
                max_length=MAX_QUERY_CHARACTERS,
                label="Search for",
                show_label=False,
                container=False,
                autofocus=True,
                scale=6,
                elem_id="query",
            )
            button = gr.Button("Search", variant="primary", scale=0, min_width=110)
        chips = gr.Dataset(
            components=[query],
            samples=[[example] for example in examples],
            samples_per_page=len(examples),
            label="Try",
            show_label=False,
            elem_id="chips",
        )
        with gr.Row(elem_id="line"):
            status = gr.HTML(elem_id="status")
            k = gr.Slider(MIN_K, MAX_K, DEFAULT_K, step=1, label="Images", scale=0, min_width=260, elem_id="k")
        gallery = gr.Gallery(
            label="Images, best first: rank and score",
            show_label=False,
            object_fit="contain",
            columns=6,
            height="auto",
            buttons=["fullscreen"],
            interactive=False,
            elem_id="gallery",
        )
        with gr.Accordion("This index", open=False):
            gr.HTML(about_html(searcher.index), elem_id="about")
        _connect(app, searcher, _Parts(query, button, chips, k, status, gallery), examples[0])
    return app


@dataclass(frozen=True)
class _Parts:
    """The page's components that events read or write."""

    query: "gr.Textbox"
    button: "gr.Button"
    chips: "gr.Dataset"
    k: "gr.Slider"
    status: "gr.HTML"
    gallery: "gr.Gallery"


def _connect(app: "gr.Blocks", searcher: "Searcher", parts: _Parts, first_query: str) -> None:
    """Connect the page's events with the searcher, and add the API endpoint."""
    import gradio as gr

    from for_eval.presentation import answer, api_search, clean_query

    def show(text: str, count: float) -> tuple[Any, Any]:
        try:
            found = answer(searcher, text or "", int(count))
        except ForError as error:
            gr.Warning(html.escape("Type what you are looking for" if not (text or "").strip() else str(error)))
            return gr.skip(), gr.skip()
        return found.pictures, found.status_html

    def show_example(chosen: list[str], count: float) -> tuple[Any, ...]:
        return chosen[0], *show(chosen[0], count)

    def open_page(request: gr.Request) -> tuple[Any, ...]:
        asked = str(request.query_params.get("q") or "").strip() or first_query
        count = _count(str(request.query_params.get("k")))
        return clean_query(asked), count, *show(asked, count)

    def search(query: str, k: int = DEFAULT_K) -> dict:
        """The images that match a text, best first: rank, id, score, and the number of the embedding that matched."""
        try:
            return api_search(searcher, query, k)
        except ForError as error:
            raise gr.Error(str(error), print_exception=False) from error

    p = parts
    private: dict[str, Any] = {"api_visibility": "private", "show_progress_on": p.gallery, "show_progress": "minimal"}
    asked = [p.query, p.k]
    shown = [p.gallery, p.status]
    app.load(open_page, None, [p.query, p.k, *shown], **private)
    searched = gr.on(
        [p.query.submit, p.button.click, p.k.input], show, asked, shown, trigger_mode="always_last", **private
    )
    chosen = p.chips.click(show_example, [p.chips, p.k], [p.query, *shown], **private)
    for event in (searched, chosen):
        event.success(None, asked, None, js=_PUT_IN_ADDRESS)
    gr.api(search, api_name="search")
    app.queue(default_concurrency_limit=8)


def _count(wanted: str) -> int:
    """The number of images that a link asks for, within the slider's range; DEFAULT_K for anything else."""
    if not (wanted.isascii() and wanted.isdigit() and len(wanted) < 10):
        return DEFAULT_K
    return min(max(int(wanted), MIN_K), MAX_K)


def _keep_gradio_quiet() -> None:
    """No telemetry, whatever `import gradio` or `launch` would send otherwise. Must come before gradio is imported."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    logging.getLogger("httpx").setLevel(logging.WARNING)


def serve(app: "gr.Blocks", host: str = "127.0.0.1", port: int = 7860, share: bool = False) -> str:
    """Start the server in the background. Returns the page's address; `app.close()` ends it.

    share: also make a public link through gradio's servers, and print it.
    Raises UsageError when the address can't be had.
    """
    _check_address(host, port)
    try:
        _, url, shared = app.launch(
            server_name=host,
            server_port=port,
            share=share,
            prevent_thread_lock=True,
            quiet=True,
            theme=_theme(),
            css=_CSS,
            footer_links=["api"],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            max_file_size="1kb",  # nothing is uploaded here
        )
    except OSError as error:
        raise UsageError(f"can't serve on {host} port {port} ({error}): choose another with --port") from error
    if share and not shared:
        raise UsageError("no public link could be made, is there an internet connection? Leave --share out")
    return url


def _theme() -> "gr.Theme":
    """Gradio's own, with fonts that it serves itself; its own choice of a semibold font file lacks most letters."""
    import gradio as gr

    fonts = gr.themes.utils.fonts
    return gr.themes.Default(
        primary_hue="teal",
        font=(fonts.LocalFont("Source Sans Pro", weights=(400, 700)), "system-ui", "sans-serif"),
        font_mono=("ui-monospace", "Consolas", "monospace"),
    ).set(
        # dark enough for white letters
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
    )


def _check_address(host: str, port: int) -> None:
    """Raise UsageError when no server can listen there: cheaper to find out before an index is made or opened."""
    if not 1 <= port <= 65535:
        raise UsageError(f"--port {port}: expected 1 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise UsageError(
            f"can't serve on {host} port {port} ({error.strerror or error}): choose another with --port or --host"
        ) from error


def _searcher(
    index: Path | None, image_root: Path | None, weights: str | None, images: Path | None = None
) -> "Searcher":
    """The searcher of an index, of a folder of images, or of the default index; the last two are made on first use."""
    from for_eval.default_index import DEFAULT_METHOD, default_index
    from for_eval.search import load_searcher
    from for_model.clip_method import build_method

    if image_root is not None and not image_root.is_dir():
        raise UsageError(f"--image-root {image_root} is not a folder: give the one that the images lie in")
    if images is not None:
        if index is not None or image_root is not None or weights is not None:
            raise UsageError("--images makes its own index with photo-lite: leave --index, --image-root, --weights out")
        from for_eval.folder_index import PHOTO_METHOD, folder_index
        from for_model import photo_lite

        method = build_method(PHOTO_METHOD, photo_lite.NAME)
        return load_searcher(folder_index(images, method), method=method)
    if index is not None:
        return load_searcher(index, weights=weights, image_root=image_root)
    if image_root is not None:
        raise UsageError("--image-root belongs to an index of your own: give that with --index")
    method = build_method(DEFAULT_METHOD, weights=weights)
    return load_searcher(default_index(method=method), method=method)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=Path, metavar="DIR", help="an index of your own (default: the built-in scenes)")
    parser.add_argument("--images", type=Path, metavar="DIR", help="a folder of photographs, to index with photo-lite")
    parser.add_argument("--image-root", type=Path, metavar="DIR", help="where the images are now, if they have moved")
    parser.add_argument("--weights", metavar="FILE", help="the weights' file, for an index that was made from one")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets your network in (default: this machine only)")
    parser.add_argument("--port", type=int, default=7860, help="default 7860")
    parser.add_argument(
        "--share",
        action="store_true",
        help="make a public link through gradio's servers: whoever has it can search and see your images",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the page until Ctrl-C. Returns 0, or 2 with one line on stderr for what the user can mend."""
    arguments = _parser().parse_args(argv)
    return run_command(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    _check_address(arguments.host, arguments.port)
    searcher = _searcher(arguments.index, arguments.image_root, arguments.weights, arguments.images)
    if not searcher.image_root.is_dir():
        print(f"the images are no longer at {searcher.image_root}: give --image-root to see them", file=sys.stderr)
    app = build_app(searcher)
    url = serve(app, arguments.host, arguments.port, arguments.share)
    print(f"{len(searcher.index.images):,} images to search at {url} (Ctrl-C ends it)", flush=True)
    app.block_thread()


if __name__ == "__main__":
    sys.exit(main())
