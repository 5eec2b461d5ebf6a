"""Search, Compare and Index in a real browser: typed, clicked, dropped, looked at."""

import base64
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from for_app.examples import EXAMPLES
from for_app.page import TABS
from tests.helpers.axe import violations
from tests.helpers.browser import Page
from tests.helpers.pages import Served, found

pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.gradio]

STEP = 24
OPEN = 'document.querySelector("#viewer").open'
NAME = 'document.querySelector("#viewer-name").innerText'
BOX = 'document.querySelector("#query").value'
QUERY = 'new URL(location).searchParams.get("{}")'
STATUS = 'document.querySelector("#status").innerText'


def names(page: Page) -> Any:
    return page.value('[...document.querySelectorAll("#grid img")].map(e => e.alt)')


def told(served: Served, query: str, k: int) -> list[str]:
    searcher = served.library.searcher(served.library.default)
    hits = searcher.search(query, k).hits
    return [f"{Path(hit.image.path).name}, rank {rank} of 30" for rank, hit in enumerate(hits, 1)]


def ask_for(page: Page, words: str) -> None:
    page.value('document.querySelector("#query").focus()')
    page.type(words, enter=True)


def drop(page: Page, name: str, content: bytes) -> None:
    """Drop a file somewhere on the page."""
    data = base64.b64encode(content).decode()
    page.value(f"""(() => {{
      const bytes = Uint8Array.from(atob("{data}"), (each) => each.charCodeAt(0));
      const dropped = new DataTransfer();
      dropped.items.add(new File([bytes], "{name}", {{ type: "image/png" }}));
      document.body.dispatchEvent(new DragEvent("drop", {{ dataTransfer: dropped, bubbles: true, cancelable: true }}));
    }})()""")


def test_a_page_at_rest_draws_nothing(served: Served, browser: Page) -> None:
    """Not even what isn't seen: it took a sixth of a visitor's processor, see `for_app.server.first_script`."""
    counting = browser.call(
        "Page.addScriptToEvaluateOnNewDocument",
        source="""(() => {
          const frame = window.requestAnimationFrame.bind(window);
          window.frames_asked = 0;
          window.requestAnimationFrame = (callback) => { window.frames_asked += 1; return frame(callback); };
        })()""",
    )
    try:
        browser.open(f"{served.url}?q=guitar")
        browser.wait(found(STEP, "guitar"))
        assert browser.value("window.frames_asked") > 0
        in_half_a_second = """new Promise((resolve) => {
          const before = window.frames_asked;
          setTimeout(() => resolve(window.frames_asked - before), 500);
        })"""
        assert 0 in (browser.value(in_half_a_second) for _ in range(20))
    finally:
        browser.call("Page.removeScriptToEvaluateOnNewDocument", identifier=counting["identifier"])


def test_a_link_shows_what_its_sender_saw(served: Served, browser: Page) -> None:
    browser.requested.clear()
    browser.problems.clear()
    browser.open(f"{served.url}?q=guitar&k=30")
    browser.wait(found(30, "guitar"))
    assert names(browser) == told(served, "guitar", 30)
    assert browser.value(BOX) == "guitar"
    assert not browser.value('document.querySelector("#technical").open')
    assert browser.value('document.querySelector("#technical svg").getAttribute("aria-label")').startswith(
        "scores of all 30 images"
    )
    outside = [url for url in browser.requested if not url.startswith((served.url, "data:", "blob:", "about:"))]
    assert outside == []
    assert browser.problems == []


def test_back_goes_back_a_search(served: Served, browser: Page) -> None:
    first = EXAMPLES["miniscenes"][0]
    browser.open(served.url)
    browser.wait(found(STEP, first))  # the page is never empty, and the box says what is shown
    assert browser.value(BOX) == first
    ask_for(browser, "a <b>dog</b>")
    browser.wait(found(STEP, "a <b>dog</b>"))  # shown as text, not as HTML
    assert browser.value(QUERY.format("q")) == "a <b>dog</b>"
    browser.click("#chips button", "pizza")
    browser.wait(found(STEP, "pizza"))
    assert browser.value(BOX) == "pizza"
    for words in ("a <b>dog</b>", first):
        browser.value("history.back()")
        browser.wait(found(STEP, words))
        assert browser.value(BOX) == words
        assert names(browser) == told(served, words, STEP)


def test_more_come_as_one_scrolls(served: Served, browser: Page) -> None:
    browser.open(f"{served.url}?q=dog&least=-1", height=600)  # all of them match
    browser.wait(found(STEP, "dog"))
    browser.value("window.scrollTo(0, document.body.scrollHeight)")
    browser.wait(found(30, "dog"))
    assert names(browser) == told(served, "dog", 30)
    assert browser.value(QUERY.format("k")) == "30"
    assert "All 30 images" in browser.value(STATUS)


