"""The page: a header, the choice of an index, and a tab for each thing that can be done with it."""

import gradio as gr

from for_app.endpoints import add_endpoints
from for_app.guard import page_event
from for_app.tabs.compare import compare_tab
from for_app.tabs.index import index_tab
from for_app.tabs.labels import labels_tab
from for_app.tabs.leaderboard import leaderboard_tab
from for_app.tabs.search import search_tab
from for_search.library.library import Library


def build_app(library: Library, allow_build: bool = False) -> gr.Blocks:
    """The page over the indexes of a library. The query in its address, `/?q=umbrella&k=24`, is shown when it opens.

    allow_build: let visitors index folders of the machine that serves the page, whichever they name.
    """
    with gr.Blocks(title="FOR: find objects in images", analytics_enabled=False, delete_cache=(3600, 86400)) as app:
        add_endpoints(library)  # first, because an event of the page would take the name of a function like `search`
        with gr.Row(elem_id="top"):
            gr.HTML(
                "<h1>FOR</h1><p>Finds the images that contain an object, named in your own words.</p>",
                elem_id="head",
            )
            current = gr.Dropdown(
                list(library.names),
                value=library.default,
                label="Index",
                scale=0,
                min_width=300,
                elem_id="index",
            )
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("Search", id="search"):
                query = search_tab(library, current, app)
            with gr.Tab("Compare", id="compare") as tab:
                compare_tab(library, current, tab, query)
            with gr.Tab("Pseudo-labels", id="labels") as labels:
                labels_tab(library, current, labels)
            with gr.Tab("Leaderboard", id="leaderboard") as boards:
                leaderboard_tab(boards)
            with gr.Tab("Index", id="index"):
                index_tab(library, current, app, allow_build)
        app.load(
            page_event(library, lambda: gr.Dropdown(choices=list(library.names))),
            None,
            current,
            api_visibility="private",
            show_progress="hidden",
        )
        app.queue(default_concurrency_limit=8)
    return app
