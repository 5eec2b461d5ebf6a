"""What the Search tab does for a visitor: it searches, finds the evidence for a match, and lets the views draw both."""

import math
from dataclasses import dataclass

from PIL import Image

from for_app.views.pictures import large_picture, pictures_of
from for_app.views.presentation import evidence_html, histogram_html, no_evidence_html, status_html
from for_model.data.dataset import ImageId
from for_model.errors import ForError
from for_search.index.index import Hit
from for_search.query.evidence import Evidence, find_evidence, heat_map
from for_search.query.searcher import Query, Searcher, without_paths

_COUNTED_ROWS = 1 << 17  # embeddings that a histogram scores; of a larger index it takes a sample


@dataclass(frozen=True)
class Answer:
    """What the page shows for one query.

    hits: those shown, best first.
    pictures: theirs, with captions.
    status_html: a line about the search.
    histogram_html: the scores of all images.
    low, high: between which those lie, to two decimals.
    """

    query: Query
    hits: tuple[Hit, ...]
    pictures: list[tuple[Image.Image, str]]
    status_html: str
    histogram_html: str
    low: float
    high: float


def answer(searcher: Searcher, query: Query, k: int, cutoff: float | None = None) -> Answer:
    """Search, and load the pictures that were found; one that can't be shown becomes a placeholder with the reason.

    cutoff: leave out what scores less; None for nothing. Raises UsageError for k < 1.
    """
    result = searcher.find(query, k)
    hits = tuple(hit for hit in result.hits if cutoff is None or hit.score >= cutoff)
    shown = pictures_of(searcher, [hit.image for hit in hits])
    captions = [
        f"{rank} · {hit.score:.3f}{f' · {problem}' if problem else ''}"
        for rank, (hit, (_, problem)) in enumerate(zip(hits, shown, strict=True), start=1)
    ]
    scores = searcher.index.score_images(query.embeddings, _COUNTED_ROWS).mean(axis=0)
    low, high = math.floor(float(scores.min()) * 100) / 100, math.ceil(float(scores.max()) * 100) / 100
    status = status_html(result, len(hits), searcher.index, sum(bool(problem) for _, problem in shown))
    pictures = [(image, caption) for (image, _), caption in zip(shown, captions, strict=True)]
    histogram = histogram_html(scores, low, high, cutoff, len(searcher.index.images))
    return Answer(query, hits, pictures, status, histogram, low, high)


@dataclass(frozen=True)
class Opened:
    """An opened image: as it is, where its best-matching embedding comes from (None if it can't be told), in words."""

    image: Image.Image
    heat: Image.Image | None
    text_html: str
    evidence: Evidence | None


def open_image(searcher: Searcher, image_id: ImageId, query: Query) -> Opened:
    """An image that was found, large, and the evidence for it; or why there is none.

    Raises UsageError for an id that the index doesn't have.
    """
    record = searcher.index.image(image_id)
    image, problem = large_picture(searcher, record)
    if problem is not None:
        return Opened(image, None, no_evidence_html(record.id, problem), None)
    try:
        found = find_evidence(searcher, record.id, query.embeddings)
    except ForError as error:
        line = without_paths(str(error), (str(searcher.image_root), str(searcher.index.path.absolute())))
        return Opened(image, None, no_evidence_html(record.id, line), None)
    text = evidence_html(record.id, query.label, found, searcher.index.info)
    return Opened(image, heat_map(image, found.cells), text, found)
