"""The page's functions for programs: JSON values in and out, without a web framework and without paths of this machine.

`index` is the name of one of the library's indexes, as `stats` lists them; an empty one is the first.
"""

import time
from collections.abc import Sequence
from typing import Any

from PIL import Image

from for_model.data.dataset import ImageId
from for_model.errors import DataError, UsageError
from for_search.index.index import Hit
from for_search.library.concept_texts import (
    compare_methods,
    learn,
    learnt_things,
    named_concept,
)
from for_search.library.label_service import default_vocabulary, label_image
from for_search.library.library import Library
from for_search.query.combination import Combination, find_combination
from for_search.query.evidence import find_evidence, find_parts
from for_search.query.image_labels import OWN
from for_search.query.searcher import Query, Searcher, clean_query, without_paths
from for_search.refine.answer import Refinement, whole_answer
from for_search.refine.concepts import concept_name, concept_names, find_by_concept, read_concept
from for_search.refine.feedback import NO_MARKS, feedback_of
from for_search.refine.telling import telling_images

MAX_K = 1000


def search(
    library: Library,
    query: str = "",
    k: int = 12,
    index: str = "",
    all_of: Sequence[str] = (),
    any_of: Sequence[str] = (),
    none_of: Sequence[str] = (),
    where: str = "",
) -> dict[str, Any]:
    """The k images that match a text best, or hold several things at once, and how long that took.

    library: of the index.
    query: a text, or `concept:NAME` for one of the library's concepts, here and wherever a text is; with several things
        it is one of those that must be there, and may be empty.
    k: how many images, 1 to MAX_K.
    index: its name; an empty one for the first.
    all_of, any_of, none_of: what must be in an image, what of which one must be, and what must not; see `Combination`.
    where: a condition over the images' columns, see docs/search.md; an empty one for all images.

    Each hit has its rank, id, score, and whether it is a good match: see `SearchResult.to_json` and, for several
    things, `CombinedResult.to_json`. Raises UsageError for an empty text, an unknown index or concept, k out of
    range, or a condition that can't be understood, and StoreError for a concept of another space.
    """
    searcher = _searcher(library, index)
    if all_of or any_of or none_of:
        _check_k(k)
        if isinstance(all_of, str):  # which would be taken for a list of letters
            raise UsageError(f"all_of is the text {all_of!r}: expected a list of texts")
        combination = Combination((*([query] if query else []), *all_of), any_of, none_of)
        allowed, learnt = searcher.index.where(where), learnt_things(library, index or library.default, combination)
        return find_combination(searcher, combination, k, allowed, learnt).to_json(paths=False)
    concept = named_concept(library, query)
    if concept is not None:
        _check_k(k)
        allowed, sample = searcher.index.where(where), library.sample(index or library.default)
        return find_by_concept(searcher, concept, k, sample, allowed=allowed).to_json(paths=False)
    return _answer(searcher, searcher.text_query(clean_query(query)), k, where)


def search_image(
    library: Library,
    image: Image.Image | ImageId,
    k: int = 12,
    index: str = "",
    embedding: int | None = None,
    text: str = "",
    weight: float = 0.5,
    where: str = "",
) -> dict[str, Any]:
    """The k images that show most of what an image shows, in the form in which `search` answers.

    library: of the index.
    image: an image, or the id of one of the index.
    k: how many images, 1 to MAX_K.
    index: its name; an empty one for the first.
    embedding: of an image of the index, search for what this one of its embeddings stands for; None for the whole.
    text: what the images shall be besides ("red"); an empty one for nothing.
    weight: of the text, 0 to 1; see `Searcher.mixed_query`.
    where: as for `search`.

    `Searcher.find` says what the score is. Raises UsageError for an unknown index, id or embedding, a weight or k out
    of range.
    """
    searcher = _searcher(library, index)
    shown = searcher.image_query(image) if isinstance(image, Image.Image) else searcher.like_query(image, embedding)
    return _answer(searcher, searcher.mixed_query(shown, clean_query(text), weight) if text else shown, k, where)


