"""Answers to a text and marks: the best images that aren't marked, and all images of the catalogue that are meant.

Legend: M images of an index, N embeddings an image, Co joint width.
"""

import time
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from for_model.data.dataset import ImageId
from for_model.errors import UsageError
from for_search.index.index import Hit, SearchIndex
from for_search.query.ranking import best_columns
from for_search.refine.calibration import Calibration, calibrate
from for_search.refine.catalogue_sample import CatalogueSample, is_small, sample_catalogue
from for_search.refine.feedback import Examples, Feedback, marked_embeddings
from for_search.refine.guided_search import GuidedSearch
from for_search.refine.learners.branches import SketchScorer
from for_search.refine.learners.refiner_protocol import LinearScorer, Refiner, Scorer, image_scores
from for_search.refine.learners.refiners import DEFAULT_REFINER, refiner_of
from for_search.refine.learners.similarity import SimilarityScorer
from for_search.refine.one_thread import products_by_one_thread


@dataclass(frozen=True, eq=False)
class Refinement:
    """What was learnt from a text and marks, for one index.

    text: [Co], the text's embedding; None without a text.
    examples: the marks that were learnt from, and those whose images are gone.
    learner: the refiner.
    sample: of the index; None where there is no mark.
    scorer: of embeddings. Without any mark it is the text itself, and so the order of images is exactly the text's.
    fit_ms: how long it took to learn the scorer.
    """

    index: SearchIndex
    text: NDArray[np.float32] | None
    examples: Examples
    learner: Refiner
    sample: CatalogueSample | None
    scorer: Scorer
    fit_ms: float

    @cached_property
    def calibration(self) -> Calibration | None:
        """From scores to probabilities, found when it is first asked for; None without any mark: nothing is known."""
        if self.sample is None:
            return None
        with products_by_one_thread():
            return calibrate(self.learner, self.scorer, self.text, self.examples, self.sample)

    @property
    def marked(self) -> frozenset[ImageId]:
        """The ids of the marked images, those that are gone left aside."""
        marks = (*self.examples.right_marks, *self.examples.wrong_marks)
        return frozenset(self.index.image(mark.image).id for mark in marks)  # which takes "7" for 7

    def probability(self, score: float) -> float | None:
        """How probable it is that an image of this score is meant; None without any mark."""
        if self.calibration is None:
            return None
        return float(self.calibration.probabilities(np.array([score], np.float32))[0])

    def unmarked(self, k: int) -> list[Hit]:
        """The k best images that aren't marked, all of them where there are fewer; ties in order of image id.

        Raises UsageError for k < 1.
        """
        if k < 1:
            raise UsageError(f"k is {k}: ask for at least 1 image")
        marked = self.marked
        return [hit for hit in self.best(k + len(marked)) if hit.image.id not in marked][:k]

    def best(self, k: int, allowed: NDArray[np.bool_] | None = None, exact: bool = False) -> list[Hit]:
        """The k best images, marked or not; ties in order of image id. Raises UsageError for k < 1.

        allowed: [M], the images to choose from, see `SearchIndex.where`; None for all.
        exact: look at every embedding, whatever the index's engine.
        """
        if isinstance(self.scorer, LinearScorer):
            return self.index.search(self.scorer.query[None], k, allowed, exact)[0]
        if isinstance(self.scorer, SketchScorer) and k >= 1 and not exact:
            return self._best_by_sketches(self.scorer, k, allowed)
        if self._guided is not None and k >= 1 and not exact and not is_small(self.index):
            found = self._guided.best(k, allowed)
            if found is not None:
                return [self.hit(place) for place in found.tolist()]
        return [self.hit(column) for column in best_columns(self.scores(), k, allowed)]

    def scores(self) -> NDArray[np.float32]:
        """The score of every image, [M] float32, in the order of the index's images: that of its best embedding.

        Of a small index they are found once.
        """
        return self._scores_once if is_small(self.index) else self._scan()

    @cached_property
    def _scores_once(self) -> NDArray[np.float32]:
        scores = self._scan()
        scores.setflags(write=False)
        return scores

    def _scan(self) -> NDArray[np.float32]:
        if isinstance(self.scorer, LinearScorer):
            return self.index.score_images(self.scorer.query[None])[0]
        scores = np.empty(len(self.index.images), np.float32)
        if isinstance(self.scorer, SketchScorer):
            scores[:] = self.scorer.images(0)[1]
            return scores
        with products_by_one_thread():
            for places, embeddings in self.index.iter_embeddings():
                scores[places] = image_scores(self.scorer, embeddings)
        return scores

    def some_scores(self) -> NDArray[np.float32]:
        """The scores of every image of a small index, and of a larger one of some images: enough for a histogram."""
        if is_small(self.index) or self.sample is None:
            return self.scores()
        return self.sampled_scores(self.sample)

    def hit(self, position: int) -> Hit:
        """An image by its position in the index's images, its score and its best embedding."""
        image = self.index.images[position]
        scores = self.scorer.score(self.index.embeddings(image.id))  # [N]
        best = int(scores.argmax())
        return Hit(image, float(scores[best]), best)

    def sampled_scores(self, sample: CatalogueSample) -> NDArray[np.float32]:
        """The scores of the sample's images, [S] float32."""
        return image_scores(self.scorer, sample.images)

    def at_least(self, score: float) -> tuple[NDArray[np.int64], NDArray[np.float32]] | None:
        """The images of that score or more: their places [m] and scores [m]. None where only a scan tells which.

        What the index's engine, or the scan of its sketches, finds of them.
        """
        if isinstance(self.scorer, LinearScorer):
            assert self.sample is not None, "something is marked"
            share = float((self.sampled_scores(self.sample) >= score).mean())
            return self.index.at_least(self.scorer.query, score, int(1.2 * share * len(self.index.images)))
        if isinstance(self.scorer, SketchScorer) and self.scorer.least(score):
            places, scores = self.scorer.images(self.scorer.least(score))
            return places[scores >= score], scores[scores >= score]
        return None if self._guided is None else self._guided.at_least(score)

    @cached_property
    def _guided(self) -> GuidedSearch | None:
        """How a large index is searched for what no single vector says; None where nothing like one is known."""
        if not isinstance(self.scorer, SimilarityScorer) or self.sample is None:
            return None
        marked = np.array([self.index.position(image) for image in self.marked], np.int64)
        return GuidedSearch(self.index, self.scorer, self.scorer.guide, self.sample, marked)

    def _best_by_sketches(self, scorer: SketchScorer, k: int, allowed: NDArray[np.bool_] | None) -> list[Hit]:
        """The best images by the boxes that hold them, and, where they hold too few, by the text."""
        n_images = len(self.index.images)
        least = scorer.enough(k if allowed is None else n_images)
        places, scores = scorer.images(least)
        if allowed is not None:
            places, scores = places[allowed[places]], scores[allowed[places]]
        order = np.lexsort((places, -scores))[:k]
        found = [(int(places[i]), float(scores[i])) for i in order]
        if len(found) < k and self.text is not None:  # no box holds any other
            known = {place for place, _ in found}
            hits = self.index.search(self.text[None], min(n_images, k + len(known)), allowed)[0]
            rest = [place for hit in hits if (place := self.index.position(hit.image.id)) not in known][
                : k - len(found)
            ]
            own = [float(scorer.score(self.index.take([place])[0]).max()) for place in rest]
            found += sorted(zip(rest, own, strict=True), key=lambda each: (-each[1], each[0]))
        return [replace(self.hit(place), score=score) for place, score in found]


