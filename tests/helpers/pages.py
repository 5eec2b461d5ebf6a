"""What the tests of a served page know about it."""

from dataclasses import dataclass
from pathlib import Path

from for_search.library.library import Library


@dataclass(frozen=True)
class Served:
    """A page at `url` over `library`, whose indexes and scenes lie in `folder`."""

    url: str
    library: Library
    folder: Path


def found(k: int, query: str) -> str:
    """What is true in the browser once the hits of a query are shown, and their pictures have come."""
    pictures = "[...document.querySelectorAll('#grid img')]"
    return f"""document.querySelectorAll("#grid .shot").length == {k} && !document.body.matches(".searching")
      && document.querySelector("#status").innerText.includes({query!r})
      && {pictures}.filter(i => i.complete && i.naturalWidth).length >= Math.min({k}, 6)"""
