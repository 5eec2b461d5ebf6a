"""Queries to begin with, for each dataset."""

from for_search.query.searcher import Searcher

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


def examples_of(searcher: Searcher) -> tuple[str, ...]:
    """The example queries for an index."""
    return EXAMPLES.get(searcher.index.dataset, PHOTO_EXAMPLES)
