"""The functions for programs: JSON values, without paths, and one clear error for what makes no sense."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from for_model.data.images import load_image
from for_model.errors import ForError, UsageError
from for_search import api
from for_search.library.library import Library
from tests.helpers.small_world import holds, make_world
from tests.helpers.tiny_index import make_library


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("api")


@pytest.fixture(scope="module")
def library(folder: Path) -> Library:
    return make_library(folder, 12)


def test_search(library: Library) -> None:
    found = api.search(library, "umbrella", 3)
    expected = library.searcher(library.default).search("umbrella", 3).hits
    assert [(hit["id"], hit["score"]) for hit in found["hits"]] == [(hit.image.id, hit.score) for hit in expected]
    assert {name for hit in found["hits"] for name in hit} == {"rank", "id", "score", "embedding"}
    assert set(found["latency_ms"]) == {"encode", "search", "total"}
    other = api.search(library, "umbrella", 3, library.names[2])
    assert [hit["id"] for hit in other["hits"]] != [hit["id"] for hit in found["hits"]]


def test_search_image(library: Library) -> None:
    searcher = library.searcher(library.default)
    image = searcher.index.images[5]
    for query in (load_image(searcher.image_path(image), target=320), image.id, str(image.id)):
        found = api.search_image(library, query, 4)
        assert (found["hits"][0]["id"], len(found["hits"])) == (image.id, 4)
    part = api.search_image(library, image.id, 4, embedding=2)
    assert part["hits"][0]["score"] == pytest.approx(1, abs=1e-3)


def test_compare(library: Library) -> None:
    found = api.compare(library, "umbrella", 5, library.names[1])
    assert [each["index"] for each in found["methods"]] == [library.names[1], *library.siblings(library.names[1])]
    assert {len(each["hits"]) for each in found["methods"]} == {5}
    assert found["category"] == "umbrella"
    assert isinstance(found["methods"][0]["hits"][0]["relevant"], bool)
    assert "relevant" not in api.compare(library, "a thing on a table", 5)["methods"][0]["hits"][0]


def test_evidence(library: Library) -> None:
    best = api.search(library, "dog", 1)["hits"][0]
    found = api.evidence(library, "dog", best["id"])
    assert (found["embedding"], found["as_indexed"]) == (best["embedding"], True)
    assert found["score"] == pytest.approx(best["score"], abs=1e-5)


def test_stats(library: Library) -> None:
    found = api.stats(library)
    assert (found["index"], found["n_images"], found["skipped"]) == (library.default, 12, [])
    assert found["indexes"] == list(library.names)
    assert found["method"]["n_embeddings"] == 8
    assert api.stats(library, library.names[1])["method"]["method"] == "clip"


@pytest.mark.parametrize(
    "call",
    [
        lambda library: api.search(library, "umbrella"),
        lambda library: api.search_image(library, 1),
        lambda library: api.compare(library, "umbrella"),
        lambda library: api.evidence(library, "umbrella", 1),
        lambda library: api.stats(library),
    ],
)
def test_everything_is_json_without_paths(
    library: Library, folder: Path, call: Callable[[Library], dict[str, object]]
) -> None:
    text = json.dumps(call(library))
    assert str(folder) not in text
    assert ".jpg" not in text


@pytest.mark.parametrize(
    "call",
    [
        lambda library: api.search(library, ""),
        lambda library: api.search(library, "dog", 0),
        lambda library: api.search(library, "dog", api.MAX_K + 1),
        lambda library: api.search(library, "dog", 2.5),  # type: ignore[arg-type]
        lambda library: api.search(library, "dog", index="../index"),
        lambda library: api.search_image(library, "nobody"),
        lambda library: api.search_image(library, 1, embedding=8),
        lambda library: api.search_image(library, Image.new("RGB", (20, 20)), 0),
        lambda library: api.compare(library, "dog", 0),
        lambda library: api.compare(library, "  "),
        lambda library: api.evidence(library, "dog", "../../etc/passwd"),
        lambda library: api.stats(library, "nobody"),
    ],
)
def test_what_makes_no_sense(library: Library, call: Callable[[Library], object]) -> None:
    with pytest.raises(UsageError) as error:
        call(library)
    assert "\n" not in str(error.value)
    assert isinstance(error.value, ForError)


@pytest.mark.parametrize(
    "text",
    ["a" * 100_000, "🐕 🦮", "كلب", "<script>alert(1)</script>", "{} {0} {name}", "\ud800dog", "dog\x00", "' OR 1"],
)
def test_any_text_is_answered(library: Library, text: str) -> None:
    assert len(api.search(library, text, 2)["hits"]) == 2
    json.dumps(api.search(library, text, 2)).encode()


def test_where(library: Library) -> None:
    """Only images that meet the condition are found, by text and by images of the index; all of them when k allows."""
    index = library.searcher(library.default).index
    ids = [image.id for image in index.images]
    narrow = f"id in ({ids[3]}, {ids[7]})"
    for found in (
        api.search(library, "umbrella", 5, where=narrow),
        api.search_image(library, ids[0], 5, where=narrow),
        api.search_image(library, ids[0], 5, embedding=1, where=narrow),
    ):
        assert {hit["id"] for hit in found["hits"]} == {ids[3], ids[7]}
    assert api.search(library, "umbrella", 5, where="width < 0")["hits"] == []
    assert len(api.search(library, "umbrella", 12, where="labels is not null and width > 0")["hits"]) == 12
    for wrong in ("colour = 1", "1; select 1", "(select 1)"):
        with pytest.raises(UsageError, match="can't be understood"):
            api.search(library, "umbrella", 5, where=wrong)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Library:
    library = Library()
    library.add_opened(make_world(tmp_path_factory.mktemp("world")))
    return library


class TestSeveralThings:
    def test_hits_say_how_probable_they_are(self, world: Library) -> None:
        found = api.search(world, "dog", 12)
        assert found["n_good"] == 10
        assert [hit["good"] for hit in found["hits"]] == [True] * 10 + [False] * 2
        assert all(hit["good"] == (hit["probability"] >= found["cutoff"]) for hit in found["hits"])

    def test_all_any_and_none(self, world: Library) -> None:
        found = api.search(world, "dog", 2, all_of=["umbrella"], none_of=["bus"])
        assert [thing["text"] for thing in found["hits"][0]["things"]] == ["dog", "umbrella", "bus"]
        same = api.search(world, k=2, all_of=["dog", "umbrella"], none_of=["bus"])
        assert [hit["id"] for hit in same["hits"]] == [hit["id"] for hit in found["hits"]]
        assert api.search(world, any_of=["dog", "bus"])["n_good"] > 0
        wanted = [hit["id"] for hit in found["hits"]][1:]
        narrow = api.search(world, "dog", 2, all_of=["umbrella"], none_of=["bus"], where=f"id = {wanted[0]}")
        assert [hit["id"] for hit in narrow["hits"]] == wanted
        for wrong in ({}, {"none_of": ["dog"]}, {"all_of": ["dog"], "k": 0}, {"all_of": "dog"}):
            with pytest.raises(UsageError):
                api.search(world, **wrong)

    def test_like_an_image_but(self, world: Library) -> None:
        whole = api.search_image(world, 10, 3)
        assert api.search_image(world, 10, 3, text="umbrella", weight=0)["hits"][0]["id"] == whole["hits"][0]["id"]
        mixed = api.search_image(world, 10, 5, text="umbrella", weight=1)
        assert all(holds((hit["id"] - 10) // 3, "umbrella") for hit in mixed["hits"])
        with pytest.raises(UsageError, match="weight"):
            api.search_image(world, 10, 5, text="umbrella", weight=3)