def compare(library: Library, query: str, k: int = 12, index: str = "") -> dict[str, Any]:
    """A text through every method that has an index of the same images; see `SideBySide`.

    The index itself comes first. Where its labels are at hand and the text, or a concept's name, names a category, hits
    say whether they are right, and each method has its AP@50 for the query.
    """
    _check_k(k)
    name = index or library.default
    return compare_methods(library, name, [name, *library.siblings(name)], query, k).to_json()


def evidence(library: Library, query: str, image_id: ImageId, index: str = "") -> dict[str, Any]:
    """Where in an image the embedding comes from that matches a text best; see `Evidence`."""
    searcher = _searcher(library, index)
    if concept_name(query) is None:
        return find_evidence(searcher, image_id, searcher.text_query(clean_query(query)).embeddings).to_json()
    learnt = learn(library, index or library.default, query, NO_MARKS)
    return find_evidence(searcher, image_id, learnt.scorer.score).to_json()


def parts(library: Library, image_id: ImageId, index: str = "") -> dict[str, Any]:
    """Which embedding stands for which place of an image, to mark one of them; see `find_parts` and `ImageParts`."""
    return find_parts(_searcher(library, index), image_id).to_json()


def pseudo_label(
    library: Library,
    image: Image.Image | ImageId,
    index: str = "",
    vocabulary: str = "",
    names: Sequence[str] = (),
    threshold: float | None = None,
) -> dict[str, Any]:
    """The names that Cluster-CLIP sees in an image; see `label_image`, and `ImageLabels` for the answer.

    library: of the index.
    image: an image, or the id of one of the index.
    index: its name; an empty one for the first.
    vocabulary: one of VOCABULARIES. An empty one stands for `own` if there are `names`, else for the names of the
        index's dataset, or ImageNet-21K where that isn't annotated.
    names: of the vocabulary `own`.
    threshold: in 0..1, the least probability of a label; None for the vocabulary's own.
    """
    name = index or library.default
    chosen = vocabulary or (OWN if names else default_vocabulary(library, name))
    return label_image(library, name, image, chosen, names, threshold)[1].to_json()


def refine(
    library: Library,
    query: str,
    marks: Sequence[dict[str, Any]],
    k: int = 12,
    index: str = "",
    refiner: str = "",
) -> dict[str, Any]:
    """The k best images that aren't marked, by a text and marks on earlier results; see `refine_index`.

    query: the text, or a concept, to whose marks these are added; an empty one if marks are all there is.
    marks: as `feedback_of` takes them: {"image": id, "right": true or false, "embedding": number or null} each.
    k: how many images, 1 to MAX_K.
    index: its name; an empty one for the first.
    refiner: one of REFINERS; an empty one for the concept's own, or the default.

    Without marks the hits are exactly those of `search`. Nothing is kept between calls. `n_gone` marks are of images,
    or embeddings, that the index doesn't have. Raises UsageError for marks that contradict each other or make no sense.
    """
    _check_k(k)
    learnt = _learn(library, query, marks, index, refiner)
    start = time.perf_counter()
    hits = _learnt_hits(learnt, learnt.unmarked(k))
    search_ms = (time.perf_counter() - start) * 1e3
    return {
        "query": query,
        **_said_of(learnt),
        "hits": hits,
        "latency_ms": {"fit": round(learnt.fit_ms, 3), "search": round(search_ms, 3)},
    }


def most_telling(
    library: Library,
    query: str,
    marks: Sequence[dict[str, Any]],
    count: int = 3,
    index: str = "",
    refiner: str = "",
) -> dict[str, Any]:
    """The images whose marks would tell most, to be marked next; see `telling_images`.

    query, marks, index, refiner: as `refine` takes them.
    count: how many images, 1 to MAX_K.

    The hits are those of `refine`, ranked by how much they would tell. Raises as `refine` does.
    """
    _check_k(count)
    learnt = _learn(library, query, marks, index, refiner)
    return {"query": query, **_said_of(learnt), "hits": _learnt_hits(learnt, telling_images(learnt, count))}


def _learnt_hits(learnt: Refinement, hits: Sequence[Hit]) -> list[dict[str, Any]]:
    return [
        {
            "rank": rank,
            "id": hit.image.id,
            "score": hit.score,
            "embedding": hit.embedding,
            "probability": learnt.probability(hit.score),
        }
        for rank, hit in enumerate(hits, start=1)
    ]