def test_what_scores_less_is_dimmed_below_a_line(served: Served, browser: Page) -> None:
    hits = served.library.searcher(served.library.default).search("cake", STEP).hits
    scores = [hit.score for hit in hits]
    gap = max(range(2, 20), key=lambda i: scores[i] - scores[i + 1])  # away from rounding
    least = f"{(scores[gap] + scores[gap + 1]) / 2:.3f}"
    dimmed = 'document.querySelectorAll("#grid .low").length'
    line = 'document.querySelector("#grid .line")?.innerText'

    def put(value: str) -> None:
        browser.value('document.querySelector("#least input[type=number]").focus()')
        browser.type(value, enter=True)

    browser.open(f"{served.url}?q=cake&least={least}")
    browser.wait(found(STEP, "cake"))
    assert browser.value(dimmed) == STEP - gap - 1
    assert f"{gap + 1} of 30 images reach the lowest score" in browser.value(STATUS)
    browser.click("#tune")
    browser.click("#more")  # more of them keeps it
    browser.wait(found(30, "cake"))
    assert browser.value(QUERY.format("least")) == least
    put("99")  # out of range: the highest there is
    browser.wait(f'{line}?.startsWith("No image scores")')
    assert f"the best has {scores[0]:.3f}" in browser.value(line)
    assert float(browser.value(QUERY.format("least"))) < 1
    browser.click("#least button", "Reset")
    searcher = served.library.searcher(served.library.default)
    judged = searcher.judged(searcher.text_query("cake"), searcher.search("cake", 30))
    browser.wait(
        f"{dimmed} == 30 - {judged.n_good} && !document.body.matches('.searching')"
    )  # the good matches' own line
    assert "score" not in (browser.value(line) or "")
    assert browser.value(QUERY.format("least")) is None


def test_a_condition_chooses_among_the_images(served: Served, browser: Page) -> None:
    browser.open(f"{served.url}?q=cake")
    browser.wait(found(STEP, "cake"))
    browser.click("#tune")
    browser.value('document.querySelector("#where input").focus()')
    browser.type("width < 0", enter=True)
    browser.wait(f"{STATUS}.includes('No image meets the condition')")
    assert browser.value(QUERY.format("where")) == "width < 0"
    browser.click("#where button", "Clear")
    browser.wait(found(STEP, "cake"))
    assert browser.value(QUERY.format("where")) is None


def test_a_result_opens_over_the_grid_and_leads_on(served: Served, browser: Page) -> None:
    searcher = served.library.searcher(served.library.default)
    hits = searcher.search("dog", STEP).hits
    files = [Path(hit.image.path).name for hit in hits]
    browser.problems.clear()
    browser.open(f"{served.url}?q=dog", height=600)
    browser.wait(found(STEP, "dog"))
    browser.value('document.querySelectorAll(".shot")[9].scrollIntoView({ block: "center" })')
    place = browser.value("scrollY")
    browser.value('document.querySelectorAll(".shot")[9].click()')
    browser.wait(f"{OPEN} && {NAME} == '{files[9]}'")
    assert browser.value(QUERY.format("open")) == str(hits[9].image.id)
    browser.wait('document.querySelector("#viewer-file").innerText.includes("160 × 160 pixels")')
    browser.click("#heat")
    browser.wait('document.querySelector("#viewer-heat").naturalWidth == 1024')
    browser.press("ArrowRight")
    browser.wait(f"{NAME} == '{files[10]}'")
    browser.wait('document.querySelector("#viewer-heat").naturalWidth == 1024')  # it stays on
    browser.press("ArrowLeft")
    browser.wait(f"{NAME} == '{files[9]}'")
    browser.press("Escape")
    browser.wait(f"!{OPEN}")
    assert browser.value("scrollY") == place
    assert browser.value('document.activeElement == document.querySelectorAll(".shot")[9]')
    assert browser.value(QUERY.format("open")) is None
    browser.value('document.querySelectorAll(".shot")[0].click()')
    browser.wait(f"{OPEN} && {NAME} == '{files[0]}'")
    browser.press("ArrowRight")  # keys reach the first one too, which has none before it
    browser.wait(f"{NAME} == '{files[1]}'")
    browser.value('document.querySelector("#previous").focus()')
    browser.click("#previous")
    browser.wait(f"{NAME} == '{files[0]}'")
    browser.press("ArrowRight")
    browser.wait(f"{NAME} == '{files[1]}'")
    browser.press("ArrowLeft")
    browser.press("Escape")
    browser.wait(f"!{OPEN}")
    browser.value('document.querySelectorAll(".shot")[1].click()')
    browser.wait(OPEN)
    browser.click("#like-part")
    browser.wait(found(STEP, f"like a part of {files[1]}"))
    assert browser.value(BOX) == ""
    query = searcher.like_query(hits[1].image.id, hits[1].embedding)
    best = searcher.find(query, 1).hits[0].image
    assert names(browser)[0] == f"{Path(best.path).name}, rank 1 of 30"
    browser.value("document.querySelector('.shot').click()")
    browser.wait(OPEN)
    browser.click("#like-image")
    browser.wait(found(STEP, f"like {Path(best.path).name}"))
    assert names(browser)[0] == f"{Path(best.path).name}, rank 1 of 30"  # nothing is more like it than itself
    browser.value("history.back(); history.back()")
    assert browser.problems == []


