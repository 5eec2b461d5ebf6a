"""The Pseudo-labels and Leaderboard tabs in a browser, and the endpoint `pseudo_label`."""

from pathlib import Path

import pytest
from PIL import Image

from for_app.views.leaderboard import main_columns, read_boards
from for_search import api
from for_search.library.label_service import DEFAULT_THRESHOLD, label_image, sample_images
from for_search.query.image_labels import DATASET
from tests.helpers.browser import Page
from tests.helpers.pages import Served, open_tab_on_phone

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


LISTED = '[...document.querySelectorAll("#label-list li")]'
NAMES = f"{LISTED}.map(item => item.querySelector('.name').innerText)"
SUMMARY = 'document.querySelector("#label-list p").innerText'


def open_tab(page: Page, served: Served, name: str, wait: str) -> None:
    page.open(served.url)
    page.wait('document.querySelectorAll("#gallery .caption-label").length > 0')
    page.click("button[role=tab]", name)
    page.wait(wait)


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
    open_tab(browser, served, "Pseudo-labels", f'document.querySelector("#label-list p") && {SUMMARY}')
    samples = sample_images(searcher, 12, seed=0)
    browser.wait('document.querySelectorAll("#label-samples img").length == 12')
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
    open_tab(browser, served, "Pseudo-labels", f'document.querySelector("#label-list p") && {SUMMARY}')
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
    open_tab(browser, served, "Pseudo-labels", f'document.querySelector("#label-list p") && {SUMMARY}')
    (tmp_path / "fake.png").write_bytes(b"this is no image")
    Image.new("RGB", (400, 200), "teal").save(tmp_path / "wide.png")
    choose_file(browser, "#label-upload input[type=file]", tmp_path / "fake.png")
    browser.wait('document.body.innerText.includes("not an image")')
    browser.value(
        "document.querySelector(\"#label-upload [aria-label='Clear'], #label-upload [title='Clear']\")?.click()"
    )
    choose_file(browser, "#label-upload input[type=file]", tmp_path / "wide.png")
    browser.wait('document.querySelector("#label-drawing img")?.naturalHeight == 320')


def choose_file(page: Page, selector: str, path: Path) -> None:
    """Choose a file in a file input, as a visitor does."""
    page.wait(f"document.querySelector({selector!r})")
    root = page.call("DOM.getDocument")["root"]["nodeId"]
    node = page.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
    page.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])


def choose(page: Page, dropdown: str, text: str) -> None:
    """Choose from a dropdown."""
    page.value(
        f'document.querySelector("#{dropdown} input").click(); document.querySelector("#{dropdown} input").focus()'
    )
    option = f"[...document.querySelectorAll('#{dropdown} [role=option]')].find(e => e.innerText.includes({text!r}))"
    page.wait(option)
    page.value(f"{option}.dispatchEvent(new MouseEvent('mousedown', {{ bubbles: true }}))")


@pytest.mark.browser
def test_a_visitor_sorts_the_leaderboard(served: Served, browser: Page) -> None:
    cells = """[...document.querySelectorAll("#board-ours [role=row]")]
      .map(row => [...row.querySelectorAll("[data-testid^=cell-]")].map(cell => cell.innerText.trim()))
      .filter(row => row.length)"""
    open_tab(browser, served, "Leaderboard", f"{cells}.length > 0")
    board = read_boards()[0]
    columns = list(main_columns(board.ours).columns)
    position = columns.index("novel mAP@50")
    scores = board.ours["novel mAP@50"].tolist()
    assert scores != sorted(scores)

    def shown() -> list[float]:
        return [float(row[position]) for row in browser.value(cells)]

    assert shown() == scores
    choose(browser, "board-order", "novel mAP@50")
    browser.wait(f"{cells}[0][{position}] == '{max(scores):g}'")
    assert shown() == sorted(scores, reverse=True)
    browser.value("""[...document.querySelectorAll('#board-ours th[title="novel mAP@50"] .cell-menu-button')]
      .at(-1).click()""")
    browser.click("[role=menuitem]", "Sort ascending")
    browser.wait(f"{cells}[0][{position}] == '{min(scores):g}'")
    assert shown() == sorted(scores)
    choose(browser, "board", "Table 6")
    browser.wait('document.querySelector("#board-paper")?.offsetParent')
    assert "paper Table 6" in browser.value('document.querySelector("#board-paper").innerText')
    browser.wait('document.querySelectorAll("#ablations svg").length == 6')
    assert browser.problems == []


@pytest.mark.browser
@pytest.mark.parametrize("tab", ["Pseudo-labels", "Leaderboard"])
def test_fits_a_phone_in_the_dark(served: Served, browser: Page, tab: str) -> None:
    browser.open(f"{served.url}?q=guitar", width=390, height=800, dark=True)
    browser.wait('document.querySelectorAll("#gallery .caption-label").length > 0')
    open_tab_on_phone(browser, tab)
    browser.wait('[...document.querySelectorAll("#label-list p, .charts svg")].some(e => e.offsetParent || e.getBBox)')
    assert browser.value("document.documentElement.scrollWidth <= 390")
