"""axe-core, which finds what of a page some people can't use; `.ci/run` fetches it into the repository's `.cache`."""

import json
from typing import Any

import pytest

from tests.helpers.browser import Page
from tests.helpers.paths import REPOSITORY

AXE = REPOSITORY / ".cache" / "axe" / "package" / "axe.min.js"
_OF_COLOURS = {"runOnly": {"type": "rule", "values": ["color-contrast", "link-in-text-block"]}}
_FOUND = """axe.run(document, OPTIONS).then((found) => found.violations
  .filter((one) => ["critical", "serious"].includes(one.impact))
  .map((one) => [one.id, ...one.nodes.map((node) => node.html.slice(0, 200))]))"""


def violations(page: Page, colours_alone: bool = False) -> Any:
    """What axe finds critical or serious on what a page shows now: the rule, and the elements that break it.

    colours_alone: ask only the rules about colours, where nothing else has changed since all were asked.
    """
    if not AXE.is_file():
        pytest.skip("needs axe-core: mkdir -p .cache/axe && cd .cache/axe && npm pack axe-core && tar xzf axe-core-*")
    if not page.value("Boolean(window.axe)"):
        page.value(f"{AXE.read_text(encoding='utf-8')}; 1")
    options = {"resultTypes": ["violations"], "selectors": False, **(_OF_COLOURS if colours_alone else {})}
    return page.value(_FOUND.replace("OPTIONS", json.dumps(options)))
