"""The Compare tab: one query through several methods over the same images, side by side."""

from typing import Any

import gradio as gr

from for_app.examples import asking, examples_of
from for_app.guard import page_event
from for_app.views.side_by_side import comparison_html
from for_model.errors import UsageError
from for_search.library.library import Library
from for_search.query.searcher import clean_query
from for_search.query.side_by_side import ask_side_by_side

MIN_K, MAX_K, DEFAULT_K = 4, 24, 8


def compare_tab(library: Library, current: gr.Dropdown, tab: gr.Tab, searched: gr.Textbox) -> None:
    """Build the tab, which begins with what was searched for.

    current: holds the name of the index whose images are compared over.
    tab: the tab itself, for when it is opened.
    searched: the query of the Search tab.
    """
    gr.HTML(
        "<p>The same query through every method that has an index of these images: what each finds, and how fast.</p>",
        elem_classes="hint",
    )
    query, button, chips = asking(library, "A name, or a sentence", "Compare on", "Compare", "compare-")
    with gr.Row(elem_classes="line"):
        methods = gr.CheckboxGroup(
            _choices(library, library.default),
            value=_names(library, library.default),
            label="Methods",
            elem_id="methods",
        )
        k = gr.Slider(MIN_K, MAX_K, DEFAULT_K, step=1, label="Images a method", scale=0, min_width=260)
    out = gr.HTML(elem_id="comparison")

    def show(chosen: list[str], text: str, count: float, progress: gr.Progress = gr.Progress()) -> str:  # noqa: B008
        if not (text or "").strip():
            raise UsageError("Type what you are looking for")
        if not chosen:
            raise UsageError("Choose at least one method")
        searchers = {}
        for name in progress.tqdm(chosen, desc="opening, or making on the first use", unit="index"):
            searchers[name] = library.searcher(name)
        comparison = ask_side_by_side(searchers, clean_query(text), int(count), library.labels(chosen[0]))
        return comparison_html(comparison, searchers)

    def show_example(example: list[str], chosen: list[str], count: float) -> tuple[str, str]:
        return example[0], show(chosen, example[0], count)

    def open_tab(before: str, asked: str, chosen: list[str], count: float) -> tuple[Any, Any]:
        if (before or "").strip() or not (asked or "").strip():
            return gr.skip(), gr.skip()
        return asked, show(chosen, asked, count)

    def change_index(name: str) -> tuple[Any, ...]:
        samples = gr.Dataset(samples=[[example] for example in examples_of(library, name)])
        return samples, gr.CheckboxGroup(choices=_choices(library, name), value=_names(library, name)), ""

    private: dict[str, Any] = {"api_visibility": "private", "show_progress_on": out}
    gr.on(
        [query.submit, button.click, k.release],
        page_event(library, show),
        [methods, query, k],
        out,
        trigger_mode="always_last",
        **private,
    )
    chips.click(page_event(library, show_example), [chips, methods, k], [query, out], **private)
    tab.select(page_event(library, open_tab), [query, searched, methods, k], [query, out], **private)
    current.change(page_event(library, change_index), current, [chips, methods, out], **private)


def _names(library: Library, name: str) -> list[str]:
    """The index, and the others of the same images."""
    return [name, *library.siblings(name)]


def _choices(library: Library, name: str) -> list[tuple[str, str]]:
    """What a checkbox shows and what it stands for: the method's title, and the index's name."""
    return [(each.rpartition(": ")[2], each) for each in _names(library, name)]
