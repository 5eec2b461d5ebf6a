import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from for_app.answers import Answer, answer, open_image
from for_app.views.pictures import LARGE_PX, THUMBNAIL_PX
from for_app.views.presentation import SHOWN_SKIPPED, about_html, histogram_html
from for_model.data.dataset import ImageRecord
from for_model.errors import UsageError
from for_search.query.searcher import MAX_QUERY_CHARACTERS, Searcher, clean_query
from for_search.store.store import SkippedImage
from tests.helpers.tiny_index import make_searcher

# Python 3.12 warns when scenes are drawn in processes while torch has threads.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture(scope="module")
def searcher(tmp_path_factory: pytest.TempPathFactory) -> Searcher:
    return make_searcher(tmp_path_factory.mktemp("presentation"), 10)


def ask(searcher: Searcher, text: str, k: int, cutoff: float | None = None) -> Answer:
    return answer(searcher, searcher.text_query(clean_query(text)), k, cutoff)


def test_pictures_come_in_the_order_of_the_hits(searcher: Searcher) -> None:
    shown = ask(searcher, "umbrella", 4)
    hits = searcher.search("umbrella", 4).hits
    assert [caption for _, caption in shown.pictures] == [f"{i} · {hit.score:.3f}" for i, hit in enumerate(hits, 1)]
    assert {(image.mode, image.size) for image, _ in shown.pictures} == {("RGB", (160, 160))}
    assert shown.status_html.startswith(
        "<b>umbrella</b> · best 4 of 10 images · 8 embeddings an image · index of 41.0 kB · "
    )


def test_fewer_images_than_asked_for(searcher: Searcher) -> None:
    shown = ask(searcher, "umbrella", 48)
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
    shown = ask(moved, "umbrella", 3)
    assert [caption.split(" · ")[2:] for _, caption in shown.pictures] == [
        ["file not found"],
        [],
        ["outside the image folder"],
    ]
    assert shown.pictures[1][0].size == (THUMBNAIL_PX, THUMBNAIL_PX // 2)
    assert shown.status_html.endswith("2 of the pictures can't be shown")


def test_a_query_is_shown_as_text(searcher: Searcher) -> None:
    shown = ask(searcher, '<img src=x onerror="alert(1)">', 1)
    assert shown.status_html.startswith("<b>&lt;img src=x onerror=&#34;alert(1)&#34;&gt;</b>")


def test_long_and_broken_queries_are_answered(searcher: Searcher) -> None:
    assert len(clean_query("a" * 10_000)) == MAX_QUERY_CHARACTERS
    assert clean_query("dog\ud800") == "dog?"
    assert len(ask(searcher, "\ud800 dog \x00" + "very " * 1000, 2).pictures) == 2
    with pytest.raises(UsageError, match="empty"):
        ask(searcher, " \n", 2)


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


def test_a_cutoff_leaves_out_what_scores_less(searcher: Searcher) -> None:
    every = ask(searcher, "umbrella", 10)
    scores = [hit.score for hit in every.hits]
    assert every.low <= min(scores) <= max(scores) <= every.high
    limit = (scores[3] + scores[4]) / 2
    cut = ask(searcher, "umbrella", 10, limit)
    assert cut.hits == every.hits[:4]
    assert [caption for _, caption in cut.pictures] == [caption for _, caption in every.pictures[:4]]
    assert f"; 4 score {limit:.3f} or more" in cut.histogram_html
    assert (cut.low, cut.high) == (every.low, every.high)
    assert ask(searcher, "umbrella", 10, 2.0).pictures == []


def test_the_histogram_counts_every_image() -> None:
    scores = np.array([0.0] * 5 + [0.5] * 20 + [1.0], dtype=np.float32)
    text = histogram_html(scores, 0.0, 1.0, None, 26)
    heights = [float(height) for height in re.findall('height="([0-9.]+)"></rect>', text)]
    assert len(heights) == 3  # three bars, the tallest of 40
    assert heights[1] == 40
    assert heights[0] == pytest.approx(40 * np.log(6) / np.log(21), abs=0.1)
    assert "scores of all 26 images, 0.00 to 1.00" in text
    assert "class=below" not in text
    cut = histogram_html(scores, 0.0, 1.0, 0.5, 26)
    assert cut.count("class=below") == 1
    assert "; 21 score 0.500 or more" in cut
    assert "26 of 1,000 images, a sample" in histogram_html(scores, 0.0, 1.0, None, 1000)
    assert "<rect" in histogram_html(np.zeros(3, dtype=np.float32), 0.0, 0.0, None, 3)  # all alike


class TestOpenedImages:
    def test_with_its_evidence(self, searcher: Searcher) -> None:
        query = searcher.text_query("umbrella")
        hit = searcher.find(query, 1).hits[0]
        opened = open_image(searcher, hit.image.id, query)
        assert opened.image.size == (LARGE_PX, LARGE_PX)
        assert opened.heat is not None
        assert opened.heat.size == opened.image.size
        assert f"score {hit.score:.3f} for <b>umbrella</b>" in opened.text_html
        assert f"embedding {hit.embedding + 1} of 8 by Cluster-CLIP 8" in opened.text_html

    def test_says_why_there_is_no_evidence(self, searcher: Searcher, tmp_path: Path) -> None:
        query = searcher.text_query("<b>dog</b>")
        image_id = searcher.index.images[0].id
        info = replace(searcher.index.info, method="for", settings={"head_sha256": "0"})
        headless = replace(searcher, index=replace(searcher.index, info=info))
        opened = open_image(headless, image_id, query)
        assert opened.heat is None
        assert opened.image.size == (LARGE_PX, LARGE_PX)
        assert "--head" in opened.text_html
        gone = open_image(replace(searcher, image_root=tmp_path), image_id, query)
        assert (gone.heat, gone.evidence) == (None, None)
        assert "file not found" in gone.text_html

    def test_shows_text_as_text(self, searcher: Searcher) -> None:
        query = searcher.text_query("<i>dog</i>")
        assert "&lt;i&gt;dog" in open_image(searcher, searcher.index.images[0].id, query).text_html
