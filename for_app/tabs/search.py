"""The Search tab: a text or an image in, the best images out; and why each was found."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from for_app.answers import answer, open_image
from for_app.examples import asking, examples_of
from for_app.guard import page_event
from for_app.uploads import uploaded_image
from for_model.data.dataset import ImageId
from for_model.errors import UsageError
from for_search.library.library import Library
from for_search.query.searcher import Query, clean_query

MIN_K, MAX_K, DEFAULT_K = 4, 48, 12

# Keeps the address bar at the search that is shown, so that it can be bookmarked and passed on.
_PUT_IN_ADDRESS = """(query, k) => {
  const url = new URL(window.location.href);
  if (query.trim()) { url.searchParams.set("q", query); url.searchParams.set("k", k); }
  window.history.replaceState(null, "", url);
}"""
_SHOW_PANEL = '() => document.querySelector("#evidence")?.scrollIntoView({ behavior: "smooth", block: "nearest" })'


@dataclass(frozen=True)
class Found:
    """What a visitor is looking at: the index searched, with what, the images shown, and which of them is open."""

    index: str
    query: Query
    hits: tuple[tuple[ImageId, int], ...]  # image id, embedding that matched
    opened: int | None = None

    @property
    def open_hit(self) -> tuple[ImageId, int]:
        if self.opened is None:
            raise UsageError("Open an image first")
        return self.hits[self.opened]


@dataclass(frozen=True)
class _Parts:
    """The tab's components that events read or write."""

    query: gr.Textbox
    button: gr.Button
    chips: gr.Dataset
    upload: gr.Image
    status: gr.HTML
    k: gr.Slider
    histogram: gr.HTML
    cutoff: gr.Slider
    panel: gr.Column
    image: gr.Image
    heat: gr.Image
    words: gr.HTML
    like_image: gr.Button
    like_part: gr.Button
    close: gr.Button
    gallery: gr.Gallery
    found: gr.State


def search_tab(library: Library, current: gr.Dropdown, app: gr.Blocks) -> gr.Textbox:
    """Build the tab. Returns where its query stands.

    current: holds the name of the index to search.
    app: the page, for what happens when it opens.
    """
    gr.HTML(
        "<p>Name a thing, or drop an image. Open a result to see which part of it matched.</p>", elem_classes="hint"
    )
    query, button, chips, upload = _asking(library)
    with gr.Row(elem_classes="line"):
        status = gr.HTML(elem_id="status")
        k = gr.Slider(MIN_K, MAX_K, DEFAULT_K, step=1, label="Images", scale=0, min_width=260, elem_id="k")
    with gr.Row(elem_classes="line"):
        histogram = gr.HTML(elem_id="histogram")
        cutoff = gr.Slider(0, 1, 0, step=0.005, label="Lowest score", scale=0, min_width=260, elem_id="cutoff")
    with gr.Column(visible=False, elem_id="evidence") as panel:
        words = gr.HTML(elem_id="words")
        with gr.Row():
            image = _large("Image", "opened")
            heat = _large("Where it matched", "heat")
        with gr.Row():
            like_image = gr.Button("More like this image", elem_id="like-image", min_width=150)
            like_part = gr.Button("More like what matched", elem_id="like-part", min_width=150)
            close = gr.Button("Close", elem_id="close", min_width=100)
    gallery = gr.Gallery(
        label="Images, best first: rank and score",
        show_label=False,
        object_fit="contain",
        columns=6,
        height="auto",
        format="jpeg",
        allow_preview=False,
        buttons=[],
        interactive=False,
        elem_id="gallery",
    )
    shown = (status, k, histogram, cutoff, panel, image, heat, words, like_image, like_part, close, gallery)
    _connect(app, library, current, _Parts(query, button, chips, upload, *shown, gr.State(None)))
    return query


def _asking(library: Library) -> tuple[gr.Textbox, gr.Button, gr.Dataset, gr.Image]:
    """What a search begins with: words, an example, or an image."""
    placeholder = "What are you looking for? A name, or a sentence"
    query, button, chips = asking(library, placeholder, "Search for", "Search", autofocus=True)
    with gr.Accordion("Search with an image", open=False, elem_id="by-image"):
        upload = gr.Image(
            label="Drop an image: what shows most of the same things comes first",
            sources=["upload", "clipboard"],
            type="filepath",
            image_mode=None,
            height=220,
            elem_id="upload",
        )
    return query, button, chips, upload


def _large(label: str, name: str) -> gr.Image:
    return gr.Image(label=label, format="jpeg", interactive=False, buttons=["fullscreen"], elem_id=name)


