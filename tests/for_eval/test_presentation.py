from dataclasses import replace
from pathlib import Path

import pytest
from tiny_index import make_searcher

from for_eval.presentation import (
    MAX_API_K,
    MAX_QUERY_CHARACTERS,
    SHOWN_SKIPPED,
    THUMBNAIL_PX,
    about_html,
    answer,
    api_search,
    clean_query,
)
from for_eval.search import Searcher
from for_eval.store import SkippedImage
from for_model.data.dataset import ImageRecord
from for_model.errors import UsageError

# Python 3.12 warns when scenes are drawn in processes while torch has threads.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture(scope="module")
def searcher(tmp_path_factory: pytest.TempPathFactory) -> Searcher:
    return make_searcher(tmp_path_factory.mktemp("presentation"), 10)


def test_pictures_come_in_the_order_of_the_hits(searcher: Searcher) -> None:
    shown = answer(searcher, "umbrella", 4)
    hits = searcher.search("umbrella", 4).hits
    assert [caption for _, caption in shown.pictures] == [f"{i} · {hit.score:.3f}" for i, hit in enumerate(hits, 1)]
    assert {(image.mode, image.size) for image, _ in shown.pictures} == {("RGB", (160, 160))}
    assert shown.status_html.startswith("<b>umbrella</b> · best 4 of 10 images · 8 embeddings an image · encoded in ")


def test_fewer_images_than_asked_for(searcher: Searcher) -> None:
    shown = answer(searcher, "umbrella", 48)
    assert len(shown.pictures) == 10
    assert "best 10 of 10 images" in shown.status_html


def test_a_picture_that_is_gone_or_large_or_outside(searcher: Searcher, tmp_path: Path) -> None:
    from PIL import Image

    hits = searcher.search("umbrella", 3).hits
    (tmp_path / "val").mkdir()
    Image.new("RGB", (3000, 1500), "red").save(tmp_path / "large.jpg")
    paths = {hits[0].image.id: "gone.jpg", hits[1].image.id: "large.jpg", hits[2].image.id: "../outside.jpg"}
    images = tuple(ImageRecord(image.id, paths.get(image.id, image.path)) for image in searcher.index.images)
    moved = replace(searcher, index=replace(searcher.index, images=images), image_root=tmp_path)
    shown = answer(moved, "umbrella", 3)
    assert [caption.split(" · ")[2:] for _, caption in shown.pictures] == [
        ["file not found"],
        [],
        ["outside the image folder"],
    ]
    assert shown.pictures[1][0].size == (THUMBNAIL_PX, THUMBNAIL_PX // 2)
    assert shown.status_html.endswith("2 of the pictures can't be shown")


def test_a_query_is_shown_as_text(searcher: Searcher) -> None:
    shown = answer(searcher, '<img src=x onerror="alert(1)">', 1)
    assert shown.status_html.startswith("<b>&lt;img src=x onerror=&quot;alert(1)&quot;&gt;</b>")


def test_long_and_broken_queries_are_answered(searcher: Searcher) -> None:
    assert len(clean_query("a" * 10_000)) == MAX_QUERY_CHARACTERS
    assert clean_query("dog\ud800") == "dog?"
    assert len(answer(searcher, "\ud800 dog \x00" + "very " * 1000, 2).pictures) == 2
    with pytest.raises(UsageError, match="empty"):
        answer(searcher, " \n", 2)


def test_what_the_index_holds(searcher: Searcher) -> None:
    shown = about_html(searcher.index)
    for text in ("miniscenes (val)", "10 searched, 0 skipped", "cluster-clip, 8 embeddings", "RN-mini at 160 pixels"):
        assert text in shown
    assert str(searcher.image_root) not in shown
    assert str(searcher.index.path) not in shown


def test_skipped_images_are_listed_with_reasons_as_text(searcher: Searcher) -> None:
    skipped = tuple(SkippedImage(i, f"<i>{i}.jpg", "truncated") for i in range(SHOWN_SKIPPED + 5))
    shown = about_html(replace(searcher.index, skipped=skipped))
    assert "&lt;i&gt;0.jpg: truncated" in shown
    assert shown.count("<li>") == SHOWN_SKIPPED + 1
    assert "and 5 more" in shown
    assert "<i>" not in shown


def test_the_api_gives_hits_without_paths(searcher: Searcher) -> None:
    found = api_search(searcher, "umbrella", 3)
    assert [hit["id"] for hit in found["hits"]] == [hit.image.id for hit in searcher.search("umbrella", 3).hits]
    assert {name for hit in found["hits"] for name in hit} == {"rank", "id", "score", "embedding"}
    assert set(found["latency_ms"]) == {"encode", "search", "total"}
    with pytest.raises(UsageError, match="at most 1000"):
        api_search(searcher, "umbrella", MAX_API_K + 1)
