"""One query through several methods over the same images: what each finds, how well, and how far they agree."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from for_model.data.dataset import Dataset, ImageId
from for_model.prompts import prompted_name
from for_search.query.ranking import average_precision_at_k
from for_search.query.searcher import Searcher, SearchResult

AP_DEPTH = 50  # images that the query's AP@50 looks at


@dataclass(frozen=True)
class MethodAnswer:
    """What one method found.

    name: of its index.
    method, n_embeddings: which method, and N.
    result: the k best images, and the times.
    relevant: of each of the k images, whether it is labelled with the query's category, None for an image that a
        federated dataset hasn't judged for it; None altogether where the query names no category.
    average_precision: AP@50 divided by min(P, 50), in 0..1, images that aren't judged counted as not relevant; None
        where there is no category, or no image of it.
    """

    name: str
    method: str
    n_embeddings: int
    result: SearchResult
    relevant: tuple[bool | None, ...] | None
    average_precision: float | None


@dataclass(frozen=True)
class SideBySide:
    """The answers of several methods to one query.

    category: that the query names, if any.
    n_relevant: P, the images labelled with it.
    overlap: [methods, methods], the share of the k best images that two methods have in common.
    """

    query: str
    k: int
    category: str | None
    n_relevant: int | None
    answers: tuple[MethodAnswer, ...]
    overlap: NDArray[np.float64]

    def to_json(self) -> dict[str, Any]:
        """The comparison as JSON values; images by their ids alone."""
        return {
            "query": self.query,
            "k": self.k,
            "category": self.category,
            "n_relevant": self.n_relevant,
            "methods": [_to_json(answer) for answer in self.answers],
            "overlap": [[round(float(share), 4) for share in row] for row in self.overlap],
        }


def _to_json(answer: MethodAnswer) -> dict[str, Any]:
    found = answer.result.to_json(paths=False)
    hits = found["hits"]
    if answer.relevant is not None:
        hits = [{**hit, "relevant": relevant} for hit, relevant in zip(hits, answer.relevant, strict=True)]
    return {
        "index": answer.name,
        "method": answer.method,
        "n_embeddings": answer.n_embeddings,
        "average_precision": answer.average_precision,
        "latency_ms": found["latency_ms"],
        "hits": hits,
    }


Find = Callable[[Searcher, int], SearchResult]  # the k best images of an index, by whatever is searched for


def ask_side_by_side(
    searchers: Mapping[str, Searcher],
    text: str,
    k: int,
    dataset: Dataset | None = None,
    find: Find | None = None,
    named: str | None = None,
) -> SideBySide:
    """Ask several methods for the k images that match a text best.

    searchers: by the names of their indexes, at least one, all of the same images.
    dataset: their labels, if any.
    find: finds what the text stands for, if it isn't to be searched for as it is: a concept's name.
    named: what is looked for among the categories; None for the text.
    A search goes as deep as AP@50 needs where there are labels for it, and its time is that of the deep one.
    Raises UsageError for an empty text or k < 1.
    """
    category = named_category(text if named is None else named, dataset)
    presence = _presence(dataset, category)
    ask: Find = find or (lambda searcher, depth: searcher.search(text, depth))
    answers = tuple(_answer(name, searcher, ask, k, presence) for name, searcher in searchers.items())
    n_relevant = None if presence is None else _n_relevant(next(iter(searchers.values())), presence)
    return SideBySide(text, k, category, n_relevant, answers, _overlap(answers, k))


def named_category(text: str, dataset: Dataset | None) -> str | None:
    """The category that a query names, a leading article and capitals aside; None for none, or a dataset without."""
    name = (prompted_name(text) or "").casefold()
    names = () if dataset is None else tuple(category.name for category in dataset.categories)
    return next((known for known in names if name and known.casefold() == name), None)


def _presence(dataset: Dataset | None, category: str | None) -> dict[ImageId, bool] | None:
    """Image id -> whether a category is in it; None where there is no category.

    Images that a federated dataset hasn't judged for the category are not listed.
    """
    if dataset is None or category is None:
        return None
    number = next(i for i, known in enumerate(dataset.categories) if known.name == category)
    present: dict[ImageId, bool] = {}
    for image in dataset.images:
        if number in dataset.labels.get(image.id, ()):
            present[image.id] = True
        elif dataset.negatives is None or number in dataset.negatives.get(image.id, ()):
            present[image.id] = False
    return present


def _answer(name: str, searcher: Searcher, ask: Find, k: int, presence: Mapping[ImageId, bool] | None) -> MethodAnswer:
    result = ask(searcher, k if presence is None else max(k, AP_DEPTH))
    relevant, average_precision = None, None
    if presence is not None:
        found = [presence.get(hit.image.id) for hit in result.hits]
        n_relevant = _n_relevant(searcher, presence)
        if n_relevant:
            hits = np.array([each is True for each in found], dtype=bool)
            average_precision = float(average_precision_at_k(hits, np.array(n_relevant), AP_DEPTH))
        relevant = tuple(found[:k])
    shown = SearchResult(result.query, k, result.hits[:k], result.encode_ms, result.search_ms)
    info = searcher.index.info
    return MethodAnswer(name, info.method, info.n_embeddings, shown, relevant, average_precision)


def _n_relevant(searcher: Searcher, presence: Mapping[ImageId, bool]) -> int:
    """P: the images of an index that the category is in."""
    return sum(presence.get(image.id) is True for image in searcher.index.images)


def _overlap(answers: tuple[MethodAnswer, ...], k: int) -> NDArray[np.float64]:
    """[methods, methods]: shared images over k, or over the number of images where there are fewer than k."""
    found = [{hit.image.id for hit in answer.result.hits} for answer in answers]
    return np.array([[len(one & other) / max(len(one), len(other)) for other in found] for one in found])