def answer_all(
    library: Library,
    query: str,
    marks: Sequence[dict[str, Any]],
    index: str = "",
    refiner: str = "",
    threshold: float = 0.5,
    first: int = 0,
    count: int = MAX_K,
) -> dict[str, Any]:
    """All images of an index that a text and marks mean, a page of them; see `whole_answer`.

    query, marks, index, refiner: as `refine` takes them; at least one mark.
    threshold: the least probability of an image that isn't marked, above 0 and below 1.
    first: how many of the answer's images are left out, those of earlier pages.
    count: how many are listed, 1 to MAX_K.

    `n_images` is the size of the whole answer, `precision` the share of it that is estimated to be right (null where it
    is empty), and `expected_total` how many images of the index are estimated to be meant. Raises as `refine` does.
    """
    _check_k(count)
    if isinstance(first, bool) or not isinstance(first, int) or first < 0:
        raise UsageError(f"first is {first!r}: expected how many images to leave out, 0 or more")
    learnt = _learn(library, query, marks, index, refiner)
    answer = whole_answer(learnt, threshold)
    page = range(first, min(first + count, len(answer.images)))
    return {
        "query": query,
        **_said_of(learnt),
        "n_images": len(answer.images),
        "precision": answer.precision if len(answer.images) else None,
        "expected_total": answer.expected_total,
        "in_words": answer.in_words(),
        "images": [
            {"id": learnt.index.images[int(answer.images[i])].id, "probability": float(answer.probabilities[i])}
            for i in page
        ],
    }


def concepts(library: Library) -> dict[str, Any]:
    """The concepts that the library keeps, which `search` takes as `concept:NAME`; `broken` ones can't be read."""
    folder = library.concepts
    found, broken = [], []
    for name in concept_names(folder) if folder is not None else []:
        try:
            concept = read_concept(folder, name)  # type: ignore[arg-type]
        except DataError as error:
            broken.append({"name": name, "error": without_paths(str(error), [str(folder)])})
            continue
        found.append(
            {
                "name": name,
                "text": concept.text,
                "refiner": concept.refiner,
                "threshold": concept.threshold,
                "n_right": concept.feedback.n_right,
                "n_wrong": concept.feedback.n_wrong,
            }
        )
    return {"concepts": found, "broken": broken}


def stats(library: Library, index: str = "") -> dict[str, Any]:
    """What an index holds, how complete its answers are (`recall`, None where they are exact), and all indexes."""
    name = index or library.default
    held = library.searcher(name).index
    return {
        "index": name,
        "indexes": list(library.names),
        "siblings": list(library.siblings(name)),
        "dataset": held.dataset,
        "split": held.split,
        "method": held.info.to_json(),
        "kind": held.kind,
        "on_server": held.on_server,
        "recall": None if held.recall is None else {**held.recall.to_json(), "text": str(held.recall)},
        "n_images": len(held.images),
        "n_bytes": held.n_bytes,
        "skipped": [{"id": image.id, "reason": image.reason} for image in held.skipped],
    }


def _learn(library: Library, query: str, marks: Sequence[dict[str, Any]], index: str, refiner: str) -> Refinement:
    return learn(library, index or library.default, query, feedback_of(marks), refiner)


def _said_of(learnt: Refinement) -> dict[str, Any]:
    """What every answer says of what it was learnt from."""
    examples = learnt.examples
    counts = {"n_right": len(examples.right), "n_wrong": len(examples.wrong), "n_gone": len(examples.gone)}
    return {"refiner": learnt.learner.name, **counts}


def _searcher(library: Library, index: str) -> Searcher:
    return library.searcher(index or library.default)


def _answer(searcher: Searcher, query: Query, k: int, where: str) -> dict[str, Any]:
    _check_k(k)
    return searcher.judged(query, searcher.find(query, k, searcher.index.where(where))).to_json(paths=False)


def _check_k(k: int) -> None:
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= MAX_K:
        raise UsageError(f"k is {k!r}: ask for 1 to {MAX_K} images")
