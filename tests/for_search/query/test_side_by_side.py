"""Several methods side by side: what is right, AP@50, agreement; and its HTML."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from for_app.views.side_by_side import comparison_html
from for_model.data.dataset import Category, Dataset
from for_model.errors import UsageError
from for_search.library.library import Library
from for_search.query.searcher import Searcher
from for_search.query.side_by_side import SideBySide, ask_side_by_side, named_category
from tests.helpers.tiny_index import make_library

QUERY = "Umbrella"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return make_library(tmp_path_factory.mktemp("compare"), 60)


@pytest.fixture(scope="module")
def searchers(library: Library) -> dict[str, Searcher]:
    return {name: library.searcher(name) for name in library.names}


@pytest.fixture(scope="module")
def dataset(library: Library) -> Dataset:
    dataset = library.labels(library.default)
    assert dataset is not None
    return dataset


def with_labels(dataset: Dataset, searcher: Searcher, present: set[int], unknown: set[int] = frozenset()) -> Dataset:
    """The dataset with one category, in the images of these positions; of `unknown` ones nothing is known."""
    ids = [image.id for image in searcher.index.images]
    negatives = {image_id: frozenset({0}) for i, image_id in enumerate(ids) if i not in present | unknown}
    return replace(
        dataset,
        categories=(Category("umbrella", "base"),),
        labels={ids[i]: frozenset({0}) for i in present},
        negatives=negatives if unknown else None,
    )


def slow_ap(relevant: list[bool], n_relevant: int) -> float:
    total, hits = 0.0, 0
    for rank, right in enumerate(relevant[:50], start=1):
        if right:
            hits += 1
            total += hits / rank
    return total / min(n_relevant, 50)


def test_what_is_right_and_how_well(searchers: dict[str, Searcher], dataset: Dataset) -> None:
    present = {1, 4, 9, 30, 55}
    labelled = with_labels(dataset, next(iter(searchers.values())), present)
    result = ask_side_by_side(searchers, QUERY, 7, labelled)
    assert (result.category, result.n_relevant, result.k) == ("umbrella", 5, 7)
    assert [answer.name for answer in result.answers] == list(searchers)
    assert [answer.n_embeddings for answer in result.answers] == [8, 1, 25, 3]
    for answer in result.answers:
        searcher = searchers[answer.name]
        positions = {image.id: i for i, image in enumerate(searcher.index.images)}
        deep = [positions[hit.image.id] in present for hit in searcher.search(QUERY, 60).hits]
        assert list(answer.relevant or ()) == deep[:7]
        assert answer.average_precision == pytest.approx(slow_ap(deep, 5))
        assert [hit.image.id for hit in answer.result.hits] == [h.image.id for h in searcher.search(QUERY, 7).hits]


def test_what_a_federated_dataset_does_not_know_is_neither(searchers: dict[str, Searcher], dataset: Dataset) -> None:
    first = dict(list(searchers.items())[:1])
    searcher = next(iter(first.values()))
    labelled = with_labels(dataset, searcher, {2}, unknown=set(range(10, 60)))
    positions = {image.id: i for i, image in enumerate(searcher.index.images)}
    answer = ask_side_by_side(first, QUERY, 60, labelled).answers[0]
    for hit, right in zip(answer.result.hits, answer.relevant or (), strict=True):
        position = positions[hit.image.id]
        assert right is (True if position == 2 else None if position >= 10 else False)


def test_without_labels_nothing_is_marked(searchers: dict[str, Searcher], dataset: Dataset) -> None:
    for text, labels in ((QUERY, None), ("no such thing", dataset)):
        result = ask_side_by_side(searchers, text, 3, labels)
        assert (result.category, result.n_relevant) == (None, None)
        assert all(a.relevant is None and a.average_precision is None for a in result.answers)


def test_a_category_in_no_image_has_no_score(searchers: dict[str, Searcher], dataset: Dataset) -> None:
    result = ask_side_by_side(searchers, QUERY, 3, with_labels(dataset, next(iter(searchers.values())), set()))
    assert (result.category, result.n_relevant) == ("umbrella", 0)
    assert [a.average_precision for a in result.answers] == [None] * 4


def test_agreement_is_the_share_of_common_images(searchers: dict[str, Searcher]) -> None:
    result = ask_side_by_side(searchers, QUERY, 20)
    assert np.diag(result.overlap).tolist() == [1, 1, 1, 1]
    assert (result.overlap == result.overlap.T).all()
    ids = [[hit.image.id for hit in answer.result.hits] for answer in result.answers]
    common = sum(image_id in ids[2] for image_id in ids[0])
    assert result.overlap[0, 2] == common / 20
    assert 0 < common < 20
    assert ask_side_by_side(searchers, QUERY, 500).overlap.min() == 1  # all images of both


@pytest.mark.parametrize(
    ("text", "category"),
    [
        ("umbrella", "umbrella"),
        ("  An UMBRELLA ", "umbrella"),
        ("umbrellas", None),
        ("a red umbrella", None),
        ("", None),
    ],
)
def test_which_category_a_query_names(dataset: Dataset, text: str, category: str | None) -> None:
    assert named_category(text, dataset) == category
    assert named_category(text, None) is None


def test_bad_requests(searchers: dict[str, Searcher]) -> None:
    for text, k in (("", 3), ("dog", 0)):
        with pytest.raises(UsageError):
            ask_side_by_side(searchers, text, k)


class TestHtml:
    @pytest.fixture
    def shown(self, searchers: dict[str, Searcher], dataset: Dataset) -> tuple[SideBySide, str]:
        first = next(iter(searchers.values()))
        best = {image.id: i for i, image in enumerate(first.index.images)}[first.search(QUERY, 1).hits[0].image.id]
        result = ask_side_by_side(searchers, QUERY, 4, with_labels(dataset, first, {best}))
        return result, comparison_html(result, searchers, list(searchers), labelled=True)

    def test_a_column_a_method(self, shown: tuple[SideBySide, str]) -> None:
        _, text = shown
        titles = re.findall(r"<section data-index=[^>]*><h3>(.*?)</h3>", text)
        assert titles == ["Cluster-CLIP 8", "CLIP", "Dense-CLIP", "FOR 3"]
        assert text.count('<img loading="lazy" src="for/picture?index=') == text.count("<img ") == 16
        assert "AP@50 100.0" in text
        assert "1 embedding an image" in text

    def test_right_and_wrong_without_colours(self, shown: tuple[SideBySide, str]) -> None:
        result, text = shown
        right = sum(bool(each) for answer in result.answers for each in answer.relevant or ())
        assert text.count('class="right"') == text.count("<span>✓ ") == right > 0
        assert text.count('class="wrong"') == text.count("<span>✗ ") == 16 - right > 0
        assert text.count(', labelled so"') == right

    def test_everything_is_text(self, searchers: dict[str, Searcher], library: Library) -> None:
        query = "<img src=x onerror=alert(1)>"
        text = comparison_html(ask_side_by_side(searchers, query, 2), searchers, list(searchers), labelled=False)
        assert "<img src=x" not in text
        assert "&lt;img src=x" in text
        assert str(library.searcher(library.default).image_root) not in text

    def test_one_method_agrees_with_nobody(self, searchers: dict[str, Searcher]) -> None:
        one = dict(list(searchers.items())[:1])
        alone = comparison_html(ask_side_by_side(one, QUERY, 2), one, list(one), labelled=False)
        assert "<table>" not in alone
        assert "Only one method has an index of these images" in alone
        several = comparison_html(ask_side_by_side(searchers, QUERY, 2), searchers, list(searchers), labelled=False)
        assert "<table>" in several
        assert "Only one method" not in several

    def test_a_missing_picture_is_told(self, searchers: dict[str, Searcher], tmp_path: Path) -> None:
        gone = {name: replace(searcher, image_root=tmp_path) for name, searcher in searchers.items()}
        text = comparison_html(ask_side_by_side(gone, QUERY, 2), gone, list(gone), labelled=False)
        assert text.count("file not found") == 8
