"""Where a query is typed, and queries to begin with, for each dataset."""

import gradio as gr

from for_search.library.library import Library
from for_search.query.searcher import MAX_QUERY_CHARACTERS

EXAMPLES = {
    "miniscenes": (
        *("kite", "fork", "guitar", "umbrella", "tie", "skateboard", "pizza", "airplane"),
        *("elephant", "cake", "cactus", "robot"),
    ),
}
PHOTO_EXAMPLES = (
    *("person", "dog", "car", "a cup of coffee", "bicycle", "umbrella", "cat", "laptop", "flowers"),
    "a child with a ball",
)


def examples_of(library: Library, name: str) -> tuple[str, ...]:
    """The example queries for an index. Opens it if nobody has."""
    return EXAMPLES.get(library.searcher(name).index.dataset, PHOTO_EXAMPLES)


def asking(
    library: Library, placeholder: str, label: str, action: str, prefix: str = "", autofocus: bool = False
) -> tuple[gr.Textbox, gr.Button, gr.Dataset]:
    """Add a field for a query, its button, and the examples of the library's first index.

    label: of the field, for those who don't see it.
    action: on the button.
    prefix: of the elements' names.
    """
    with gr.Row(elem_classes="ask"):
        query = gr.Textbox(
            placeholder=placeholder,
            max_length=MAX_QUERY_CHARACTERS,
            label=label,
            show_label=False,
            container=False,
            autofocus=autofocus,
            scale=6,
            elem_id=f"{prefix}query",
        )
        button = gr.Button(action, variant="primary", scale=0, min_width=110)
    chips = gr.Dataset(
        components=[query],
        samples=[[example] for example in examples_of(library, library.default)],
        samples_per_page=max(len(PHOTO_EXAMPLES), *map(len, EXAMPLES.values())),
        label="Try",
        show_label=False,
        elem_id=f"{prefix}chips",
    )
    return query, button, chips
