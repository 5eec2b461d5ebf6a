"""Marks: which images a user called right and which wrong, and the embeddings that they stand for.

An image is several embeddings, and a mark is given to an image. What it says of them:

- Right: one of the image's parts shows what is meant, and nothing is said of the others. It is the embedding that the
  mark names (the one that matched, or that of the region that was clicked), or else the image's best part under the
  current model, chosen anew after each of a few fits, as MI-SVM does (Andrews et al. 2002).
- Wrong: no part shows it, so all of the image's parts are negative. If the mark names a part, it is that one that isn't
  meant, and nothing is learnt from the others; the image counts as wrong all the same.

Legend: P right images, Q wrong images, N embeddings an image, Co joint width.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from for_model.data.dataset import ImageId
from for_model.errors import DataError, UsageError
from for_search.index.index import SearchIndex

MAX_MARKS = 2000  # more take seconds to learn from, and nobody gives them by hand


@dataclass(frozen=True)
class Mark:
    """What a user said of one image.

    right: whether it shows what is meant.
    embedding: which of the image's embeddings is spoken of, in 0..N-1; None to find out which shows it, and for all
        embeddings of a wrong image.
    """

    image: ImageId
    right: bool
    embedding: int | None = None

    def to_json(self) -> dict[str, Any]:
        return {"image": self.image, "right": self.right, "embedding": self.embedding}


@dataclass(frozen=True)
class Feedback:
    """Some marks, at most one an image, in the order in which they were given. `feedback_of` checks them."""

    marks: tuple[Mark, ...] = ()

    @property
    def n_right(self) -> int:
        return sum(mark.right for mark in self.marks)

    @property
    def n_wrong(self) -> int:
        return len(self.marks) - self.n_right

    def then(self, later: "Feedback") -> "Feedback":
        """These marks and later ones, which take the place of those of the same images.

        Raises UsageError for ids of two types, and for more than MAX_MARKS together.
        """
        again = {mark.image for mark in later.marks}
        return _checked((*(mark for mark in self.marks if mark.image not in again), *later.marks))

    def without_parts(self) -> "Feedback":
        """The same marks, none of which says what part is meant: the parts are another method's."""
        return Feedback(tuple(replace(mark, embedding=None) for mark in self.marks))


NO_MARKS = Feedback()


@dataclass(frozen=True)
class Examples:
    """The embeddings of marked images.

    right: P arrays, each [n, Co] float32, the parts one of which is meant: all N, or the one that the mark names.
    wrong: Q arrays, each [n, Co] float32, none of which is meant: likewise.
    right_marks, wrong_marks: the mark of each.
    gone: marks whose image, or whose embedding, the index doesn't have; nothing was learnt from them.
    """

    right: tuple[NDArray[np.float32], ...]
    wrong: tuple[NDArray[np.float32], ...]
    right_marks: tuple[Mark, ...]
    wrong_marks: tuple[Mark, ...]
    gone: tuple[Mark, ...]

    def without(self, right: set[int], wrong: set[int]) -> "Examples":
        """The examples without some, by their positions in `right` and `wrong`."""
        keep_right = [i for i in range(len(self.right)) if i not in right]
        keep_wrong = [i for i in range(len(self.wrong)) if i not in wrong]
        return Examples(
            tuple(self.right[i] for i in keep_right),
            tuple(self.wrong[i] for i in keep_wrong),
            tuple(self.right_marks[i] for i in keep_right),
            tuple(self.wrong_marks[i] for i in keep_wrong),
            self.gone,
        )


def feedback_of(values: Any) -> Feedback:
    """Marks from JSON values: a list of {"image": id, "right": true or false, "embedding": number or null}.

    `embedding` may be left out. The same mark twice counts once, the one that names an embedding before one that
    doesn't. Raises UsageError, in a line that says which mark, for anything else, for an image that is marked right and
    wrong or with two embeddings, and for more than MAX_MARKS marks.
    """
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise UsageError(f'marks are {type(values).__name__}, expected a list of {{"image": id, "right": true}}')
    _check_number(len(values))
    marks: dict[ImageId, Mark] = {}
    for number, value in enumerate(values, start=1):
        mark = _mark(value, number)
        known = marks.get(mark.image)
        if known is not None and known.right != mark.right:
            raise UsageError(f"image {mark.image!r} is marked right and wrong: take one of the two marks away")
        if known is not None and None not in (known.embedding, mark.embedding) and known.embedding != mark.embedding:
            raise UsageError(
                f"image {mark.image!r} is marked with embedding {known.embedding} and with {mark.embedding}: "
                "take one of the two marks away"
            )
        if known is None or known.embedding is None:
            marks[mark.image] = mark
    return _checked(tuple(marks.values()))


def _checked(marks: tuple[Mark, ...]) -> Feedback:
    _check_number(len(marks))
    if len({type(mark.image) for mark in marks}) > 1:
        raise UsageError("marks mix image ids that are numbers with ids that are texts: give them as the search does")
    return Feedback(marks)


def _check_number(count: int) -> None:
    if count > MAX_MARKS:
        raise UsageError(f"{count:,} marks, expected at most {MAX_MARKS:,}: give the ones that say most")


def _mark(value: Any, number: int) -> Mark:
    if isinstance(value, dict) and set(value) <= {"image", "right", "embedding"}:
        image, right, embedding = value.get("image"), value.get("right"), value.get("embedding")
        is_id = isinstance(image, int | str) and not isinstance(image, bool)
        is_number = isinstance(embedding, int) and not isinstance(embedding, bool) and embedding >= 0
        if is_id and isinstance(right, bool) and (embedding is None or is_number):
            return Mark(image, right, embedding)  # type: ignore[arg-type]
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    raise UsageError(f'mark {number} is {shown}, expected {{"image": id, "right": true or false, "embedding": number}}')


def read_marks(path: Path) -> Feedback:
    """The marks of a JSON file: a list as `feedback_of` takes it, or an object with such a list as its `marks`.

    So a concept's file will do. Raises DataError for a file that can't be read, and as `feedback_of` does.
    """
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror or error}): give a file of marks") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} isn't valid JSON ({error}): expected a list of marks") from error
    return feedback_of(values.get("marks") if isinstance(values, dict) else values)


def marked_embeddings(index: SearchIndex, feedback: Feedback) -> Examples:
    """The embeddings of the marked images; what the index doesn't have is left out and listed as `gone`."""
    found: dict[bool, list[NDArray[np.float32]]] = {True: [], False: []}
    marks: dict[bool, list[Mark]] = {True: [], False: []}
    gone = []
    for mark in feedback.marks:
        try:
            parts = index.embeddings(mark.image)  # [N, Co]
        except UsageError:
            gone.append(mark)
            continue
        if mark.embedding is not None:
            parts = parts[mark.embedding : mark.embedding + 1]
        if not len(parts):
            gone.append(mark)
            continue
        found[mark.right].append(parts)
        marks[mark.right].append(mark)
    return Examples(tuple(found[True]), tuple(found[False]), tuple(marks[True]), tuple(marks[False]), tuple(gone))
