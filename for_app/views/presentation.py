"""What the Search and the Index tab say: of a search, its scores, an opened image, an index and how one is built.

No path of this machine is told.
"""

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from for_app.views.pictures import Shape
from for_app.views.templates import render
from for_model.methods.protocol import MethodInfo
from for_model.methods.registry import method_title
from for_search.index.index import SearchIndex
from for_search.library.background_builds import BuildState
from for_search.query.combination import CombinedResult
from for_search.query.evidence import Evidence
from for_search.query.searcher import SearchResult

SHOWN_SKIPPED = 100
_ROLES = {"all": "with", "any": "with any of", "none": "without"}
_BINS = 60
_BIN_WIDTH, _HEIGHT = 2, 40  # of the histogram, in units of its drawing


def search_details_html(
    result: SearchResult,
    index: SearchIndex,
    scores: NDArray[np.float32],
    low: float,
    high: float,
    least: float | None,
) -> str:
    """What only some visitors want to know of a search, as HTML: how it was made, how long it took, all scores.

    scores: [m], of all images or of a sample.
    low, high: the ends of their axis.
    least: the lowest score that counts as a match; None for none.
    """
    info = index.info
    facts = {
        "Method": _method_words(info),
        "Embeddings": f"{info.n_embeddings} of width {info.dim} an image",
        "Index": f"{len(index.images):,} images, {_engine_words(index)}",
        "Time": (f"query encoded in {result.encode_ms:.0f} ms, " if result.encode_ms else "")
        + f"searched in {result.search_ms:.1f} ms",
    }
    histogram = histogram_html(scores, low, high, least, len(index.images))
    return render("details", facts=facts, histogram=Markup(histogram))


def combined_details_html(result: CombinedResult, index: SearchIndex) -> str:
    """The same of a search for several things at once; it has no histogram."""
    info = index.info
    facts = {
        "Method": _method_words(info),
        "Things": ", ".join(f"{_ROLES[role]} {text}" for role, text in result.combination.things),
        "Rule": "the probability of each thing, multiplied",
        "Time": f"query encoded in {result.encode_ms:.0f} ms, searched in {result.search_ms:.1f} ms",
    }
    return render("details", facts=facts, histogram="")


def histogram_html(scores: NDArray[np.float32], low: float, high: float, cutoff: float | None, n_images: int) -> str:
    """The scores of a query as a histogram, an SVG that takes the page's colours; heights grow with the logarithm.

    scores: [m], of all n_images or of a sample.
    low, high: the ends of the axis.
    cutoff: bars below it are pale.
    """
    counts, edges = np.histogram(scores, bins=_BINS, range=(low, max(high, low + 0.01)))
    heights = np.log1p(counts) / np.log1p(max(1, counts.max())) * _HEIGHT
    limit = low if cutoff is None else cutoff
    bars = [
        {"x": _BIN_WIDTH * i, "y": f"{_HEIGHT - height:.1f}", "height": f"{height:.1f}", "pale": edges[i + 1] <= limit}
        for i, height in enumerate(heights)
        if height
    ]
    of = f"all {n_images:,} images" if len(scores) == n_images else f"{len(scores):,} of {n_images:,} images, a sample"
    told = f"scores of {of}, {low:.2f} to {high:.2f}; heights are logarithms"
    if cutoff is not None:
        told += f"; {int((scores >= limit).sum()):,} score {cutoff:.3f} or more"
    return render("histogram", width=_BIN_WIDTH * _BINS, height=_HEIGHT, bars=bars, told=told)


def evidence_words(found: Evidence, info: MethodInfo) -> list[str]:
    """What of an opened image matched, in words.

    info: how its embeddings were made.
    """
    words = [
        f"bright: {found.meaning}",
        f"embedding {found.embedding + 1} of {info.n_embeddings} by {method_title(info.method, info.n_embeddings)}, "
        f"score {found.score:.3f}",
    ]
    if not found.as_indexed:
        words.append("the image has changed since it was indexed, so this may not be what matched")
    return words


def file_words(shape: Shape) -> list[str]:
    """What a file says of itself: when it was taken or changed, how large it is. Nothing for one that can't be read."""
    if shape.problem is not None:
        return []
    date = f"{'taken' if shape.taken else 'changed'} {shape.date}"
    return [date, f"{shape.width:,} × {shape.height:,} pixels", _size(shape.n_bytes)]


def about_html(index: SearchIndex) -> str:
    """What the index holds, as HTML. Names no folder of this machine: the page may be seen by others."""
    info = index.info
    facts = {
        "Dataset": f"{index.dataset} ({index.split})",
        "Images": f"{len(index.images):,} searched, {len(index.skipped):,} skipped",
        "Method": f"{method_title(info.method, info.n_embeddings)}, "
        f"{info.n_embeddings} embedding{'s' * (info.n_embeddings != 1)} of width {info.dim} an image",
        "Backbone": f"{info.backbone} at {info.image_size} pixels, "
        f"weights {info.weights} (sha256 {info.weights_sha256[:12]})",
        "Index": _engine_words(index),
    }
    skipped = index.skipped[:SHOWN_SKIPPED]
    n_more = len(index.skipped) - len(skipped)
    return render("about", facts=facts, skipped=skipped, n_more=f"{n_more:,}" if n_more else "")


def _method_words(info: MethodInfo) -> str:
    return f"{method_title(info.method, info.n_embeddings)}, {info.backbone} at {info.image_size} pixels"


def _engine_words(index: SearchIndex) -> str:
    """An index's engine, how complete its answers are, and what it takes; a server's address is nobody's business."""
    n_bytes = index.n_bytes
    if index.on_server:
        n_bytes = 2 * len(index.images) * index.info.n_embeddings * index.info.dim
    place = "on a server" if index.on_server else "on disk"
    each = _size(n_bytes / len(index.images))
    return f"{index.kind}, {index.recall or 'exact'}, {_size(n_bytes)} {place}, {each} an image"


def build_html(state: BuildState) -> str:
    """How far the build of an index is, as HTML: a bar and a line. Nothing before the first build."""
    if not state.message:
        return ""
    counts = f" · {state.done:,} of {state.total:,} images" if state.total else ""
    return render("build", state=state, counts=counts)


def _size(n_bytes: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "bytes" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} GB"
