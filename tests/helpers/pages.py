"""What the tests of a served page know about it."""

from dataclasses import dataclass
from pathlib import Path

from for_search.library.library import Library
from tests.helpers.browser import Page


@dataclass(frozen=True)
class Served:
    """A page at `url` over `library`, whose indexes and scenes lie in `folder`."""

    url: str
    library: Library
    folder: Path


def open_tab_on_phone(page: Page, tab: str) -> None:
    """Choose a tab where there is no room for all of them: those left out are behind three dots."""
    if not page.value(f"[...document.querySelectorAll('[role=tab]')].some(e => e.innerText.includes({tab!r}))"):
        page.click("[aria-label='More tabs']")
        page.click(".overflow-dropdown button", tab)
    else:
        page.click("[role=tab]", tab)
