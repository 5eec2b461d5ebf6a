"""Search, Compare and Index in a real browser: typed, clicked, looked at."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from for_app.examples import EXAMPLES
from for_app.tabs import compare as compare_tab
from for_app.tabs import search as search_tab
from tests.helpers.browser import Page
from tests.helpers.pages import Served, open_tab_on_phone

# Gradio's own dependencies warn when they are imported and served; a client that is dropped closes its sockets late.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

LOADED = """document.querySelectorAll("#gallery .caption-label").length == {k}
  && document.querySelector("#status").innerText.includes({query!r})"""
OPEN = 'document.querySelector("#evidence")?.offsetParent'


def captions(page: Page) -> Any:
    return page.value('[...document.querySelectorAll("#gallery .caption-label")].map(e => e.innerText.trim())')


def shown(result: Any) -> list[str]:
    return [f"{rank} · {hit.score:.3f}" for rank, hit in enumerate(result.hits, 1)]


def set_slider(page: Page, name: str, value: float) -> None:
    """Type into the number beside a slider, as the keyboard does."""
    page.value(f'document.querySelector("#{name} input[type=number]").focus()')
    page.type(str(value), enter=True)


def choose(page: Page, name: str, option: str) -> None:
    """Choose an option of a dropdown."""
    page.value(f'document.querySelector("#{name} input").click(); document.querySelector("#{name} input").focus()')
    found = f"[...document.querySelectorAll('#{name} [role=option]')].find(e => e.innerText.includes({option!r}))"
    page.wait(found)
    page.value(f"{found}.dispatchEvent(new MouseEvent('mousedown', {{ bubbles: true }}))")
    page.wait(f'document.querySelector("#{name} input").value == {option!r}')


def test_shows_what_the_address_asks_for(served: Served, browser: Page) -> None:
    browser.requested.clear()
    browser.problems.clear()
    browser.open(f"{served.url}?q=guitar&k=7")
    browser.wait(LOADED.format(k=7, query="guitar"))
    assert captions(browser) == shown(served.library.searcher(served.library.default).search("guitar", 7))
    browser.wait('[...document.querySelectorAll("#gallery img")].every(i => i.complete && i.naturalWidth == 160)')
    assert browser.value('document.querySelector("#query textarea, #query input").value') == "guitar"
    assert browser.value('document.querySelector("#histogram svg").getAttribute("aria-label")').startswith(
        "scores of all 30 images"
    )
    outside = [url for url in browser.requested if not url.startswith((served.url, "data:", "blob:", "about:"))]
    assert outside == []
    assert browser.problems == []


def test_a_visitor_types_and_clicks(served: Served, browser: Page) -> None:
    browser.open(served.url)
    first = EXAMPLES["miniscenes"][0]
    browser.wait(LOADED.format(k=search_tab.DEFAULT_K, query=first))  # the page is never empty
    browser.value('document.querySelector("#query textarea, #query input").focus()')
    browser.type("a <b>dog</b>", enter=True)
    browser.wait(LOADED.format(k=search_tab.DEFAULT_K, query="a <b>dog</b>"))  # shown as text, not as HTML
    browser.wait('new URL(location).searchParams.get("q") == "a <b>dog</b>"')
    browser.click("#chips button", "pizza")
    browser.wait(LOADED.format(k=search_tab.DEFAULT_K, query="pizza"))
    browser.wait('new URL(location).searchParams.get("q") == "pizza"')


def test_a_low_score_is_left_out(served: Served, browser: Page) -> None:
    result = served.library.searcher(served.library.default).search("cake", 10)
    scores = [hit.score for hit in result.hits]
    gap = max(range(2, 9), key=lambda i: scores[i] - scores[i + 1])  # away from rounding
    limit = round((scores[gap] + scores[gap + 1]) / 2, 4)
    browser.open(f"{served.url}?q=cake&k=10")
    browser.wait(LOADED.format(k=10, query="cake"))
    set_slider(browser, "cutoff", limit)
    browser.wait(LOADED.format(k=gap + 1, query="cake"))
    assert captions(browser) == shown(result)[: gap + 1]
    assert f"; {gap + 1} score" in browser.value('document.querySelector("#histogram").innerText')
    set_slider(browser, "k", 4)  # another number of images begins without a limit
    browser.wait(LOADED.format(k=4, query="cake"))


def test_the_evidence_opens_and_leads_on(served: Served, browser: Page) -> None:
    searcher = served.library.searcher(served.library.default)
    browser.open(f"{served.url}?q=dog&k=6")
    browser.wait(LOADED.format(k=6, query="dog"))
    hit = searcher.search("dog", 6).hits[1]
    for _ in range(2):  # and the same image once more
        browser.value('document.querySelectorAll("#gallery .thumbnail-lg")[1].click()')
        browser.wait(OPEN)
        browser.wait(f'document.querySelector("#words").innerText.includes("score {hit.score:.3f}")')
        browser.wait('[...document.querySelectorAll("#evidence img")].filter(i => i.naturalWidth == 768).length == 2')
        browser.click("#close")
        browser.wait(f"!{OPEN}")
    browser.value('document.querySelectorAll("#gallery .thumbnail-lg")[1].click()')
    browser.wait(OPEN)
    browser.click("#like-part")
    browser.wait(LOADED.format(k=6, query=f"like part {hit.embedding} of image {hit.image.id}"))
    assert captions(browser) == shown(searcher.find(searcher.like_query(hit.image.id, hit.embedding), 6))
    browser.wait(f"!{OPEN}")
    browser.click("#gallery .thumbnail-lg")
    browser.wait(OPEN)
    browser.click("#like-image")
    browser.wait(LOADED.format(k=6, query=f"like image {hit.image.id}"))
    assert captions(browser)[0] == "1 · 1.000"  # nothing is more like it than itself
    assert browser.problems == []


def drop(page: Page, selector: str, path: Path) -> None:
    """Give a file to the upload inside an element, as a visitor does who chooses or drops it."""
    document = page.call("DOM.getDocument")["root"]["nodeId"]
    node = page.call("DOM.querySelector", nodeId=document, selector=f"{selector} input[type=file]")["nodeId"]
    page.call("DOM.setFileInputFiles", files=[str(path)], nodeId=node)


def test_an_image_is_searched_with(served: Served, browser: Page, tmp_path: Path) -> None:
    searcher = served.library.searcher(served.library.default)
    image = searcher.index.images[7]
    browser.open(f"{served.url}?q=dog&k=5")
    browser.wait(LOADED.format(k=5, query="dog"))
    browser.click("#by-image button")
    browser.wait('document.querySelector("#upload input[type=file]")')
    (tmp_path / "no-image.png").write_text("<svg onload=alert(1)>")
    drop(browser, "#upload", tmp_path / "no-image.png")
    browser.wait('document.querySelector(".toast-body")?.innerText.includes("not an image")')
    assert "dog" in browser.value('document.querySelector("#status").innerText')  # what was shown stays
    browser.click('#upload button[aria-label="Remove Image"]')
    browser.wait('document.querySelector("#upload input[type=file]")')
    drop(browser, "#upload", searcher.image_path(image))
    browser.wait(LOADED.format(k=5, query="your image"))
    browser.click("#gallery .thumbnail-lg")
    browser.wait(OPEN)
    browser.wait(f'document.querySelector("#words").innerText.startsWith("{image.id} ")')  # it finds itself


def test_another_index_is_chosen(served: Served, browser: Page) -> None:
    browser.open(f"{served.url}?q=umbrella&k=5")
    browser.wait(LOADED.format(k=5, query="umbrella"))
    choose(browser, "index", "miniscenes val: Dense-CLIP")
    browser.wait('document.querySelector("#status").innerText.includes("25 embeddings an image")')
    name = served.library.names[2]
    assert captions(browser) == shown(served.library.searcher(name).search("umbrella", 5))
    browser.click("[role=tab]", "Index")
    browser.wait('document.querySelector("#about").innerText.includes("dense-clip, 25 embeddings")')


def test_four_methods_are_compared(served: Served, browser: Page) -> None:
    browser.open(f"{served.url}?q=umbrella")
    browser.wait(LOADED.format(k=search_tab.DEFAULT_K, query="umbrella"))
    browser.click("[role=tab]", "Compare")  # begins with what was searched for
    pictures = 4 * compare_tab.DEFAULT_K
    browser.wait(f'document.querySelectorAll("#comparison img").length == {pictures}')
    titles = browser.value('[...document.querySelectorAll("#comparison section h3")].map(e => e.innerText)')
    assert titles == ["Cluster-CLIP 8", "CLIP", "Dense-CLIP", "FOR 3"]
    marked = browser.value('document.querySelectorAll("#comparison .right, #comparison .wrong").length')
    assert marked == pictures
    assert browser.value('document.querySelectorAll("#comparison td").length') == 17
    browser.click("#methods label", "FOR 3")
    browser.value('document.querySelector("#compare-query textarea, #compare-query input").focus()')
    browser.type("<i>no category</i>", enter=True)
    browser.wait('document.querySelectorAll("#comparison section").length == 3')
    assert "<i>no category</i> is no category" in browser.value('document.querySelector("#comparison").innerText')
    assert browser.value('document.querySelectorAll("#comparison .right, #comparison .wrong").length') == 0
    assert browser.problems == []


def test_a_folder_is_indexed_and_can_be_searched(
    served: Served, browser: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOR_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "Pictures"
    folder.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    browser.open(served.url)
    browser.click("[role=tab]", "Index")
    browser.value('document.querySelector("#folder textarea, #folder input").focus()')
    browser.type(str(tmp_path / "nowhere"))
    browser.click("#build")
    browser.wait('document.querySelector(".toast-body")?.innerText.includes("is not a folder")')
    browser.value('document.querySelector("#folder textarea, #folder input").focus()')
    browser.type(str(folder))
    choose(browser, "backbone", "RN-mini")
    browser.click("#build")
    browser.wait('document.querySelector("#built").innerText.includes("ready")')
    assert "Pictures: Cluster-CLIP 8" in served.library.names
    time.sleep(1)  # the choices arrive with the next look
    choose(browser, "index", "Pictures: Cluster-CLIP 8")
    browser.wait('document.querySelector("#about").innerText.includes("3 searched, 0 skipped")')


@pytest.mark.parametrize("tab", ["Search", "Compare", "Index"])
def test_fits_a_phone(served: Served, browser: Page, tab: str) -> None:
    browser.open(f"{served.url}?q=guitar", width=390, height=800, dark=True)
    browser.wait(LOADED.format(k=search_tab.DEFAULT_K, query="guitar"))
    wide = browser.value('Math.max(...[...document.querySelectorAll("#gallery img")].map(i => i.clientWidth))')
    assert 120 <= wide <= 195  # two columns
    open_tab_on_phone(browser, tab)
    if tab == "Compare":
        browser.wait('document.querySelectorAll("#comparison img").length')
    assert browser.value("document.documentElement.scrollWidth <= 390")
    assert browser.value('[...document.querySelectorAll(".hint")].some(e => e.offsetParent && e.innerText.length > 20)')
