"""What the page's scripts are told: the hits of a search, what is known of one of them, the evidence for a match."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from for_app.views.pictures import Shape, data_uri, large_picture, shapes_of
from for_app.views.presentation import evidence_words, file_words, search_details_html
from for_model.data.dataset import ImageRecord
from for_model.errors import ForError
from for_search.index.index import Hit
from for_search.query.evidence import find_evidence, heat_map
from for_search.query.searcher import Query, Searcher, without_paths
from for_search.refine.answer import Refinement

_GOOD = 0.5  # the least probability of a good match, learnt from marks
_COUNTED_ROWS = 1 << 17  # embeddings that a histogram scores; of a larger index it takes a sample


@dataclass(frozen=True)
class Answer:
    """Some hits of a query, and with the first of them what is to be said about the search.

    label: what was searched for, in words.
    hits: best first.
    shapes: theirs.
    first_rank: of the first of them, from 1.
    n_images: that were searched.
    about: the scores' range, the technical details; empty where `hits` continue a search.
    probabilities: that each hit matches; None where that isn't known.
    cutoff: the least probability of a good match; None without probabilities.
    """

    label: str
    hits: tuple[Hit, ...]
    shapes: tuple[Shape, ...]
    first_rank: int
    n_images: int
    about: dict[str, Any]
    probabilities: tuple[float, ...] | None = None
    cutoff: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The answer as JSON values; an image by its id and file name, `ratio` its width over its height."""
        hits = [
            {
                "id": hit.image.id,
                "name": Path(hit.image.path).name,
                "rank": rank,
                "score": round(hit.score, 4),
                "part": hit.embedding,
                "ratio": round(shape.ratio, 4),
                "problem": shape.problem,
            }
            for rank, (hit, shape) in enumerate(zip(self.hits, self.shapes, strict=True), start=self.first_rank)
        ]
        said = {"label": self.label.strip(), "total": self.n_images, "hits": hits, **self.about}
        if self.probabilities is None:
            return said
        for hit, probability in zip(hits, self.probabilities, strict=True):
            hit["probability"] = round(probability, 4)
        return {**said, "cutoff": self.cutoff}


def answer(
    searcher: Searcher,
    query: Query,
    start: int,
    count: int,
    least: float | None = None,
    learnt: Refinement | None = None,
    allowed: NDArray[np.bool_] | None = None,
) -> Answer:
    """Search, and look how large the pictures are that were found.

    query: what is searched for; that of `learnt`, if there is one.
    start, count: the hits wanted, from rank start + 1 on.
    least: the lowest score that counts as a match in the technical details; None for none.
    learnt: from marks, which tell how probable a match is; None for none. A text alone tells it too, once the network
        that reads it is loaded, or where texts are read without.
    allowed: [M], the images to choose from, see `SearchIndex.where`; None for all. The technical details are of all.
    """
    n_images = len(searcher.index.images) if allowed is None else int(allowed.sum())
    result = searcher.find(query, start + count, allowed)
    if learnt is None and searcher.encoder.reads_texts:  # what a text's scores mean is found with the network
        result = searcher.judged(query, result)
    hits = result.hits[start : start + count]
    shapes = tuple(shapes_of(searcher, [hit.image for hit in hits]))
    probabilities, cutoff = result.probabilities and result.probabilities[start : start + count], result.cutoff
    if learnt is not None and learnt.calibration is not None:
        found = learnt.calibration.probabilities(np.array([hit.score for hit in hits], np.float32))
        probabilities, cutoff = tuple(found.tolist()), _GOOD
    if start:
        return Answer(query.label, hits, shapes, start + 1, n_images, {}, probabilities, cutoff)
    scores = searcher.index.score_images(query.embeddings, _COUNTED_ROWS).mean(axis=0)
    low = math.floor(float(scores.min()) * 100) / 100
    best = max([float(scores.max()), *(hit.score for hit in hits[:1])])  # the best hit may be outside the sample
    high = math.ceil(best * 100) / 100
    details = search_details_html(result, searcher.index, scores, low, high, least)
    about = {"low": low, "high": high, "details": details}
    return Answer(query.label, hits, shapes, 1, n_images, about, probabilities, cutoff)


def describe_hit(searcher: Searcher, record: ImageRecord, own: bool) -> dict[str, Any]:
    """What is known of an image's file: its name, words about it, why it can't be shown, and, for its owner, its path.

    own: whether whoever asks owns this machine.
    """
    (shape,) = shapes_of(searcher, [record])
    said: dict[str, Any] = {"name": Path(record.path).name, "words": file_words(shape), "problem": shape.problem}
    return {**said, "path": str(searcher.image_path(record))} if own and shape.problem is None else said


def evidence_of(searcher: Searcher, record: ImageRecord, query: Query) -> dict[str, Any]:
    """The picture of where a match comes from, and words about it; no picture, and why, where it can't be told."""
    image, problem = large_picture(searcher, record)
    if problem is not None:
        return {"heat": None, "words": [problem], "part": None}
    try:
        found = find_evidence(searcher, record.id, query.embeddings)
    except ForError as error:
        line = without_paths(str(error), (str(searcher.image_root), str(searcher.index.path.absolute())))
        return {"heat": None, "words": [line], "part": None}
    words = evidence_words(found, searcher.index.info)
    return {"heat": data_uri(heat_map(image, found.cells)), "words": words, "part": found.embedding}
