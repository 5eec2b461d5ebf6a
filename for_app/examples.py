"""Queries to begin with, for each dataset."""

from for_eval.library import Library

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
