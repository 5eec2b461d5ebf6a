"""The Pseudo-labels and Leaderboard tabs in a browser, and the endpoint `pseudo_label`."""

from pathlib import Path

import pytest
from PIL import Image

from for_app.views.leaderboard import read_boards
from for_search import api
from for_search.library.label_service import DEFAULT_THRESHOLD, label_image, sample_images
from for_search.query.image_labels import DATASET
from tests.helpers.browser import Page
from tests.helpers.pages import Served

pytestmark = [pytest.mark.slow, pytest.mark.gradio]


LISTED = '[...document.querySelectorAll("#label-list li")]'
NAMES = f"{LISTED}.map(item => item.querySelector('.name').innerText)"
SUMMARY = 'document.querySelector("#label-list p").innerText'


def choose_file(page: Page, path: Path) -> None:
    """Choose a file to be labelled, as a visitor does."""
    root = page.call("DOM.getDocument")["root"]["nodeId"]
    node = page.call("DOM.querySelector", nodeId=root, selector="#label-file")["nodeId"]
    page.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])


def open_labels(page: Page, served: Served) -> None:
    page.problems.clear()
    page.open(f"{served.url}?tab=labels")
    page.wait('document.querySelectorAll("#label-samples img").length == 12')


def test_the_endpoint_answers_as_the_labeller_does(served: Served, tmp_path: Path) -> None:
    from gradio_client import Client, handle_file

    client = Client(served.url, verbose=False)
    image_id = served.library.searcher(served.library.default).index.images[3].id
    answer = client.predict(image_id=str(image_id), threshold=0.0, api_name="/pseudo_label")
    assert answer == api.pseudo_label(served.library, image_id, threshold=0.0)
    assert {one["verdict"] for one in answer["labels"]} <= {"right", "wrong"}
    assert answer["found"] == 236  # every noun reaches 0
    Image.new("RGB", (300, 200), "red").save(tmp_path / "red.png")
    mine = client.predict(
        image=handle_file(tmp_path / "red.png"), names=["dog", "cat"], threshold=0.0, api_name="/pseudo_label"
    )
    assert sorted(one["name"] for one in mine["labels"]) == ["cat", "dog"]
    assert {one["verdict"] for one in mine["labels"]} == {None}
    for wrong, said in (
        ({}, "either an image or"),
        ({"image_id": "nope"}, "no image"),
        ({"image_id": "1", "index": "nope"}, "no index is called"),
        ({"image_id": "1", "vocabulary": "nope"}, "unknown vocabulary"),
        ({"image_id": "1", "threshold": 2.0}, "threshold"),
        ({"image_id": "1", "names": ["dog"]}, "got 1 names"),
    ):
        with pytest.raises(Exception, match=said):
            client.predict(**wrong, api_name="/pseudo_label")


@pytest.mark.browser
def test_a_visitor_labels_an_image(served: Served, browser: Page) -> None:
    library = served.library
    searcher = library.searcher(library.default)
    open_labels(browser, served)
    samples = sample_images(searcher, 12, seed=0)
    alts = browser.value('[...document.querySelectorAll("#label-samples img")].map(e => e.alt)')
    assert alts == [Path(sample.path).name for sample in samples]
    browser.wait(f'{SUMMARY}.includes("Choose an image")')  # nothing is labelled unasked
    browser.value('document.querySelectorAll("#label-samples .grid-container button")[5].click()')
    # with random weights all nouns are about as likely, so the page's own threshold leaves none
    browser.wait(f'{SUMMARY}.includes("No name reaches a probability of {DEFAULT_THRESHOLD:g}")')
    browser.value('document.querySelector("#label-threshold input[type=number]").focus()')
    browser.type("0", enter=True)
    _, found = label_image(library, library.default, samples[5].id, DATASET, "", 0.0)
    browser.wait(f"{LISTED}.length == {len(found.labels)}")
    assert browser.value(NAMES) == [one.name for one in found.labels]
    right = sum(one.verdict == "right" for one in found.labels)
    assert f"236 labels above 0 · the first 50 shown · {right} right" in browser.value(SUMMARY)
    browser.wait('document.querySelector("#label-drawing img")?.naturalWidth == 640')
    assert browser.problems == []


