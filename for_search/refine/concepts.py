"""Concepts: what was meant by a text and marks, kept under a name and used wherever a text is.

    CONCEPTS/NAME.json   text, marks, refiner, threshold, and the images, the space and the method that were marked

What was learnt isn't kept: it is learnt again from the marks in a moment, and so the file can be read, edited and
carried to an index by another method of the same text space.
"""

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from for_model.errors import DataError, StoreError, UsageError
from for_model.files import read_own_json, sha256_json, write_json
from for_search.index.index import SearchIndex
from for_search.query.combination import Thing
from for_search.query.searcher import Searcher, SearchResult, clean_query
from for_search.refine.answer import Refinement, refine_index
from for_search.refine.catalogue_sample import CatalogueSample
from for_search.refine.feedback import NO_MARKS, Feedback, feedback_of, read_marks
from for_search.refine.learners.refiners import DEFAULT_REFINER, refiner_of

FORMAT = "for-concept/2"
PREFIX = "concept:"  # of a text that names a concept
_AGAIN = "mend it, or delete it and make the concept again from its marks"
_NAME = re.compile(r"[^\W_][\w .+-]{0,63}")
_FIELDS = {"format", "name", "text", "refiner", "threshold", "images", "space", "method_sha256", "marks"}


@dataclass(frozen=True)
class KeptConcept:
    """A concept.

    name: under which it is kept.
    text: "" for what only marks tell.
    feedback: the marks.
    refiner: learns from them.
    threshold: the least probability of an image of the whole answer.
    images: dataset and split of the images that were marked: in another one their ids are other images.
    text_space: see `MethodInfo`; indexes of it can be searched for the concept.
    method_sha256: of the method whose embeddings the marks name; by another one, right images' parts are found out.

    Raises UsageError for a name that is no file's, an unknown refiner, a threshold that is no probability, and
    without a text and any right image.
    """

    name: str
    text: str
    feedback: Feedback
    refiner: str
    threshold: float
    images: tuple[str, str]
    text_space: tuple[str, str, int]
    method_sha256: str

    def __post_init__(self) -> None:
        check_name(self.name)
        refiner_of(self.refiner)
        threshold = self.threshold
        if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 < threshold < 1:
            raise UsageError(f"the threshold is {threshold!r}: expected a probability above 0 and below 1")
        if not self.text.strip() and not self.feedback.n_right:
            raise UsageError(f"concept {self.name!r} has neither a text nor a right image: give one of the two")

    def to_json(self) -> dict[str, Any]:
        (dataset, split), (backbone, weights, dim) = self.images, self.text_space
        return {
            "format": FORMAT,
            "name": self.name,
            "text": self.text,
            "refiner": self.refiner,
            "threshold": self.threshold,
            "images": {"dataset": dataset, "split": split},
            "space": {"backbone": backbone, "weights_sha256": weights, "dim": dim},
            "method_sha256": self.method_sha256,
            "marks": [mark.to_json() for mark in self.feedback.marks],
        }


def make_concept(
    name: str,
    index: SearchIndex,
    feedback: Feedback,
    text: str = "",
    refiner: str = DEFAULT_REFINER,
    threshold: float = 0.5,
) -> KeptConcept:
    """A concept of the marks given on an index. Raises as `KeptConcept` does."""
    images, info = (index.dataset, index.split), index.info
    return KeptConcept(name, text, feedback, refiner, threshold, images, info.text_space, sha256_json(info.to_json()))


def check_name(name: str) -> str:
    """Raise UsageError unless `name` can name a concept: a letter or digit, then at most 63 of those, space or _.+-"""
    if not _NAME.fullmatch(name):
        raise UsageError(f"a concept can't be called {name!r}: take at most 64 letters, digits, spaces and _ . + -")
    return name


def write_concept(folder: Path, concept: KeptConcept, replace: bool = False) -> Path:
    """Write CONCEPTS/NAME.json. Raises UsageError where one of the name is there and isn't to be replaced."""
    path = folder / f"{check_name(concept.name)}.json"
    if path.exists() and not replace:
        raise UsageError(f"{path} is there already: take another name, delete it, or replace it")
    try:
        write_json(path, concept.to_json())
    except OSError as error:
        raise DataError(f"{path} can't be written ({error.strerror or error}): choose another folder") from error
    return path


def read_concept(folder: Path, name: str) -> KeptConcept:
    """A concept.

    Raises UsageError where there is none of the name, with those that there are, and DataError, in a line that says
    what is wrong, for a file that isn't one.
    """
    path = folder / f"{check_name(name)}.json"
    try:
        value = read_own_json(path, FORMAT, _AGAIN, DataError, sealed_by_hash=False)
    except (FileNotFoundError, NotADirectoryError):
        known = ", ".join(concept_names(folder)) or "none yet"
        raise UsageError(f"no concept is called {name!r} in {folder}, there are: {known}") from None
    return _concept_of(value, path)


