"""A user who looks for a name, sees ten images a round, and marks each right or wrong as the labels say.

A refiner's name with ASKED behind it is a user who is shown the seven best images a round, and the three whose marks
would tell most.

Legend: M images, C names, Co joint width.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from for_search.index.index import SearchIndex
from for_search.refine.answer import Refinement, refine_index, whole_answer
from for_search.refine.catalogue_sample import CatalogueSample
from for_search.refine.feedback import Feedback, Mark
from for_search.refine.telling import telling_images

PAGE = 10  # images a round, all of which are marked
ROUNDS = (0, 1, 2, 4, 8)  # after which the answer is scored
ASKED = "+telling"  # behind a refiner's name
N_ASKED = 3  # of a page's images, where what would tell most is asked for
TEXT_ALONE = "text"  # the user who pages through the text's results: nothing is learnt from the marks


@dataclass(frozen=True)
class RoundScores:
    """How good the answer is after some rounds; None where there is nothing to score.

    rounds: so many.
    found: right images among those shown so far.
    ap_unseen: average precision over the images not shown yet; None where no right one is left.
    ap_unseen_text: that of the text alone over the same images.
    ap_list: average precision of what the user has: the images marked right, the others by score, those marked wrong.
    precision, recall: of the whole answer, marked images included.
    estimated_precision, estimated_total: what the answer says of itself.
    fit_ms: to learn from the marks.  whole_ms: to find the probabilities and the whole answer.
    """

    rounds: int
    found: int
    ap_unseen: float | None
    ap_unseen_text: float | None
    ap_list: float
    precision: float | None = None
    recall: float | None = None
    estimated_precision: float | None = None
    estimated_total: float | None = None
    fit_ms: float | None = None
    whole_ms: float | None = None


def full_average_precision(scores: NDArray[np.floating], relevant: NDArray[np.bool_]) -> float | None:
    """Average precision of a whole ranking: the mean of precision(r) over the ranks r of the relevant images.

    scores: [M]; ties in order of position.
    relevant: [M] bool.
    Returns a value in 0..1; None where nothing is relevant.
    """
    ranked = relevant[np.argsort(-scores, kind="stable")]
    if not ranked.any():
        return None
    ranks = np.flatnonzero(ranked) + 1
    return float((np.arange(1, len(ranks) + 1) / ranks).mean())


@dataclass(frozen=True, eq=False)
class Seen:
    """What a user has after some rounds.

    rounds: so many.
    shown: [M] bool, the images that were shown, and so marked.
    scores: [M], by which the next are shown.
    marks: one an image shown.
    learnt: what was learnt from them; None where nothing was.
    """

    rounds: int
    shown: NDArray[np.bool_]
    scores: NDArray[np.float32]
    marks: tuple[Mark, ...]
    learnt: Refinement | None


def rounds_of(
    index: SearchIndex,
    text: NDArray[np.float32],
    relevant: NDArray[np.bool_],
    refiner: str,
    sample: CatalogueSample,
    most: int,
) -> Iterator[Seen]:
    """One search for one name, round after round: 0 to `most`, fewer where every image has been shown.

    The other arguments are those of `simulate`.
    """
    name, asks = refiner.removesuffix(ASKED), refiner.endswith(ASKED)
    scores, shown = index.score_images(text[None])[0], np.zeros(len(index.images), bool)
    marks: list[Mark] = []
    learnt = None
    for done in range(most + 1):
        if done:
            page = _page(scores, shown, learnt if asks else None)
            if not len(page):
                return
            shown[page] = True
            marks += [Mark(index.images[i].id, bool(relevant[i])) for i in page.tolist()]
            if name != TEXT_ALONE:
                learnt = refine_index(index, text, Feedback(tuple(marks)), name, sample)
                scores = learnt.scores()
        yield Seen(done, shown.copy(), scores, tuple(marks), learnt)


def _page(scores: NDArray[np.float32], shown: NDArray[np.bool_], learnt: Refinement | None) -> NDArray[np.int64]:
    """The positions of the images that are shown next.

    learnt: if what would tell most of it is asked for; None for the best images alone.
    """
    telling = []
    if learnt is not None:
        telling = [learnt.index.position(hit.image.id) for hit in telling_images(learnt, N_ASKED, allowed=~shown)]
    left = np.flatnonzero(~shown)
    best = left[np.argsort(-scores[left], kind="stable")]
    best = best[~np.isin(best, telling)][: PAGE - len(telling)]
    return np.concatenate([best, np.array(telling, np.int64)])


def simulate(
    index: SearchIndex,
    text: NDArray[np.float32],
    relevant: NDArray[np.bool_],
    refiner: str,
    sample: CatalogueSample,
    rounds: Sequence[int] = ROUNDS,
) -> list[RoundScores]:
    """One search for one name, scored.

    text: [Co], the name's embedding.
    relevant: [M] bool, which of the index's images show it; at least one.
    refiner: one of REFINERS, with ASKED behind it or not, or TEXT_ALONE.
    sample: of the index.
    rounds: after how many the answer is scored, ascending; fewer where every image has been shown.
    """
    text_scores, results = None, []
    for seen in rounds_of(index, text, relevant, refiner, sample, max(rounds)):
        text_scores = seen.scores if text_scores is None else text_scores  # before anything is learnt
        if seen.rounds in rounds:
            shown, scores = seen.shown, seen.scores
            ranked = np.where(shown, np.where(relevant, np.inf, -np.inf), scores)
            results.append(
                RoundScores(
                    rounds=seen.rounds,
                    found=int((shown & relevant).sum()),
                    ap_unseen=full_average_precision(scores[~shown], relevant[~shown]),
                    ap_unseen_text=full_average_precision(text_scores[~shown], relevant[~shown]),
                    ap_list=full_average_precision(ranked, relevant) or 0.0,
                    **({} if seen.learnt is None else _whole(seen.learnt, relevant)),
                )
            )
    return results


def _whole(learnt: Refinement, relevant: NDArray[np.bool_]) -> dict[str, float | None]:
    """The fields of `RoundScores` that are about the whole answer and the time it took."""
    start = time.perf_counter()
    answer = whole_answer(learnt)
    whole_ms = (time.perf_counter() - start) * 1e3
    right, count = int(relevant[answer.images].sum()), len(answer.images)
    return {
        "precision": right / count if count else None,
        "recall": right / int(relevant.sum()),
        "estimated_precision": answer.precision if count else None,
        "estimated_total": answer.expected_total,
        "fit_ms": learnt.fit_ms,
        "whole_ms": whole_ms,
    }