@dataclass(frozen=True, eq=False)
class WholeAnswer:
    """All images of an index that are taken to be meant.

    images: positions in the index's images: those marked right, in the order of the marks, then the others, the most
        probable first.
    probabilities: of each, in 0..1; 1 for those that are marked.
    precision: the share of them that is estimated to be right; NaN where there is none.
    expected_total: how many images of the whole index are estimated to be meant.
    threshold: the least probability of an image that isn't marked.
    scanned: whether every embedding was looked at; else `expected_total` counts what isn't in the answer by the sample.
    """

    images: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    precision: float
    expected_total: float
    threshold: float
    scanned: bool

    def in_words(self) -> str:
        """`about 340 images, 90% right`."""
        if not len(self.images):
            return "no image"
        count = len(self.images)
        return f"about {count:,} image{'' if count == 1 else 's'}, {100 * self.precision:.0f}% right"


def refine_index(
    index: SearchIndex,
    text: NDArray[np.float32] | None,
    feedback: Feedback,
    refiner: str = DEFAULT_REFINER,
    sample: CatalogueSample | None = None,
) -> Refinement:
    """Learn what is meant from a text and marks.

    text: [Co] float32, unit-norm; None for what only marks tell.
    refiner: one of REFINERS.
    sample: of the index; None to draw it now.
    Raises UsageError for an unknown refiner, and without a text and any right image of the index.
    """
    learner = refiner_of(refiner)
    examples = marked_embeddings(index, feedback)
    if text is None and not examples.right:
        gone = f" ({len(examples.gone)} marked images are gone)" if examples.gone else ""
        raise UsageError(f"there is neither a text nor a right image to go by{gone}: give one of the two")
    if not examples.right and not examples.wrong:
        assert text is not None
        return Refinement(index, text, examples, learner, None, LinearScorer(text), 0.0)
    sample = sample or sample_catalogue(index)
    start = time.perf_counter()
    with products_by_one_thread():
        scorer = learner.fit(text, examples, sample)
    return Refinement(index, text, examples, learner, sample, scorer, (time.perf_counter() - start) * 1e3)


