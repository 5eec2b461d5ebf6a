"""Which images are asked about: unsure ones, apart from each other, none of them marked."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from for_model.errors import UsageError
from for_search.refine.answer import refine_index
from for_search.refine.feedback import NO_MARKS, feedback_of
from for_search.refine.telling import telling_images
from tests.helpers.planted_index import Planted, make_planted


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return make_planted(tmp_path_factory.mktemp("telling"))


def test_they_lie_at_the_edge_of_the_answer_and_apart(planted: Planted) -> None:
    learnt = refine_index(planted.index, planted.text, feedback_of(planted.marks(30)))
    assert learnt.calibration is not None
    hits = telling_images(learnt, 3)
    assert len({hit.image.id for hit in hits} - learnt.marked) == 3
    probabilities = learnt.calibration.probabilities(learnt.scores())
    others = [p for image, p in zip(planted.index.images, probabilities, strict=True) if image.id not in learnt.marked]
    asked = [learnt.probability(hit.score) or 0.0 for hit in hits]
    assert np.mean([abs(p - 0.5) > max(abs(a - 0.5) for a in asked) for p in others]) > 0.8
    logits = np.abs(np.log(probabilities) - np.log1p(-probabilities))
    marked = [planted.index.position(image) for image in learnt.marked]
    logits[marked] = np.inf
    nearest = [planted.index.images[place].id for place in np.argsort(logits, kind="stable")[:30].tolist()]
    assert hits[0].image.id == nearest[0]
    assert {hit.image.id for hit in hits} < set(nearest)

    def part(image: int | str) -> NDArray[np.float32]:
        rows = planted.index.embeddings(image)
        return np.asarray(rows[int(learnt.scorer.score(rows).argmax())])

    likeness = [float(part(nearest[0]) @ part(image)) for image in nearest[1:]]
    assert float(part(nearest[0]) @ part(hits[1].image.id)) == min(likeness)  # the one that is least like the first


def test_a_choice_of_images_few_of_them_and_no_marks(tmp_path: Path, planted: Planted) -> None:
    learnt = refine_index(planted.index, planted.text, feedback_of(planted.marks(30)))
    allowed = np.zeros(len(planted.index.images), bool)
    marked = {planted.index.position(image) for image in learnt.marked}
    two = [place for place in range(len(allowed)) if place not in marked][:2]
    allowed[[*two, *marked]] = True
    assert {planted.index.position(hit.image.id) for hit in telling_images(learnt, 3, allowed=allowed)} == set(two)
    unmarked = telling_images(refine_index(planted.index, planted.text, NO_MARKS), 3)
    best = {hit.image.id for hit in planted.index.search(planted.text[None], 30)[0]}
    assert {hit.image.id for hit in unmarked} <= best
    small = make_planted(tmp_path, 3)
    assert telling_images(refine_index(small.index, small.text, feedback_of(small.marks(3)))) == []
    with pytest.raises(UsageError, match="count is 0"):
        telling_images(learnt, 0)
