"""Marks, concepts and several things at once, in a real browser."""

import gc
from pathlib import Path
from typing import Any

import pytest

from for_app.page import build_app
from for_app.serve import serve
from for_search import api
from for_search.library.library import Library
from tests.helpers.browser import Page
from tests.helpers.pages import Served, found
from tests.helpers.ports import free_port
from tests.helpers.serving import end_page

pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.gradio]

AT_REST = "!document.body.matches('.searching')"
SAID = 'document.querySelector("#marks-said").innerText'
STATUS = 'document.querySelector("#status").innerText'
IDS = '[...document.querySelectorAll("#grid li[data-id]")].map(e => e.dataset.id)'
MARKED = '[...document.querySelectorAll("#marked button")].map(e => [e.className, e.dataset.id])'
FOCUSED = "Number(document.activeElement.dataset.n)"


def addressed(page: Page, name: str) -> Any:
    return page.value(f"new URL(location).searchParams.getAll('{name}')")


def test_keys_mark_results_which_move_and_nothing_loses_its_place(served: Served, browser: Page) -> None:
    browser.problems.clear()
    browser.open(f"{served.url}?q=dog&k=30", height=600)
    browser.wait(found(30, "dog"))
    ids = browser.value(IDS)
    browser.value('document.querySelectorAll(".shot")[12].scrollIntoView({ block: "center" })')
    browser.value('document.querySelectorAll(".shot")[12].focus({ preventScroll: true })')
    place = browser.value("document.querySelector('#grid').getBoundingClientRect().top")
    browser.press("r")
    browser.wait(f"{SAID}.startsWith('1 right, 0 wrong') && {AT_REST} && {IDS}.length == 29")
    assert browser.value(FOCUSED) == 12  # what has the focus is at the same place, so that one can go on
    assert browser.value("document.querySelector('#grid').getBoundingClientRect().top") == pytest.approx(place, abs=1)
    second = browser.value(IDS)[12]
    browser.press("w")
    browser.wait(f"{SAID}.startsWith('1 right, 1 wrong') && {AT_REST} && {IDS}.length == 28")
    assert browser.value(MARKED) == [["wrong", second], ["right", ids[12]]]  # shown apart, the last first
    assert (addressed(browser, "right"), addressed(browser, "wrong")) == ([ids[12]], [second])
    assert "about" in browser.value(SAID)
    address = browser.value("location.href")
    browser.open("about:blank")
    browser.open(address, height=600)  # a reload, or a link
    browser.wait(f"{SAID}?.startsWith('1 right, 1 wrong') && {AT_REST} && {IDS}.length == 28")
    assert browser.value(MARKED) == [["wrong", second], ["right", ids[12]]]
    browser.value('document.querySelector(".shot").focus()')
    browser.press("u")
    browser.wait(f"{SAID}.startsWith('1 right, 0 wrong') && {AT_REST}")
    browser.click("#marked button")  # taken back by a click too
    browser.wait(f"document.querySelector('#marks').hidden && {AT_REST}")
    assert browser.value(IDS) == ids
    assert browser.problems == []


def test_marks_by_buttons_and_in_an_opened_result(served: Served, browser: Page) -> None:
    browser.open(f"{served.url}?q=cat")
    browser.wait(found(24, "cat"))
    ids = browser.value(IDS)
    browser.value("document.querySelectorAll('#grid .mark[data-kind=wrong]')[3].click()")
    browser.wait(f"{SAID}.startsWith('0 right, 1 wrong') && {AT_REST}")
    after = browser.value(IDS)
    browser.value('document.querySelectorAll(".shot")[5].click()')
    browser.wait('document.querySelector("#viewer").open')
    browser.press("r")
    browser.wait("document.querySelector('#right').ariaPressed == 'true'")
    browser.click("#close")
    browser.wait(f"{SAID}.startsWith('1 right, 1 wrong') && {AT_REST}")
    assert browser.value(MARKED) == [["right", after[5]], ["wrong", ids[3]]]
    browser.click("#forget-marks")
    browser.wait(f"document.querySelector('#marks').hidden && {AT_REST}")
    assert browser.value(IDS) == ids


PART = "FOR.viewer.places.part"


