"""Several things at once: images that hold a dog and an umbrella and no person, each from an embedding of its own.

A thing's score becomes its probability (see `presence`), whose scale doesn't depend on the word, and the
probabilities are multiplied as if things came and went independently: a strong match can't hide a missing one. The rule
was chosen on MiniScenes' dev split, see docs/search.md.
Shapes: T things, M images, Co joint width.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from for_model.data.dataset import ImageRecord
from for_model.errors import UsageError
from for_search.index.index import SearchIndex
from for_search.query.presence import BEST_IMAGES, MIN_IMAGES, IndexScale
from for_search.query.ranking import best_columns
from for_search.query.searcher import Query, Searcher, clean_query, count_good

Role: TypeAlias = Literal["all", "any", "none"]

MAX_THINGS = 10


@dataclass(frozen=True)
class Combination:
    """What an image shall hold.

    all_of: things that must all be in it.
    any_of: things of which one at least must be in it; none asks for nothing.
    none_of: things that must not be in it.

    Raises UsageError unless something is wanted, each thing has a text, and there are at most MAX_THINGS.
    """

    all_of: Sequence[str] = ()
    any_of: Sequence[str] = ()
    none_of: Sequence[str] = ()

    def __post_init__(self) -> None:
        for role in ("all_of", "any_of", "none_of"):
            given = getattr(self, role)
            if isinstance(given, str) or not all(isinstance(text, str) and text.strip() for text in given):
                raise UsageError(f"{role} is {given!r}: expected a list of texts, none of them empty")
            object.__setattr__(self, role, tuple(clean_query(text.strip()) for text in given))
        if not self.all_of and not self.any_of:
            raise UsageError("nothing is wanted: besides what shall not be there, say what shall, with all or any")
        if len(self.things) > MAX_THINGS:
            raise UsageError(f"got {len(self.things)} things: ask for at most {MAX_THINGS} at once")

    @property
    def things(self) -> tuple[tuple[Role, str], ...]:
        """The T things, each with its role, those of `all_of` first."""
        return (
            *(("all", text) for text in self.all_of),
            *(("any", text) for text in self.any_of),
            *(("none", text) for text in self.none_of),
        )

    def cutoff(self, of_one: float) -> float:
        """The least probability of a good match: that of an image in which each thing wanted just reaches its own."""
        return of_one ** (len(self.all_of) + bool(self.any_of))

    @property
    def label(self) -> str:
        """The combination in words: `dog and umbrella, without person`."""
        wanted = " and ".join([*self.all_of, *([" or ".join(self.any_of)] if self.any_of else [])])
        return f"{wanted}, without {' or '.join(self.none_of)}" if self.none_of else wanted

    def probability(self, of_things: NDArray[np.float64]) -> NDArray[np.float64]:
        """[T, M] probabilities of the things, in the order of `things` -> [M], of all that is asked for together."""
        n_all, n_any = len(self.all_of), len(self.any_of)
        present, either, absent = np.split(of_things, [n_all, n_all + n_any])
        together = present.prod(axis=0) * (1 - absent).prod(axis=0)
        return together * (1 - (1 - either).prod(axis=0)) if n_any else together


@dataclass(frozen=True, eq=False)
class Thing:
    """A text, or what marks have taught in its place: how images are scored for it.

    scores: of every image of the index, [M] float32.
    score: of embeddings, [R, Co] float32 -> [R] float32; an image's score is that of its best one.
    probability: scores of images -> that each shows the thing.
    """

    scores: Callable[[], NDArray[np.float32]]
    score: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    probability: Callable[[NDArray[np.float32]], NDArray[np.float64]]


@dataclass(frozen=True)
class ThingMatch:
    """What one thing has to do with an image.

    score: the cosine of the best-matching embedding.
    probability: that the thing is in the image.
    embedding: which embedding matched, in 0..N-1.
    """

    role: Role
    text: str
    score: float
    probability: float
    embedding: int


@dataclass(frozen=True)
class CombinedHit:
    """An image that was found. probability: of all that was asked for together. matches: of each thing."""

    image: ImageRecord
    probability: float
    matches: tuple[ThingMatch, ...]


@dataclass(frozen=True)
class CombinedResult:
    """The answer to a combination.

    hits: at most k, the most probable first.
    cutoff: the least probability of a good match.
    encode_ms: the texts' way through the encoder.
    search_ms: the index's.
    """

    combination: Combination
    k: int
    hits: tuple[CombinedHit, ...]
    cutoff: float
    encode_ms: float
    search_ms: float

    @property
    def n_good(self) -> int:
        """How many hits, the first ones, are good matches."""
        return count_good([hit.probability for hit in self.hits], self.cutoff)

    def to_json(self, paths: bool = True) -> dict[str, Any]:
        """The answer as JSON values, in the form of `SearchResult.to_json`; a hit's score is its probability."""
        n_good = self.n_good
        return {
            "query": self.combination.label,
            "k": self.k,
            "n_good": n_good,
            "cutoff": self.cutoff,
            "hits": [
                {
                    "rank": rank,
                    "id": hit.image.id,
                    **({"path": hit.image.path} if paths else {}),
                    "score": hit.probability,
                    "probability": round(hit.probability, 4),
                    "good": rank <= n_good,
                    "things": [
                        {
                            "role": match.role,
                            "text": match.text,
                            "score": match.score,
                            "probability": round(match.probability, 4),
                            "embedding": match.embedding,
                        }
                        for match in hit.matches
                    ],
                }
                for rank, hit in enumerate(self.hits, start=1)
            ],
            "latency_ms": {
                "encode": round(self.encode_ms, 3),
                "search": round(self.search_ms, 3),
                "total": round(self.encode_ms + self.search_ms, 3),
            },
        }