def _connect(app: gr.Blocks, library: Library, current: gr.Dropdown, p: _Parts) -> None:
    """Connect the tab's events with the library."""
    do = _Actions(library)
    shown = [p.gallery, p.status, p.histogram, p.cutoff, p.found, p.panel]
    private: dict[str, Any] = {"api_visibility": "private", "show_progress_on": p.gallery, "show_progress": "minimal"}
    asked = [p.query, p.k]
    app.load(page_event(library, do.open_page), current, [*asked, *shown], **private)
    searched = gr.on(
        [p.query.submit, p.button.click],
        page_event(library, do.search),
        [current, *asked],
        shown,
        trigger_mode="always_last",
        **private,
    )
    chosen = p.chips.click(
        page_event(library, do.search_example), [current, p.chips, p.k], [p.query, *shown], **private
    )
    # without preprocess: the file is opened by us, with its limits, not by gradio
    p.upload.upload(page_event(library, do.search_image), [current, p.upload, p.k], shown, preprocess=False, **private)
    more = p.k.input(page_event(library, do.more), [p.found, p.k], shown, trigger_mode="always_last", **private)
    p.cutoff.input(page_event(library, do.cut), [p.found, p.k, p.cutoff], shown, trigger_mode="always_last", **private)
    current.change(page_event(library, do.change_index), [current, *asked], [p.chips, p.query, *shown], **private)
    for event in (searched, chosen, more):
        event.success(None, asked, None, js=_PUT_IN_ADDRESS)

    opened = [p.panel, p.words, p.image, p.heat, p.found]
    panel: dict[str, Any] = {**private, "show_progress_on": p.words}
    p.gallery.select(page_event(library, do.open_hit), p.found, opened, **panel).success(None, js=_SHOW_PANEL)
    p.like_image.click(page_event(library, do.like_image), [p.found, p.k], shown, **private)
    p.like_part.click(page_event(library, do.like_part), [p.found, p.k], shown, **private)
    p.close.click(_close, None, [p.panel, p.gallery], **private)


class _Actions:
    """What the tab's events do. Those that search return what `_connect` calls `shown`."""

    def __init__(self, library: Library) -> None:
        self._library = library

    def _show(self, name: str, query: Query, count: float, cutoff: float | None = None) -> tuple[Any, ...]:
        found = answer(self._library.searcher(name), query, int(count), cutoff)
        hits = tuple((hit.image.id, hit.embedding) for hit in found.hits)
        slider = gr.Slider(minimum=found.low, maximum=found.high, value=found.low if cutoff is None else cutoff)
        gallery = gr.Gallery(value=found.pictures, selected_index=None)
        state = Found(name, query, hits)
        return gallery, found.status_html, found.histogram_html, slider, state, gr.Column(visible=False)

    def search(self, name: str, text: str, count: float) -> tuple[Any, ...]:
        if not (text or "").strip():
            raise UsageError("Type what you are looking for")
        return self._show(name, self._library.searcher(name).text_query(clean_query(text)), count)

    def search_example(self, name: str, chosen: list[str], count: float) -> tuple[Any, ...]:
        return chosen[0], *self.search(name, chosen[0], count)

    def search_image(self, name: str, file: Any, count: float) -> tuple[Any, ...]:
        searcher = self._library.searcher(name)
        image = uploaded_image(file, target=2 * searcher.index.info.image_size)
        return self._show(name, searcher.image_query(image), count)

    def open_page(self, name: str, request: gr.Request) -> tuple[Any, ...]:
        asked = str(request.query_params.get("q") or "").strip() or examples_of(self._library, name)[0]
        count = _count(str(request.query_params.get("k")))
        return clean_query(asked), count, *self.search(name, asked, count)

    def change_index(self, name: str, text: str, count: float) -> tuple[Any, ...]:
        examples = examples_of(self._library, name)
        text = text if (text or "").strip() else examples[0]
        return gr.Dataset(samples=[[example] for example in examples]), text, *self.search(name, text, count)

    def more(self, found: Found | None, count: float) -> tuple[Any, ...]:
        shown = _something(found)
        return self._show(shown.index, shown.query, count)

    def cut(self, found: Found | None, count: float, cutoff: float) -> tuple[Any, ...]:
        shown = _something(found)
        return self._show(shown.index, shown.query, count, cutoff)

    def open_hit(self, found: Found | None, event: gr.SelectData) -> tuple[Any, ...]:
        shown = _something(found)
        number = int(event.index)
        opened = open_image(self._library.searcher(shown.index), shown.hits[number][0], shown.query)
        heat = gr.Image(value=opened.heat, visible=opened.heat is not None)
        state = Found(shown.index, shown.query, shown.hits, number)
        return gr.Column(visible=True), opened.text_html, opened.image, heat, state

    def like_image(self, found: Found | None, count: float) -> tuple[Any, ...]:
        shown = _something(found)
        query = self._library.searcher(shown.index).like_query(shown.open_hit[0])
        return self._show(shown.index, query, count)

    def like_part(self, found: Found | None, count: float) -> tuple[Any, ...]:
        shown = _something(found)
        query = self._library.searcher(shown.index).like_query(*shown.open_hit)
        return self._show(shown.index, query, count)


def _close() -> tuple[gr.Column, gr.Gallery]:
    return gr.Column(visible=False), gr.Gallery(selected_index=None)  # so that the same image can be opened again


def _something(found: Found | None) -> Found:
    if found is None:
        raise UsageError("Search first")
    return found


def _count(wanted: str) -> int:
    """The number of images that a link asks for, within the slider's range; DEFAULT_K for anything else."""
    if not (wanted.isascii() and wanted.isdigit() and len(wanted) < 10):
        return DEFAULT_K
    return min(max(int(wanted), MIN_K), MAX_K)
