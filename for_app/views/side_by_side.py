"""A comparison of methods as HTML: a column a method, hits marked where labels tell, and how far the methods agree."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from for_app.views.pictures import pictures_of
from for_app.views.templates import render
from for_search.query.searcher import Searcher
from for_search.query.side_by_side import MethodAnswer, SideBySide

_PICTURE_PX = 240
# Shape and word as well as colour, so that nobody needs to tell red from green.
_MARKS = {True: ("right", "✓", "labelled so"), False: ("wrong", "✗", "not labelled so"), None: ("", "", "not known")}


def comparison_html(comparison: SideBySide, searchers: dict[str, Searcher]) -> str:
    """A comparison and its pictures.

    searchers: of its methods' indexes, by name; their images are read.
    """
    return render(
        "comparison",
        query=comparison.query.strip(),
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
        "title": answer.name.rpartition(": ")[2],  # without the images' name, which is the same for all
        "embeddings": f"{answer.n_embeddings} embedding{'s' * (answer.n_embeddings != 1)} an image",
        "average_precision": None if precision is None else f"{100 * precision:.1f}",
        "times": f"text {answer.result.encode_ms:.0f} ms, search {answer.result.search_ms:.1f} ms",
        "hits": _hits(answer, searcher),
        "shares": [f"{100 * share:.0f}%" for share in shares],
    }


def _hits(answer: MethodAnswer, searcher: Searcher) -> list[dict[str, str]]:
    hits = answer.result.hits
    shown = pictures_of(searcher, [hit.image for hit in hits], _PICTURE_PX)
    relevant: Sequence[bool | None] = answer.relevant or (None,) * len(hits)
    found = []
    for rank, (hit, (image, problem), right) in enumerate(zip(hits, shown, relevant, strict=True), start=1):
        kind, mark, words = _MARKS[right]
        caption = " · ".join(part for part in (f"{mark} {rank}".strip(), f"{hit.score:.3f}", problem) if part)
        told = f"rank {rank}, score {hit.score:.3f}" + (f", {words}" if answer.relevant else "")
        found.append({"kind": kind, "picture": _data_uri(image), "told": told, "caption": caption})
    return found


def _data_uri(image: Image.Image) -> str:
    """A picture inside the page itself: nothing is written for a file server to serve."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