def find_combination(
    searcher: Searcher,
    combination: Combination,
    k: int = 10,
    allowed: NDArray[np.bool_] | None = None,
    learnt: Mapping[str, Thing] | None = None,
) -> CombinedResult:
    """The k images that most probably hold what a combination asks for (all of them when there are fewer).

    allowed: [M], the images to choose from, see `SearchIndex.where`; None for all.
    learnt: what some of the things' texts stand for; the others are encoded as they are.

    Every image is scored for every thing, so this takes as long as an exact scan. Equal probabilities in order of image
    id. Raises UsageError for k < 1 and for an index of fewer than MIN_IMAGES images, and what loading the method
    raises.
    """
    scale, index = searcher.scale, searcher.index
    if scale is None:
        raise UsageError(
            f"the index has {len(index.images)} images: to weigh several things against one another it takes at least "
            f"{MIN_IMAGES}"
        )
    known = learnt or {}
    texts = list(dict.fromkeys(text for _, text in combination.things if text not in known))
    queries = [searcher.text_query(text) for text in texts]
    start = time.perf_counter()
    things = {**known, **_as_things(index, scale, texts, queries)}
    wanted = [things[text] for _, text in combination.things]
    scores = np.stack([thing.scores() for thing in wanted])  # [T, M]
    of_things = np.stack([thing.probability(row) for thing, row in zip(wanted, scores, strict=True)])
    together = combination.probability(of_things)
    hits = []
    for column in best_columns(together, k, allowed):
        image = index.images[column]
        parts = index.embeddings(image.id)  # [N, Co]
        best = [thing.score(parts).argmax() for thing in wanted]
        matches = tuple(
            ThingMatch(role, text, float(scores[i, column]), float(of_things[i, column]), int(best[i]))
            for i, (role, text) in enumerate(combination.things)
        )
        hits.append(CombinedHit(image, float(together[column]), matches))
    search_ms = (time.perf_counter() - start) * 1e3
    encode_ms = sum(query.encode_ms for query in queries)
    cutoff = combination.cutoff(scale.numbers.cutoff)
    return CombinedResult(combination, k, tuple(hits), cutoff, encode_ms, search_ms)


def _as_things(
    index: SearchIndex, scale: IndexScale, texts: Sequence[str], queries: Sequence[Query]
) -> dict[str, Thing]:
    """Texts, as things that are scored by their embeddings; the index is scanned once for all of them."""
    if not texts:
        return {}
    embeddings = np.concatenate([query.embeddings for query in queries])  # [texts, Co]
    scores = index.score_images(embeddings)  # [texts, M]
    things = {}
    for i, (text, query) in enumerate(zip(texts, queries, strict=True)):
        each = scale.of_search(query.embeddings, index.take(best_columns(scores[i], BEST_IMAGES)))
        things[text] = Thing(partial(scores.__getitem__, i), partial(np.dot, b=embeddings[i]), each.probability)
    return things
