"""The page: a bar to search with, and a tab for each thing that can be done with an index.

Searching, comparing and the leaderboard are plain HTML and the scripts in `static`, which ask the routes in `routes`;
Pseudo-labels and Index are Gradio's. Two hidden fields tell Gradio's side which index and which tab are chosen.
"""

from typing import Any

import gradio as gr
from starlette.routing import BaseRoute

from for_app.endpoints import add_endpoints
from for_app.guard import GuardedBlocks
from for_app.routes.showing import plain_routes
from for_app.tabs.index import index_tab
from for_app.tabs.labels import labels_tab
from for_app.views.templates import render
from for_search.library.library import Library
from for_search.query.searcher import MAX_QUERY_CHARACTERS

# A tab's name in the address, and what it is called on the page.
TABS = {
    "search": "Search",
    "compare": "Compare",
    "labels": "Pseudo-labels",
    "leaderboard": "Leaderboard",
    "index": "Index",
}


class ServedBlocks(GuardedBlocks):
    """Gradio's page, and the routes that its own scripts ask; `serve` serves both."""

    plain_routes: list[BaseRoute]


def build_app(library: Library, allow_build: bool = False, own: bool = False) -> ServedBlocks:
    """The page over the indexes of a library. What its address says, `/?q=umbrella&k=24`, is shown when it opens.

    allow_build: let visitors index folders of the machine that serves the page, whichever they name.
    own: whether only the user of this machine reaches the server, who may see where files lie, and open them.
    """
    with ServedBlocks(title="FOR: find objects in images", analytics_enabled=False, delete_cache=(600, 2400)) as app:
        add_endpoints(library)  # first, because an event of the page would take the name of a function like `search`
        hidden: dict[str, Any] = {"visible": "hidden", "container": False}
        current = gr.Textbox(library.default, elem_id="current", label="The index", **hidden)
        opened = gr.Textbox("", elem_id="opened", label="The tab", **hidden)
        bare: dict[str, Any] = {"apply_default_css": False}
        gr.HTML(render("bar", tabs=TABS, max_characters=MAX_QUERY_CHARACTERS), elem_id="head", **bare)
        with gr.Column(elem_id="tab-search", elem_classes="tab"):
            gr.HTML(render("search"), **bare)
        with gr.Column(elem_id="tab-compare", elem_classes="tab"):
            gr.HTML(render("empty", name="comparison", words=_COMPARE), **bare)
        with gr.Column(elem_id="tab-labels", elem_classes="tab"):
            labels_tab(library, current, opened)
        with gr.Column(elem_id="tab-leaderboard", elem_classes="tab"):
            gr.HTML(render("empty", name="boards", words=_LEADERBOARD), **bare)
        with gr.Column(elem_id="tab-index", elem_classes="tab"):
            index_tab(library, current, opened, app, allow_build)
        app.queue(default_concurrency_limit=8)
    app.plain_routes = plain_routes(library, own)
    return app


_COMPARE = "The same words through every method that has an index of these images: what each finds, and how fast."
_LEADERBOARD = (
    "mAP@50 of every method, in percent: for a name, how many of the best 50 images contain the object and how far up. "
    "Base names were labelled in training, novel ones never. A click on a heading sorts."
)