def whole_answer(
    refinement: Refinement, threshold: float = 0.5, exact: bool = False, allowed: NDArray[np.bool_] | None = None
) -> WholeAnswer:
    """All images that are as probable as `threshold`, and those marked right; never one that is marked wrong.

    threshold: above 0 and below 1.
    exact: look at every embedding in a large index too; in a small one, see `is_small`, that is done in any case.
    allowed: [M], the images to choose from, see `SearchIndex.where`; None for all.
    Raises UsageError for another threshold, and without any mark: a text alone doesn't tell how many images are meant.
    """
    if not 0 < threshold < 1:
        raise UsageError(f"the threshold is {threshold}: expected a probability above 0 and below 1")
    calibration, sample = refinement.calibration, refinement.sample
    if calibration is None or sample is None:
        raise UsageError("nothing is marked, so nobody can say how many images are meant: mark some right and wrong")
    position, examples = refinement.index.position, refinement.examples
    right = np.array([position(mark.image) for mark in examples.right_marks], np.int64)
    marked = np.concatenate([right, [position(mark.image) for mark in examples.wrong_marks]]).astype(np.int64)
    found = None if exact or is_small(refinement.index) else refinement.at_least(calibration.score(threshold))
    if found is None:
        every = calibration.probabilities(refinement.scores())  # [M]
        if allowed is not None:
            every[~allowed] = 0
        places = np.flatnonzero(every >= threshold)
        probabilities = every[places]
        every[places] = every[marked] = 0
        rest = float(every.sum())
    else:
        places, probabilities = found[0], calibration.probabilities(found[1])
        if allowed is not None:
            places, probabilities = places[allowed[places]], probabilities[allowed[places]]
        sampled = calibration.probabilities(refinement.sampled_scores(sample))
        n_images = len(refinement.index.images) if allowed is None else int(allowed.sum())
        n_rest = max(0, n_images - len(np.union1d(places, marked)))
        rest = n_rest * float(sampled[sampled < threshold].mean()) if (sampled < threshold).any() else 0.0
    if allowed is not None:
        right = right[allowed[right]]
    unmarked = ~np.isin(places, marked)
    places, probabilities = places[unmarked], probabilities[unmarked]
    order = np.lexsort((places, -probabilities))
    images = np.concatenate([right, places[order]])
    chosen = np.concatenate([np.ones(len(right)), probabilities[order]])
    precision = float(chosen.mean()) if len(images) else float("nan")
    return WholeAnswer(images, chosen, precision, float(chosen.sum()) + rest, threshold, found is None)