@pytest.mark.browser
def test_names_of_ones_own_are_shown_as_text(served: Served, browser: Page) -> None:
    open_labels(browser, served)
    browser.value('document.querySelectorAll("#label-samples .grid-container button")[0].click()')
    browser.wait(f'{SUMMARY}.includes("No name reaches")')
    browser.click("#label-vocabulary label", "names of mine")
    browser.wait('document.querySelector("#label-own textarea")?.offsetParent')
    browser.value('document.querySelector("#label-threshold input[type=number]").focus()')
    browser.type("0", enter=True)
    browser.value('document.querySelector("#label-own textarea").focus()')
    hostile = '<img src=x onerror="window.hacked = 1">'
    browser.type(f"{hostile}\n{{}}\ndog")
    browser.click("#label-use")
    browser.wait(f"{LISTED}.length == 3")
    assert sorted(browser.value(NAMES)) == sorted([hostile, "{}", "dog"])
    assert browser.value("window.hacked === undefined")


@pytest.mark.browser
def test_an_image_of_ones_own_and_what_is_none(served: Served, browser: Page, tmp_path: Path) -> None:
    open_labels(browser, served)
    Image.new("RGB", (400, 200), "teal").save(tmp_path / "wide.png")
    (tmp_path / "fake.png").write_bytes(b"this is no image")
    choose_file(browser, tmp_path / "wide.png")
    browser.wait('document.querySelector("#label-drawing img")?.naturalHeight == 320')
    assert "RN-mini has seen nothing but drawn scenes" in browser.value(
        'document.querySelector("#label-list").innerText'
    )
    choose_file(browser, tmp_path / "fake.png")
    browser.wait('document.body.innerText.includes("not an image")')
    assert browser.value('document.querySelector("#label-drawing img")') is None  # nothing of the last one is left


@pytest.mark.browser
def test_a_visitor_sorts_the_leaderboard(served: Served, browser: Page) -> None:
    shown = """[...document.querySelectorAll(".board")[0].tBodies[0].rows]
      .map(row => Number([...row.cells].at({}).dataset.value))"""
    browser.problems.clear()
    browser.open(f"{served.url}?tab=leaderboard", width=1440)
    browser.wait('document.querySelector(".board")')
    scores = read_boards()[0].ours["novel mAP@50"].tolist()
    assert scores != sorted(scores)
    heads = browser.value('[...document.querySelectorAll(".board th")].map(e => e.innerText.trim())')
    rows = shown.format(heads.index("novel"))
    for group in ("base", "novel", "all"):
        right = f'document.querySelectorAll(".board th")[{heads.index(group)}].getBoundingClientRect().right'
        assert 0 < browser.value(right) < 1440
    assert browser.value(rows) == scores
    browser.click(".board th button", "novel")
    assert browser.value(rows) == sorted(scores, reverse=True)
    drawn = f".board td:nth-child({heads.index('novel') + 1}) .bar > i"
    bars = browser.value(f'[...document.querySelectorAll("{drawn}")].map(e => parseFloat(e.style.width))')
    assert bars == pytest.approx(sorted(scores, reverse=True), abs=0.06)
    browser.click(".board th button", "novel")
    assert browser.value(rows) == sorted(scores)
    title = next(board.title for board in read_boards() if board.title.startswith("Table 6"))
    browser.value(f"""(() => {{ const choice = document.querySelector("#board");
      choice.value = {title!r}; choice.dispatchEvent(new Event("change", {{ bubbles: true }})); }})()""")
    browser.wait('document.querySelector("#boards").innerText.includes("paper Table 6")')
    assert browser.value('new URL(location).searchParams.get("table")') == title
    assert browser.value('document.querySelectorAll("#boards svg").length') == 6
    assert browser.problems == []
