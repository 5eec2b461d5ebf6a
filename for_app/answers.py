"""What the page's scripts are told: the hits of a search, what is known of one of them, the evidence for a match."""

import io
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from for_app.question import Question
from for_app.views.pictures import Shape, data_uri, large_picture, shapes_of
from for_app.views.presentation import combined_details_html, evidence_words, file_words, search_details_html
from for_model.data.dataset import ImageRecord
from for_model.errors import ForError, UsageError
from for_search.index.index import Hit
from for_search.query.combination import Combination, find_combination
from for_search.query.evidence import THING_COLOURS, find_evidence, find_evidences, find_parts, heat_map, things_map
from for_search.query.searcher import Searcher, SearchResult, without_paths
from for_search.refine.answer import Refinement, WholeAnswer, whole_answer
from for_search.refine.export import answer_rows, write_csv
from for_search.refine.telling import telling_images

_GOOD = 0.5  # the least probability of a good match, learnt from marks
_COUNTED_ROWS = 1 << 17  # embeddings that a histogram scores; of a larger index it takes a sample


@dataclass(frozen=True)
class Answer:
    """Some hits of a query, and with the first of them what is to be said about the search.

    label: what was searched for, in words.
    hits: best first.
    shapes: theirs.
    first_rank: of the first of them, from 1.
    n_images: that were searched, or that an answer of all holds.
    about: the scores' range, the technical details; empty where `hits` continue a search.
    probabilities: that each hit matches; None where that isn't known.
    cutoff: the least probability of a good match; None without probabilities.
    things: of several things at once, how probable each is in each hit; empty for one.
    """

    label: str
    hits: tuple[Hit, ...]
    shapes: tuple[Shape, ...]
    first_rank: int
    n_images: int
    about: dict[str, Any]
    probabilities: tuple[float, ...] | None = None
    cutoff: float | None = None
    things: tuple[list[dict[str, Any]], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The answer as JSON values; an image by its id and file name, `ratio` its width over its height."""
        hits = hits_json(self.hits, self.shapes, self.first_rank)
        for hit, things in zip(hits, self.things, strict=False):
            hit["things"] = things
        said = {"label": self.label.strip(), "total": self.n_images, "hits": hits, **self.about}
        if self.probabilities is None:
            return said
        for hit, probability in zip(hits, self.probabilities, strict=True):
            hit["probability"] = round(probability, 4)
        return {**said, "cutoff": self.cutoff}


def hits_json(hits: Sequence[Hit], shapes: Sequence[Shape], first_rank: int = 1) -> list[dict[str, Any]]:
    """Hits as JSON values; an image by its id and file name, `ratio` its width over its height."""
    return [
        {
            "id": hit.image.id,
            "name": Path(hit.image.path).name,
            "rank": rank,
            "score": round(hit.score, 4),
            "part": hit.embedding,
            "ratio": round(shape.ratio, 4),
            "problem": shape.problem,
        }
        for rank, (hit, shape) in enumerate(zip(hits, shapes, strict=True), start=first_rank)
    ]


def answer(asked: Question, start: int, count: int, least: float | None = None) -> Answer:
    """Search, and look how large the pictures are that were found.

    asked: what for. Images that are marked are left out.
    start, count: the hits wanted, from rank start + 1 on.
    least: the lowest score that counts as a match in the technical details; None for none.

    What was learnt tells how probable a match is; a text alone does too, once the network that reads it is
    loaded, or where texts are read without.
    """
    if asked.combination is not None:
        return _combined_answer(asked, asked.combination, start, count)
    searcher, query, learnt, allowed = asked.searcher, asked.query, asked.learnt, asked.unmarked
    n_images = len(searcher.index.images) if allowed is None else int(allowed.sum())
    begun = time.perf_counter()
    if learnt is None:
        result = searcher.find(query, start + count, allowed)
        if searcher.encoder.reads_texts:  # what a text's scores mean is found with the network
            result = searcher.judged(query, result)
    else:
        found = tuple(learnt.best(start + count, allowed)) if n_images else ()
        search_ms = (time.perf_counter() - begun) * 1e3
        result = SearchResult(query.label, start + count, found, query.encode_ms, search_ms)
    hits = result.hits[start : start + count]
    shapes = tuple(shapes_of(searcher, [hit.image for hit in hits]))
    probabilities, cutoff = result.probabilities and result.probabilities[start : start + count], result.cutoff
    if learnt is not None and learnt.calibration is not None:
        of_hits = learnt.calibration.probabilities(np.array([hit.score for hit in hits], np.float32))
        probabilities, cutoff = tuple(of_hits.tolist()), _GOOD
    if start:
        return Answer(query.label, hits, shapes, start + 1, n_images, {}, probabilities, cutoff)
    if learnt is None:
        scores = searcher.index.score_images(query.embeddings, _COUNTED_ROWS).mean(axis=0)
    else:
        scores = learnt.some_scores()
    low = math.floor(float(scores.min()) * 100) / 100
    best = max([float(scores.max()), *(hit.score for hit in hits[:1])])  # the best hit may be outside the sample
    high = math.ceil(best * 100) / 100
    details = search_details_html(result, searcher.index, scores, low, high, least)
    about = {"low": low, "high": high, "details": details, "marks": _marks_json(asked)}
    return Answer(query.label, hits, shapes, 1, n_images, about, probabilities, cutoff)


def _marks_json(asked: Question, whole: WholeAnswer | None = None) -> dict[str, Any] | None:
    """What is said of what was learnt: how many marks, and how many images it means. None where nothing was learnt.

    whole: these images, if they are at hand.
    """
    learnt = asked.learnt
    if learnt is None:
        return None if not asked.n_gone else {"right": 0, "wrong": 0, "gone": asked.n_gone, "words": ""}
    examples = learnt.examples
    if whole is None and learnt.calibration is not None:
        whole = whole_answer(learnt, allowed=asked.allowed)
    words = "" if whole is None else whole.in_words()
    gone = asked.n_gone + len(examples.gone)
    return {"right": len(examples.right), "wrong": len(examples.wrong), "gone": gone, "words": words}


def answer_of_all(asked: Question, start: int, count: int) -> Answer:
    """A page of all images that are meant: those marked right, then the others from the most probable down.

    start, count: as in `answer`. Raises UsageError where nothing was learnt.
    """
    learnt, whole = _whole(asked)
    places = whole.images[start : start + count].tolist()
    hits = tuple(learnt.hit(place) for place in places)
    shapes = tuple(shapes_of(asked.searcher, [hit.image for hit in hits]))
    probabilities = tuple(whole.probabilities[start : start + count].tolist())
    about = {} if start else {"marks": _marks_json(asked, whole)}
    return Answer(asked.query.label, hits, shapes, start + 1, len(whole.images), about, probabilities, whole.threshold)


def table_of_all(asked: Question, own: bool) -> str:
    """All images that are meant as CSV; with the paths of this machine's images for its own user alone.

    Raises UsageError where nothing was learnt.
    """
    learnt, whole = _whole(asked)
    rows = answer_rows(learnt.index, whole, learnt.marked)
    if not own:
        rows = (replace(row, image=replace(row.image, path=Path(row.image.path).name)) for row in rows)
    text = io.StringIO()
    write_csv(rows, text)
    return text.getvalue()


def _whole(asked: Question) -> tuple[Refinement, WholeAnswer]:
    if asked.learnt is None:
        raise UsageError("nothing is marked, so nobody can say how many images are meant: mark some right and wrong")
    return asked.learnt, whole_answer(asked.learnt, allowed=asked.allowed)


def telling_hits(asked: Question, count: int) -> list[dict[str, Any]]:
    """The images whose marks would tell most, as JSON values. Raises UsageError where nothing was learnt yet."""
    if asked.learnt is None:
        raise UsageError("mark an image right or wrong first: then it can be told which marks would help most")
    hits = telling_images(asked.learnt, count, allowed=asked.allowed)
    found = hits_json(hits, shapes_of(asked.searcher, [hit.image for hit in hits]))
    for hit, told in zip(hits, found, strict=True):
        probability = asked.learnt.probability(hit.score)
        told |= {} if probability is None else {"probability": round(probability, 4)}
    return found


def _combined_answer(asked: Question, combination: Combination, start: int, count: int) -> Answer:
    searcher = asked.searcher
    n_images = len(searcher.index.images) if asked.allowed is None else int(asked.allowed.sum())
    result = find_combination(searcher, combination, start + count, asked.allowed, asked.things)
    found = result.hits[start : start + count]
    hits = tuple(Hit(hit.image, hit.probability, hit.matches[0].embedding) for hit in found)
    shapes = tuple(shapes_of(searcher, [hit.image for hit in hits]))
    about = (
        {} if start else {"low": 0, "high": 1, "details": combined_details_html(result, searcher.index), "marks": None}
    )
    things = tuple(
        [{"role": each.role, "text": each.text, "probability": round(each.probability, 4)} for each in hit.matches]
        for hit in found
    )
    probabilities = tuple(hit.probability for hit in found)
    return Answer(combination.label, hits, shapes, start + 1, n_images, about, probabilities, result.cutoff, things)


def describe_hit(searcher: Searcher, record: ImageRecord, own: bool) -> dict[str, Any]:
    """What is known of an image's file: its name, words about it, why it can't be shown, and, for its owner, its path.

    own: whether whoever asks owns this machine.
    """
    (shape,) = shapes_of(searcher, [record])
    said: dict[str, Any] = {"name": Path(record.path).name, "words": file_words(shape), "problem": shape.problem}
    return {**said, "path": str(searcher.image_path(record))} if own and shape.problem is None else said


def evidence_of(asked: Question, record: ImageRecord) -> dict[str, Any]:
    """The picture of where a match comes from, and words about it; no picture, and why, where it can't be told.

    Of several things each that is wanted has a colour of its own; `things` says which.
    """
    searcher = asked.searcher
    image, problem = large_picture(searcher, record)
    if problem is not None:
        return {"heat": None, "words": [problem], "part": None}
    try:
        if asked.combination is not None:
            return _evidence_of_things(asked, asked.combination, record, image)
        learnt = asked.learnt
        found = find_evidence(searcher, record.id, asked.query.embeddings if learnt is None else learnt.scorer.score)
    except ForError as error:
        return {"heat": None, "words": [_problem(searcher, error)], "part": None}
    words = evidence_words(found, searcher.index.info)
    return {"heat": data_uri(heat_map(image, found.cells)), "words": words, "part": found.embedding}


def parts_of(searcher: Searcher, record: ImageRecord) -> dict[str, Any]:
    """Which part of an image each place belongs to, see `ImageParts`; else the `problem`."""
    try:
        return find_parts(searcher, record.id).to_json()
    except ForError as error:
        return {"part": None, "problem": _problem(searcher, error)}


def _problem(searcher: Searcher, error: ForError) -> str:
    """What an error says, without the server's paths."""
    return without_paths(str(error), (str(searcher.image_root), str(searcher.index.path.absolute())))


def _evidence_of_things(
    asked: Question, combination: Combination, record: ImageRecord, image: Image.Image
) -> dict[str, Any]:
    searcher = asked.searcher
    wanted = [text for role, text in combination.things if role != "none"]
    known = asked.things
    queries = [known[text].score if text in known else searcher.text_query(text).embeddings for text in wanted]
    found = find_evidences(searcher, record.id, queries)
    words = [
        f"{text}: {line}"
        for text, each in zip(wanted, found, strict=True)
        for line in evidence_words(each, searcher.index.info)
    ]
    things = [{"text": text, "colour": THING_COLOURS[i % len(THING_COLOURS)]} for i, text in enumerate(wanted)]
    heat = data_uri(things_map(image, [each.cells for each in found]))
    return {"heat": heat, "words": words, "part": None, "things": things}
