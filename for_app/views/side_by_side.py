"""A comparison of methods as HTML: a column a method, hits marked where labels tell, and how far the methods agree."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from for_app.views.pictures import shapes_of
from for_app.views.templates import render
from for_search.query.searcher import Searcher
from for_search.query.side_by_side import MethodAnswer, SideBySide

# Shape and word as well as colour, so that nobody needs to tell red from green.
_MARKS = {True: ("right", "✓", "labelled so"), False: ("wrong", "✗", "not labelled so"), None: ("", "", "not known")}


def comparison_html(
    comparison: SideBySide, searchers: dict[str, Searcher], known: Sequence[str], labelled: bool
) -> str:
    """A comparison, and the choice of methods above it.

    searchers: of its methods' indexes, by name.
    known: the names of all indexes of these images, those that are not compared too.
    labelled: whether the images' labels are at hand.
    """
    return render(
        "comparison",
        query=comparison.query.strip(),
        labelled=labelled,
        choices=[{"name": name, "title": _title(name), "chosen": name in searchers} for name in known],
        n_relevant=None if comparison.category is None else f"{comparison.n_relevant:,}",
        k=comparison.k,
        methods=[
            _column(answer, shares, searchers[answer.name])
            for answer, shares in zip(comparison.answers, comparison.overlap, strict=True)
        ],
    )


def _column(answer: MethodAnswer, shares: NDArray[np.float64], searcher: Searcher) -> dict[str, Any]:
    """What one method's column says.

    answer: of the method.
    shares: [methods], the share of its best images that each method finds too, in 0..1.
    searcher: of its index.
    """
    precision = answer.average_precision
    return {
        "index": answer.name,
        "title": _title(answer.name),
        "embeddings": f"{answer.n_embeddings} embedding{'s' * (answer.n_embeddings != 1)} an image",
        "average_precision": None if precision is None else f"{100 * precision:.1f}",
        "times": f"text {answer.result.encode_ms:.0f} ms, search {answer.result.search_ms:.1f} ms",
        "hits": _hits(answer, searcher),
        "shares": [f"{100 * share:.0f}%" for share in shares],
    }


def _hits(answer: MethodAnswer, searcher: Searcher) -> list[dict[str, Any]]:
    hits = answer.result.hits
    relevant: Sequence[bool | None] = answer.relevant or (None,) * len(hits)
    shapes = shapes_of(searcher, [hit.image for hit in hits])
    found = []
    for rank, (hit, shape, right) in enumerate(zip(hits, shapes, relevant, strict=True), start=1):
        kind, mark, words = _MARKS[right]
        name = Path(hit.image.path).name
        caption = " · ".join(part for part in (f"{mark} {rank}".strip(), f"{hit.score:.3f}", shape.problem) if part)
        told = f"{name}, rank {rank}, score {hit.score:.3f}" + (f", {words}" if answer.relevant else "")
        told_hit = {"id": hit.image.id, "name": name, "rank": rank, "score": round(hit.score, 4), "part": hit.embedding}
        found.append({"kind": kind, "hit": json.dumps(told_hit), "id": hit.image.id, "told": told, "caption": caption})
    return found


def _title(name: str) -> str:
    """The method of an index's name, without the images' name, which is the same for all that are compared."""
    return name.rpartition(": ")[2]
