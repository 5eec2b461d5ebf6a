"""The Search tab: a text in, the images that match it best out, each with its rank and score."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from for_app.guard import api_endpoint, page_event
from for_eval.library import Library
from for_eval.presentation import MAX_QUERY_CHARACTERS, about_html, answer, api_search, clean_query
from for_model.errors import UsageError

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

# Keeps the address bar at the search that is shown, so that it can be bookmarked and passed on.
_PUT_IN_ADDRESS = """(query, k) => {
  const url = new URL(window.location.href);
  if (query.trim()) { url.searchParams.set("q", query); url.searchParams.set("k", k); }
  window.history.replaceState(null, "", url);
}"""


@dataclass(frozen=True)
class _Parts:
    """The tab's components that events read or write."""

    query: gr.Textbox
    button: gr.Button
    chips: gr.Dataset
    k: gr.Slider
    status: gr.HTML
    gallery: gr.Gallery
    about: gr.HTML


def search_tab(library: Library, current: gr.Dropdown, app: gr.Blocks) -> None:
    """Build the tab. current: holds the name of the index to search.  app: the page, for what happens when it opens."""
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
    examples = _examples(library, library.default)
    chips = gr.Dataset(
        components=[query],
        samples=[[example] for example in examples],
        samples_per_page=max(len(PHOTO_EXAMPLES), *map(len, EXAMPLES.values())),
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
        format="jpeg",
        buttons=["fullscreen"],
        interactive=False,
        elem_id="gallery",
    )
    with gr.Accordion("This index", open=False):
        about = gr.HTML(elem_id="about")
    _connect(app, library, current, _Parts(query, button, chips, k, status, gallery, about))


def _connect(app: gr.Blocks, library: Library, current: gr.Dropdown, p: _Parts) -> None:
    """Connect the tab's events with the library, and add the API endpoint."""

    def show(name: str, text: str, count: float) -> tuple[Any, Any]:
        if not (text or "").strip():
            raise UsageError("Type what you are looking for")
        found = answer(library.searcher(name), text, int(count))
        return found.pictures, found.status_html

    def show_example(name: str, chosen: list[str], count: float) -> tuple[Any, ...]:
        return chosen[0], *show(name, chosen[0], count)

    def open_page(name: str, request: gr.Request) -> tuple[Any, ...]:
        asked = str(request.query_params.get("q") or "").strip() or _examples(library, name)[0]
        count = _count(str(request.query_params.get("k")))
        return clean_query(asked), count, *show(name, asked, count), about_html(library.searcher(name).index)

    def change_index(name: str, text: str, count: float) -> tuple[Any, ...]:
        samples = gr.Dataset(samples=[[example] for example in _examples(library, name)])
        text = text if (text or "").strip() else _examples(library, name)[0]
        return samples, text, *show(name, text, count), about_html(library.searcher(name).index)

    def search(query: str, k: int = DEFAULT_K) -> dict:
        """The images that match a text, best first: rank, id, score, and the number of the embedding that matched."""
        return api_search(library.searcher(library.default), query, k)

    private: dict[str, Any] = {"api_visibility": "private", "show_progress_on": p.gallery, "show_progress": "minimal"}
    asked = [p.query, p.k]
    shown = [p.gallery, p.status]
    app.load(page_event(library, open_page), current, [p.query, p.k, *shown, p.about], **private)
    searched = gr.on(
        [p.query.submit, p.button.click, p.k.input],
        page_event(library, show),
        [current, *asked],
        shown,
        trigger_mode="always_last",
        **private,
    )
    chosen = p.chips.click(page_event(library, show_example), [current, p.chips, p.k], [p.query, *shown], **private)
    current.change(page_event(library, change_index), [current, *asked], [p.chips, p.query, *shown, p.about], **private)
    for event in (searched, chosen):
        event.success(None, asked, None, js=_PUT_IN_ADDRESS)
    gr.api(api_endpoint(library, search), api_name="search")


def _examples(library: Library, name: str) -> tuple[str, ...]:
    return EXAMPLES.get(library.searcher(name).index.dataset, PHOTO_EXAMPLES)


def _count(wanted: str) -> int:
    """The number of images that a link asks for, within the slider's range; DEFAULT_K for anything else."""
    if not (wanted.isascii() and wanted.isdigit() and len(wanted) < 10):
        return DEFAULT_K
    return min(max(int(wanted), MIN_K), MAX_K)