def _concept_of(value: dict[str, Any], path: Path) -> KeptConcept:
    if set(value) != _FIELDS:
        wrong = ", ".join(sorted(set(value) ^ _FIELDS))
        raise DataError(f"{path} has missing or unknown fields ({wrong}): expected {', '.join(sorted(_FIELDS))}")
    try:
        space, images = value["space"], value["images"]
        texts = [value[field] for field in ("name", "text", "refiner", "method_sha256")]
        texts += [images["dataset"], images["split"], space["backbone"], space["weights_sha256"]]
        if not all(isinstance(text, str) for text in texts) or not isinstance(space["dim"], int):
            raise UsageError("name, text, refiner, images, backbone and hashes must be texts, dim a number")
        name, text, refiner, method, dataset, split, backbone, weights = texts
        if name != path.stem:
            raise UsageError(f"its name is {name!r}, which is not the file's")
        feedback, text_space = feedback_of(value["marks"]), (backbone, weights, space["dim"])
        return KeptConcept(name, text, feedback, refiner, value["threshold"], (dataset, split), text_space, method)
    except (UsageError, KeyError, TypeError) as error:
        raise DataError(f"{path} isn't a sound concept: {error}; mend it, or make the concept again") from error


def concept_names(folder: Path) -> list[str]:
    """The names of all concepts in a folder, sorted; none where the folder isn't there."""
    return sorted(path.stem for path in folder.glob("*.json") if _NAME.fullmatch(path.stem))


def delete_concept(folder: Path, name: str) -> None:
    """Delete a concept's file, whatever it holds. Raises UsageError where there is none of the name."""
    try:
        (folder / f"{check_name(name)}.json").unlink()
    except FileNotFoundError:
        known = ", ".join(concept_names(folder)) or "none yet"
        raise UsageError(f"no concept is called {name!r} in {folder}, there are: {known}") from None


def describe_concept(folder: Path, name: str) -> str:
    """A line about a concept, or what is wrong with its file."""
    try:
        concept = read_concept(folder, name)
    except DataError as error:
        return f"{name}: {error}"
    feedback = concept.feedback
    return f"{name}: {concept.text or 'no text'}, {feedback.n_right} right, {feedback.n_wrong} wrong"


def concept_name(text: str) -> str | None:
    """`concept:jumping dog` -> `jumping dog`; None for a text that names no concept."""
    return text[len(PREFIX) :].strip() if text.startswith(PREFIX) else None


def read_text_of(path: Path) -> str:
    """The text of a file of marks that is a concept's, "" where it is a bare list. Raises DataError as `read_marks`."""
    read_marks(path)
    value = json.loads(path.read_bytes())
    text = value.get("text", "") if isinstance(value, dict) else ""
    return text if isinstance(text, str) else ""


def find_by_concept(
    searcher: Searcher,
    concept: KeptConcept,
    k: int,
    sample: CatalogueSample | None = None,
    allowed: NDArray[np.bool_] | None = None,
    exact: bool = False,
) -> SearchResult:
    """The k best images of a concept, marked ones among them at their scores, as a search for a text gives them.

    allowed: [M], the images to choose from, see `SearchIndex.where`; None for all.
    exact: look at every embedding, whatever the index's engine.
    """
    start = time.perf_counter()
    learnt = refine_by_concept(searcher, concept, sample)
    hits = learnt.best(k, allowed, exact)
    return SearchResult(PREFIX + concept.name, k, tuple(hits), 0.0, (time.perf_counter() - start) * 1e3)


def refine_by_concept(
    searcher: Searcher,
    concept: KeptConcept,
    sample: CatalogueSample | None = None,
    more: Feedback = NO_MARKS,
    refiner: str = "",
) -> Refinement:
    """Learn a concept again, for an index of its text space and images.

    sample: of the index; None to draw it now.
    more: marks given since, which take the place of the concept's own of the same images.
    refiner: one of REFINERS; an empty one for the concept's own.
    Raises StoreError, in one line, for an index of another text space or other images, and as `refine_index` does.
    """
    index = searcher.index
    info = index.info
    if concept.text_space != info.text_space:
        (backbone, weights, dim), (other, other_weights, other_dim) = concept.text_space, info.text_space
        raise StoreError(
            f"concept {concept.name!r} was made with {backbone} ({weights[:12]}, width {dim}), the index with {other} "
            f"({other_weights[:12]}, width {other_dim}): make the concept again for this index from its marks"
        )
    if concept.feedback.marks and concept.images != (index.dataset, index.split):
        raise StoreError(
            f"concept {concept.name!r} was marked on images of {' '.join(concept.images)}, the index holds those of "
            f"{index.dataset} {index.split}, and their ids mean others: mark images of this index"
        )
    text = searcher.text_query(clean_query(concept.text)).embeddings[0] if concept.text.strip() else None
    same_parts = concept.method_sha256 == sha256_json(info.to_json())
    feedback = concept.feedback if same_parts else concept.feedback.without_parts()
    return refine_index(index, text, feedback.then(more), refiner or concept.refiner, sample)


def learnt_thing(learnt: Refinement, name: str) -> Thing:
    """What was learnt as one of several things to search for at once. Raises UsageError where nothing was."""
    if learnt.calibration is None:
        raise UsageError(f"{name} has no marks of images of this index, so nothing is known of its scores")
    return Thing(learnt.scores, learnt.scorer.score, learnt.calibration.probabilities)