def test_an_image_is_dropped_and_what_is_none_leaves_nothing(served: Served, browser: Page) -> None:
    searcher = served.library.searcher(served.library.default)
    image = searcher.index.images[7]
    browser.open(f"{served.url}?q=dog")
    browser.wait(found(STEP, "dog"))
    drop(browser, "mine.png", searcher.image_path(image).read_bytes())
    browser.wait(found(STEP, "like mine.png"))
    assert names(browser)[0] == f"{Path(image.path).name}, rank 1 of 30"  # it finds itself
    assert browser.value(BOX) == ""
    address = browser.value("location.href")
    drop(browser, "none.png", b"<svg onload=alert(1)>")
    browser.wait(f'{STATUS}.includes("not an image")')
    assert names(browser) == []
    assert browser.value('document.querySelector("#asked").innerText').startswith("none.png")
    browser.open("about:blank")
    browser.open(address)  # the link goes on showing what it showed
    browser.wait(found(STEP, "like mine.png"))
    ask_for(browser, "kite")
    browser.wait(found(STEP, "kite"))
    assert browser.value('document.querySelector("#asked").hidden')


def test_another_index_is_chosen(served: Served, browser: Page) -> None:
    browser.open(f"{served.url}?q=umbrella")
    browser.wait(found(STEP, "umbrella"))
    name = served.library.names[2]
    browser.value(f"""(() => {{ const choice = document.querySelector("#index");
      choice.value = {name!r}; choice.dispatchEvent(new Event("change", {{ bubbles: true }})); }})()""")
    browser.wait('document.querySelector("#technical dl")?.textContent.includes("25 of width")')
    browser.wait(found(STEP, "umbrella"))
    best = served.library.searcher(name).search("umbrella", 1).hits[0].image
    assert names(browser)[0] == f"{Path(best.path).name}, rank 1 of 30"
    browser.click("#tabs a", "Index")
    browser.wait('document.querySelector("#about").innerText.includes("Dense-CLIP, 25 embeddings")')
    browser.value("history.back(); history.back()")
    browser.wait(f"document.querySelector('#index').value == {served.library.default!r}")


def test_methods_are_compared_and_their_hits_open(served: Served, browser: Page) -> None:
    browser.problems.clear()
    browser.open(f"{served.url}?q=umbrella")
    browser.wait(found(STEP, "umbrella"))
    browser.click("#tabs a", "Compare")  # with what was searched for
    browser.wait('document.querySelectorAll("#comparison .shot").length == 4 * 8')
    titles = browser.value('[...document.querySelectorAll("#comparison section h3")].map(e => e.innerText)')
    assert titles == ["Cluster-CLIP 8", "CLIP", "Dense-CLIP", "FOR 3"]
    assert browser.value('document.querySelectorAll("#comparison .right, #comparison .wrong").length') == 32
    assert browser.value('document.querySelectorAll("#comparison td").length') == 16
    browser.value('document.querySelectorAll("#comparison section")[2].querySelectorAll(".shot")[3].click()')
    browser.wait(OPEN)
    hit = served.library.searcher(served.library.names[2]).search("umbrella", 4).hits[3]
    assert browser.value(NAME) == Path(hit.image.path).name
    browser.press("Escape")
    browser.wait(f"!{OPEN}")
    browser.click("#comparison label", "FOR 3")
    browser.wait('document.querySelectorAll("#comparison section").length == 3')
    ask_for(browser, "<i>no category</i>")
    browser.wait('document.querySelector("#comparison .said").innerText.includes("<i>no category</i> is no category")')
    assert browser.value('document.querySelectorAll("#comparison .right, #comparison .wrong").length') == 0
    assert browser.problems == []


