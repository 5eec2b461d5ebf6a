import json
from pathlib import Path

import numpy as np
import pytest

from for_model.errors import UsageError
from for_search.index.index_files import build_index
from for_search.query.combination import MAX_THINGS, Combination, find_combination
from for_search.query.hit_lines import hit_lines
from for_search.query.searcher import Searcher, load_searcher
from tests.helpers.small_world import DIM, NamedDirections, holds, make_world
from tests.helpers.store_making import make_store, method_info, random_units


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Searcher:
    return make_world(tmp_path_factory.mktemp("world"))


def _numbers(world: Searcher, combination: Combination, k: int) -> list[int]:
    return [(hit.image.id - 10) // 3 for hit in find_combination(world, combination, k).hits]


def test_all_of_them(world: Searcher) -> None:
    wanted = {i for i in range(120) if holds(i, "dog") and holds(i, "umbrella")}
    assert set(_numbers(world, Combination(("dog", "umbrella")), len(wanted))) == wanted


def test_none_of_them(world: Searcher) -> None:
    dogs = {i for i in range(120) if holds(i, "dog")}
    alone = {i for i in dogs if not holds(i, "umbrella")}
    found = _numbers(world, Combination(("dog",), none_of=("umbrella",)), len(alone))
    assert set(found) == alone < dogs


def test_any_of_them(world: Searcher) -> None:
    wanted = {i for i in range(120) if holds(i, "bus") or holds(i, "person")}
    assert set(_numbers(world, Combination(any_of=("bus", "person")), len(wanted))) == wanted


def test_a_strong_match_does_not_hide_a_missing_one(world: Searcher) -> None:
    result = find_combination(world, Combination(("dog", "umbrella")), 120)
    for hit in result.hits:
        assert hit.probability <= min(match.probability for match in hit.matches) + 1e-12


def test_each_thing_has_its_own_embedding(world: Searcher) -> None:
    (hit, *_) = find_combination(world, Combination(("dog", "umbrella"), none_of=("bus",)), 1).hits
    assert [(match.role, match.text) for match in hit.matches] == [("all", "dog"), ("all", "umbrella"), ("none", "bus")]
    assert [match.embedding for match in hit.matches[:2]] == [0, 1]
    rows = world.index.embeddings(hit.image.id)
    for match in hit.matches:
        assert match.score == pytest.approx(float((rows @ world.text_query(match.text).embeddings[0]).max()), abs=1e-6)


def test_probabilities_multiply() -> None:
    combination = Combination(("a", "b"), ("c", "d"), ("e",))
    p = np.array([[0.5], [0.4], [0.3], [0.2], [0.1]])
    assert combination.probability(p) == pytest.approx([0.5 * 0.4 * (1 - 0.7 * 0.8) * 0.9])
    assert combination.cutoff(0.5) == pytest.approx(0.125)
    assert Combination(("a",)).probability(p[:1]) == pytest.approx([0.5])
    assert combination.label == "a and b and c or d, without e"


@pytest.mark.parametrize("text", ["dog", "asdfgh"])
def test_one_thing_is_as_probable_as_alone(world: Searcher, text: str) -> None:
    query = world.text_query(text)
    alone = world.judged(query, world.find(query, 20))
    combined = find_combination(world, Combination((text,)), 20)
    assert [hit.probability for hit in combined.hits] == pytest.approx(alone.probabilities, rel=1e-4)
    assert [hit.image.id for hit in combined.hits] == [hit.image.id for hit in alone.hits]
    assert combined.n_good == alone.n_good


def test_json_and_lines(world: Searcher) -> None:
    result = find_combination(world, Combination(("dog", "umbrella"), none_of=("bus",)), 8)
    content = json.loads(json.dumps(result.to_json(paths=False)))
    assert content["query"] == "dog and umbrella, without bus"
    assert "path" not in content["hits"][0]
    assert [thing["role"] for thing in content["hits"][0]["things"]] == ["all", "all", "none"]
    assert sum(hit["good"] for hit in content["hits"]) == content["n_good"] == result.n_good > 0
    lines = hit_lines(result.to_json()).splitlines()
    assert lines[0] == f"{result.n_good} good matches"
    assert "dog " in lines[1]


@pytest.mark.parametrize(
    "arguments",
    [
        ((), (), ()),
        ((), (), ("dog",)),
        (("",), (), ()),
        (("dog",), ("  ",), ()),
        ("dog", (), ()),
        (("dog",) * (MAX_THINGS + 1), (), ()),
        ((3,), (), ()),
    ],
)
def test_what_makes_no_sense(arguments: tuple) -> None:
    with pytest.raises(UsageError):
        Combination(*arguments)


def test_too_few_images(tmp_path: Path) -> None:
    make_store(tmp_path / "store", random_units((5, 2, DIM)))
    build_index(tmp_path / "store", tmp_path / "index")
    searcher = load_searcher(tmp_path / "index", method=NamedDirections(method_info(2, DIM)))
    with pytest.raises(UsageError, match="5 images"):
        find_combination(searcher, Combination(("dog", "bus")))


class TestLikeThisButMore:
    def test_the_ends_are_the_image_and_the_text(self, world: Searcher) -> None:
        image = world.like_query(10, 0)
        assert world.mixed_query(image, "bus", 0).embeddings == pytest.approx(image.embeddings, abs=1e-4)
        at_one = world.mixed_query(image, "bus", 1)
        assert at_one.embeddings == pytest.approx(world.text_query("bus").embeddings, abs=1e-6)
        assert at_one.label == "like part 0 of image 10, bus"

    def test_between_them_both_count(self, world: Searcher) -> None:
        dog = world.text_query("dog")
        both = world.mixed_query(dog, "umbrella", 0.5)
        assert np.linalg.norm(both.embeddings) == pytest.approx(1, abs=1e-6)
        assert not both.is_text
        found = {(hit.image.id - 10) // 3 for hit in world.find(both, 15).hits}
        assert any(holds(i, "umbrella") for i in found)
        assert any(holds(i, "dog") for i in found)

    def test_opposites_stay_what_they_were(self, world: Searcher) -> None:
        image = world.text_query("bus")
        against = type(image)("against", -image.embeddings, 0.0)
        assert world.mixed_query(against, "bus", 0.5).embeddings == pytest.approx(-image.embeddings, abs=1e-4)

    @pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan"), "half"])
    def test_weights_that_make_no_sense(self, world: Searcher, weight: float) -> None:
        with pytest.raises(UsageError, match="weight"):
            world.mixed_query(world.like_query(10), "red", weight)
