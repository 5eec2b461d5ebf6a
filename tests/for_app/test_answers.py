import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from for_app.answers import answer, describe_hit, evidence_of
from for_app.question import Question
from for_app.views.pictures import LARGE_PX, THUMBNAIL_PX, mime_type, picture, shapes_of
from for_app.views.presentation import SHOWN_SKIPPED, about_html, histogram_html
from for_model.data.dataset import ImageRecord
from for_model.errors import UsageError
from for_search.query.searcher import MAX_QUERY_CHARACTERS, Searcher, clean_query
from for_search.store.store import SkippedImage
from tests.helpers.tiny_index import make_searcher


@pytest.fixture(scope="module")
def searcher(tmp_path_factory: pytest.TempPathFactory) -> Searcher:
    return make_searcher(tmp_path_factory.mktemp("presentation"), 10)


def ask(searcher: Searcher, text: str, start: int, count: int, least: float | None = None) -> dict[str, Any]:
    return answer(Question(searcher, searcher.text_query(clean_query(text))), start, count, least).to_json()


def test_hits_come_in_order_and_go_on_where_they_ended(searcher: Searcher) -> None:
    hits = searcher.search("umbrella", 7).hits
    first, more = ask(searcher, "umbrella", 0, 4), ask(searcher, "umbrella", 4, 3)
    told = [*first["hits"], *more["hits"]]
    assert [one["id"] for one in told] == [hit.image.id for hit in hits]
    assert [one["rank"] for one in told] == list(range(1, 8))
    assert [one["score"] for one in told] == [round(hit.score, 4) for hit in hits]
    assert {one["ratio"] for one in told} == {1.0}
    assert told[0]["name"] == Path(hits[0].image.path).name
    assert (first["label"], first["total"]) == ("umbrella", 10)
    assert first["low"] <= min(hit.score for hit in hits) <= hits[0].score <= first["high"]
    assert "8 of width 256 an image" in first["details"]
    assert "details" not in more


def test_fewer_images_than_asked_for(searcher: Searcher) -> None:
    assert len(ask(searcher, "umbrella", 0, 48)["hits"]) == 10
    assert ask(searcher, "umbrella", 10, 48)["hits"] == []


class _Listed(tuple[ImageRecord, ...]):
    """Images of an index that lie in no table."""

    def records(self, ranks: list[int]) -> list[ImageRecord]:
        return [self[rank] for rank in ranks]


def test_a_picture_that_is_gone_or_large_or_outside(searcher: Searcher, tmp_path: Path) -> None:
    hits = searcher.search("umbrella", 3).hits
    (tmp_path / "val").mkdir()
    exif = Image.Exif()
    exif[274] = 6  # lies on its side
    Image.new("RGB", (3000, 1500), "red").save(tmp_path / "large.jpg", exif=exif)
    paths = {hits[0].image.id: "gone.jpg", hits[1].image.id: "large.jpg", hits[2].image.id: "../outside.jpg"}
    images = _Listed(ImageRecord(image.id, paths.get(image.id, image.path)) for image in searcher.index.images)
    moved = replace(searcher, index=replace(searcher.index, images=images), image_root=tmp_path)
    shown = ask(moved, "umbrella", 0, 3)["hits"]
    assert [one["problem"] for one in shown] == ["file not found", None, "outside the image folder"]
    assert [one["ratio"] for one in shown] == [1.0, 0.5, 1.0]
    by_id = {image.id: image for image in images}
    record = by_id[hits[1].image.id]
    assert picture(moved, record, THUMBNAIL_PX)[0].size == (THUMBNAIL_PX // 2, THUMBNAIL_PX)
    told = describe_hit(moved, record, own=False)
    assert told["name"] == "large.jpg"
    assert "path" not in told
    assert re.fullmatch(r"changed \d{4}-\d\d-\d\d", told["words"][0])
    assert told["words"][1] == "1,500 × 3,000 pixels"
    assert describe_hit(moved, record, own=True)["path"] == str(tmp_path / "large.jpg")
    assert "path" not in describe_hit(moved, by_id[hits[2].image.id], own=True)


def test_when_an_image_was_taken(searcher: Searcher, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[36867] = "2024:05:17 10:11:12"
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    (tmp_path / "b.jpg").write_text("no image")
    records = [ImageRecord(1, "a.jpg"), ImageRecord(2, "b.jpg")]
    taken, none = shapes_of(replace(searcher, image_root=tmp_path), records)
    assert (taken.date, taken.taken) == ("2024-05-17", True)
    assert none.problem == "not an image: UnidentifiedImageError"
    (tmp_path / "named.html").write_bytes((tmp_path / "a.jpg").read_bytes())
    assert mime_type(tmp_path / "named.html") == "image/jpeg"
    with pytest.raises(UsageError, match="as an image"):
        mime_type(tmp_path / "b.jpg")


def test_long_and_broken_queries_are_answered(searcher: Searcher) -> None:
    assert len(clean_query("a" * 10_000)) == MAX_QUERY_CHARACTERS
    assert clean_query("dog\ud800") == "dog?"
    assert len(ask(searcher, "\ud800 dog \x00" + "very " * 1000, 0, 2)["hits"]) == 2
    with pytest.raises(UsageError, match="empty"):
        ask(searcher, " \n", 0, 2)


def test_what_the_index_holds(searcher: Searcher) -> None:
    shown = about_html(searcher.index)
    for text in ("miniscenes (val)", "10 searched, 0 skipped", "Cluster-CLIP 8, 8 embeddings", "RN-mini at 160 pixels"):
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


def test_the_evidence_of_a_hit(searcher: Searcher) -> None:
    query = searcher.text_query("umbrella")
    hit = searcher.find(query, 1).hits[0]
    told = evidence_of(Question(searcher, query), hit.image)
    assert told["heat"].startswith("data:image/jpeg;base64,")
    assert told["part"] == hit.embedding
    assert f"embedding {hit.embedding + 1} of 8 by Cluster-CLIP 8, score {hit.score:.3f}" in told["words"]


def test_no_evidence_says_why(searcher: Searcher, tmp_path: Path) -> None:
    query = searcher.text_query("dog")
    record = searcher.index.images[0]
    info = replace(searcher.index.info, method="for", settings={"head_sha256": "0"})
    headless = replace(searcher, index=replace(searcher.index, info=info))
    told = evidence_of(Question(headless, query), record)
    assert told["heat"] is None
    assert "--head" in told["words"][0]
    gone = evidence_of(Question(replace(searcher, image_root=tmp_path), query), record)
    assert (gone["heat"], gone["words"]) == (None, ["file not found"])


def test_a_large_picture_is_large(searcher: Searcher) -> None:
    image, problem = picture(searcher, searcher.index.images[0], LARGE_PX)
    assert (image.size, problem) == ((160, 160), None)  # the browser enlarges what is small