def test_a_folder_is_indexed_and_chosen(
    served: Served, browser: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOR_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "Pictures"
    folder.mkdir()
    for number, size in enumerate(((40, 40), (90, 40), (40, 60))):
        pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    browser.open(f"{served.url}?q=dog&tab=index")
    browser.wait('document.querySelector("#folder")?.offsetParent')
    browser.value('document.querySelector("#folder textarea, #folder input").focus()')
    browser.type(str(tmp_path / "nowhere"))
    browser.click("#build")
    browser.wait('document.querySelector(".toast-body")?.innerText.includes("is not a folder")')
    browser.value('document.querySelector("#folder textarea, #folder input").focus()')
    browser.type(str(folder))
    browser.value('document.querySelector("#backbone input").click()')
    browser.value('document.querySelector("#backbone input").focus()')
    option = "[...document.querySelectorAll('#backbone [role=option]')].find(e => e.innerText.includes('RN-mini'))"
    browser.wait(option)
    browser.value(f"{option}.dispatchEvent(new MouseEvent('mousedown', {{ bubbles: true }}))")
    browser.click("#build")
    browser.wait('document.querySelector("#index").value == "Pictures: Cluster-CLIP 8"')
    browser.wait('document.querySelector("#about").innerText.includes("3 searched, 0 skipped")')
    browser.click("#tabs a", "Search")
    browser.wait(found(3, "dog"))
    heights = browser.value('[...document.querySelectorAll("#grid img")].map(e => Math.round(e.clientHeight))')
    assert max(heights) - min(heights) <= 1  # one row, nothing cut
    shapes = browser.value('[...document.querySelectorAll("#grid img")].map(e => e.clientWidth / e.clientHeight)')
    assert sorted(shapes) == pytest.approx([2 / 3, 1, 9 / 4], rel=0.02)
    browser.click("#tabs a", "Compare")
    browser.wait('document.querySelector("#comparison form p")?.innerText.includes("Only one method")')
    assert "labelled" not in browser.value('document.querySelector("#comparison .said").innerText')


@pytest.mark.parametrize(("width", "height", "most_top"), [(390, 844, 500), (1440, 900, 350)])
def test_results_come_first(served: Served, browser: Page, width: int, height: int, most_top: int) -> None:
    browser.open(f"{served.url}?q=guitar", width=width, height=height)
    browser.wait(found(STEP, "guitar"))
    assert browser.value('document.querySelector("#grid li").getBoundingClientRect().top') < most_top
    assert browser.value('document.querySelector("#grid li").getBoundingClientRect().bottom') < height


@pytest.mark.axe
@pytest.mark.parametrize("tab", [*TABS, "viewer", "marks", "everything", "several", "rounds"])
def test_everybody_can_use_it_at_both_sizes_in_light_and_dark(served: Served, browser: Page, tab: str) -> None:
    first = served.library.searcher(served.library.default).search("guitar", 1).hits[0].image.id
    asked = {
        "viewer": f"open={first}",
        "marks": f"right={first}",
        "everything": f"right={first}&show=everything",
        "several": "all=dog&none=cat",
        "rounds": f"tab=leaderboard&table={quote('Marks on results (coco)')}",
    }.get(tab, f"tab={quote(tab)}")
    marked = 'document.querySelector("#marked img")?.naturalWidth && !document.body.matches(".searching")'
    shown = {
        "search": found(STEP, "guitar"),
        "compare": 'document.querySelector("#comparison table")',
        "labels": 'document.querySelectorAll("#label-samples img").length == 12',
        "leaderboard": 'document.querySelector("#boards table")',
        "index": 'document.querySelector("#about dl")',
        "rounds": 'document.querySelector("#boards .charts svg")',
        "marks": marked,
        "everything": f"{marked} && document.querySelectorAll('#grid .shot').length",
        "several": found(STEP, "guitar and dog, without cat"),
        "viewer": f"{OPEN} && document.querySelector('#viewer-file').innerText",
    }
    browser.open("about:blank")
    browser.open(f"{served.url}?q=guitar&{asked}", width=1440, height=900)
    browser.wait(shown[tab])
    for button in {"marks": ("#help-most",), "several": ("#tune",)}.get(tab, ()):
        browser.click(button)
    if tab == "marks":
        browser.wait("document.querySelectorAll('#telling img').length == 3")
    for width, height in ((1440, 900), (390, 844)):
        browser.resize(width, height)
        for dark in (False, True):
            browser.prefer(dark)
            browser.wait(f"innerWidth == {width} && document.body.matches('.dark') == {str(dark).lower()}")
            assert browser.value(f"document.documentElement.scrollWidth <= {width}")
            browser.wait("!document.getAnimations().some((one) => one.playState == 'running')")
            assert violations(browser, colours_alone=dark) == []
