"""A page without images or networks, served as FOR's is: what attacks on the server itself need."""

import contextlib
import gc
from collections.abc import Iterator

import gradio as gr

from for_app.page import ServedBlocks
from for_app.serve import serve
from for_app.server.users import Users
from tests.helpers.ports import free_port
from tests.helpers.serving import end_page


@contextlib.contextmanager
def small_page(auth: Users | None = None) -> Iterator[str]:
    """Its address. It has an endpoint for each kind of data that the real one takes, and events of a page."""
    with ServedBlocks(analytics_enabled=False, delete_cache=(600, 2400)) as app:

        def search(query: str = "", k: int = 12, all_of: list[str] | None = None) -> dict:
            return {"query": str(query), "k": k, "all_of": all_of}

        def search_image(image: gr.FileData, weight: float = 0.5) -> dict:
            return {"weight": weight}

        gr.api(search)
        gr.api(search_image)
        text = gr.Textbox()
        kind = gr.Dropdown(["a", "b"])
        number = gr.Slider(1, 9)
        upload = gr.Image(type="filepath")
        button = gr.Button()
        button.click(lambda *given: str(given), [text, kind, number, upload], text)
        app.queue(default_concurrency_limit=8)
    app.plain_routes = []
    try:
        yield serve(app, port=free_port(), auth=auth)
    finally:
        end_page(app)
        del app
        gc.collect()