def test_a_part_is_marked_by_keys_and_by_a_click(served: Served, browser: Page) -> None:
    browser.problems.clear()
    browser.open(f"{served.url}?q=dog", width=1440)
    browser.wait(found(24, "dog"))
    ids = browser.value(IDS)
    matched = browser.value("FOR.results.hits[2].part")
    browser.value("document.querySelectorAll('.shot')[2].click()")
    browser.wait("document.querySelector('#viewer').open")
    browser.press("p")
    browser.wait("!document.querySelector('#places').hidden && document.activeElement.id == 'places'")
    assert browser.value(PART) == str(matched)
    parts = api.parts(served.library, ids[2])
    place = browser.value("FOR.viewer.places.place")
    moved = place + 1 if place % 5 < 4 else place - 1
    browser.press("ArrowRight" if moved > place else "ArrowLeft")
    chosen = parts["part"][moved // 5][moved % 5]
    assert browser.value(PART) == str(chosen)
    browser.press("w")
    assert browser.value("document.querySelector('#wrong').ariaPressed") == "true"
    assert browser.value("document.querySelector('#wrong').innerText") == "✗ Wrong part"
    browser.click("#next")  # another picture, of which no part is chosen
    assert browser.value(f"{PART} === undefined && document.querySelector('#places').hidden")
    browser.wait(
        "document.querySelector('#viewer-image').complete && document.querySelector('#viewer-image').naturalWidth"
    )
    box = browser.value("FOR.viewer.places.box()")
    x, y = box["left"] + 0.7 * box["width"], box["top"] + 0.3 * box["height"]
    for kind in ("mousePressed", "mouseReleased"):
        browser.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
    browser.wait(f"{PART} !== undefined")
    clicked = api.parts(served.library, ids[3])["part"][1][3]
    assert browser.value(PART) == str(clicked)
    laid = browser.value("document.querySelector('#places').getBoundingClientRect().toJSON()")
    box = browser.value("FOR.viewer.places.box()")  # beside it there is less room now
    assert [laid[side] for side in box] == pytest.approx(list(box.values()), abs=1)
    browser.click("#right", "Right part")
    browser.click("#close")
    browser.wait(f"{SAID}.startsWith('1 right, 1 wrong') && {AT_REST}")
    given = [f"{chosen}@{ids[2]}"], [f"{clicked}@{ids[3]}"]
    assert (addressed(browser, "wrong-part"), addressed(browser, "right-part")) == given
    image = int(ids[3])
    marks = [
        {"image": int(ids[2]), "right": False, "embedding": chosen},
        {"image": image, "right": True, "embedding": clicked},
    ]
    assert browser.value(IDS)[:12] == [str(hit["id"]) for hit in api.refine(served.library, "dog", marks)["hits"]]
    address = browser.value("location.href")
    browser.open("about:blank")
    browser.open(address)  # marks of parts are in the address as well
    browser.wait(f"{SAID}?.startsWith('1 right, 1 wrong') && {AT_REST}")
    assert browser.value("FOR.state.marks") == [["wrong", ids[2], str(chosen)], ["right", ids[3], str(clicked)]]
    assert "a part of image" in browser.value("document.querySelector('#marked button').ariaLabel")
    assert browser.problems == []


def test_all_of_them_and_what_would_help_most(served: Served, browser: Page) -> None:
    hits = served.library.searcher(served.library.default).search("dog", 30).hits
    marks = f"right={hits[0].image.id}&right={hits[9].image.id}&wrong={hits[1].image.id}"
    browser.open(f"{served.url}?q=dog&{marks}")
    browser.wait(f"{SAID}?.startsWith('2 right, 1 wrong') && {AT_REST}")
    browser.click("#help-most")
    browser.wait("document.querySelectorAll('#telling li').length == 3")
    asked = browser.value("[...document.querySelectorAll('#telling .mark')].map(e => e.dataset.id)")
    browser.click("#telling .mark")  # right
    browser.wait(f"{SAID}.startsWith('3 right, 1 wrong') && {AT_REST}")
    browser.wait(f"![...document.querySelectorAll('#telling .mark')].some(e => e.dataset.id == {asked[0]!r})")
    words = browser.value(SAID).partition(" · ")[2]
    browser.click("#everything")
    browser.wait(f"{AT_REST} && {STATUS}.includes('all that are meant')")
    assert addressed(browser, "show") == ["everything"]
    assert words in browser.value(SAID)
    shown = browser.value(IDS)
    assert shown[:2] == [str(hits[0].image.id), str(hits[9].image.id)]
    table = browser.value("fetch(document.querySelector('#csv').href).then(answer => answer.text())").splitlines()
    assert [line.split(",")[0] for line in table[1:]][: len(shown)] == shown
    browser.click("#everything", "Back to the best")
    browser.wait(f"{AT_REST} && !{STATUS}.includes('all that are meant')")


def test_marks_that_make_no_sense_are_a_line_and_stay(served: Served, browser: Page) -> None:
    searcher = served.library.searcher(served.library.default)
    image = searcher.index.images[0].id
    browser.open(f"{served.url}?q=dog&right=99999&right={image}&wrong={image}")  # the later of the two counts
    browser.wait(f"{SAID}?.startsWith('0 right, 1 wrong') && {AT_REST}")
    assert "1 marked image is gone" in browser.value(SAID)
    browser.wait("document.querySelector('#marked [data-id=\"99999\"]').innerText.startsWith('gone')")
    assert "which is gone" in browser.value("document.querySelector('#marked [data-id=\"99999\"]').ariaLabel")
    kept = browser.value("FOR.state.marks")
    assert kept == [["right", "99999"], ["wrong", str(image)]]
    browser.value("FOR.marks.set(Array.from({ length: 100000 }, (_, n) => ['right', String(n)]))")
    assert "No more marks fit" in browser.value(STATUS)
    assert browser.value("FOR.state.marks") == kept  # those that were given stay


def test_several_things_at_once(served: Served, browser: Page) -> None:
    browser.problems.clear()
    browser.open(f"{served.url}?q=dog", width=1440)
    browser.wait(found(24, "dog"))
    browser.click("#tune")
    for name, words in (("all", "cat, kite"), ("none", "person")):
        browser.value(f"document.querySelector('#several [name={name}]').focus()")
        browser.type(words)
        browser.value("document.activeElement.blur()")
    browser.wait(found(24, "dog and cat and kite, without person"))
    assert (addressed(browser, "all"), addressed(browser, "none")) == (["cat", "kite"], ["person"])
    assert browser.value("document.querySelectorAll('#grid .mark').length") == 0  # which would it mark?
    browser.value('document.querySelector(".shot").click()')
    browser.wait('document.querySelector("#viewer").open')
    assert "person" in browser.value("document.querySelector('#viewer-rank').innerText")
    browser.click("#heat")
    browser.wait('document.querySelector("#viewer-heat").naturalWidth')
    colours = (
        "[...document.querySelectorAll('#viewer-things li')].map(e => [e.innerText, e.firstChild.style.background])"
    )
    things = browser.value(colours)
    assert [text for text, _ in things] == ["dog", "cat", "kite"]
    assert len({colour for _, colour in things}) == 3
    browser.click("#close")
    browser.click("#several button", "Clear")
    browser.wait(found(24, "dog") + " && document.querySelectorAll('#grid .mark').length")
    assert addressed(browser, "all") == []
    assert browser.problems == []


def test_a_concept_is_kept_from_the_page_and_chosen(served: Served, browser: Page, tmp_path: Path) -> None:
    library = Library(weights="random", concepts=tmp_path / "concepts")
    library.add_opened(served.library.searcher(served.library.default))
    hits = library.searcher(library.default).search("dog", 3).hits
    app = build_app(library, own=True)
    url = serve(app, port=free_port())
    try:
        browser.open(f"{url}?q=dog&right={hits[2].image.id}&wrong={hits[0].image.id}")
        browser.wait(
            f"{SAID}?.startsWith('1 right, 1 wrong') && {AT_REST} && !document.querySelector('#keep-open').hidden"
        )
        browser.click("#keep-open")
        browser.type("jumping dog", enter=True)
        browser.wait("document.querySelector('#chips .concept')?.innerText == 'jumping dog'")
        assert "Kept as the concept jumping dog: 1 right, 1 wrong" in browser.value(STATUS)
        assert (tmp_path / "concepts" / "jumping dog.json").is_file()
        browser.click("#keep-open")
        browser.type("jumping dog", enter=True)
        browser.wait("document.querySelector('#keep-said').textContent.includes('is there already')")
        browser.click("#chips .concept")
        browser.wait(found(24, "concept:jumping dog"))
        assert browser.value(SAID).startswith("1 right, 1 wrong")
        assert browser.value('document.querySelector("#query").value') == "concept:jumping dog"
        assert browser.value(MARKED) == []
    finally:
        end_page(app)
        del app
        gc.collect()
