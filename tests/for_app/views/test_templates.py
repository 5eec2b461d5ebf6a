"""The templates: what is put into one is text, what it needs must be given, and no HTML is made elsewhere."""

import ast
import re
from pathlib import Path

import pytest
from jinja2 import UndefinedError

import for_app
from for_app.views.presentation import build_html
from for_app.views.templates import render
from for_search.library.background_builds import BuildState

PACKAGE = Path(for_app.__file__).parent
HOSTILE = "<img src=x onerror=\"alert('1')\"> & {{ 7 * 7 }} {% raw %}"
AS_TEXT = "&lt;img src=x onerror=&#34;alert(&#39;1&#39;)&#34;&gt; &amp; {{ 7 * 7 }} {% raw %}"


def test_values_are_text() -> None:
    assert render("warning", line=HOSTILE) == AS_TEXT
    assert render("regions", picture="", told=HOSTILE) == f'<img src="" alt="{AS_TEXT}">'
    assert f'aria-label="{AS_TEXT}"' in render("histogram", width=1, height=1, bars=[], told=HOSTILE)


def test_a_value_that_is_missing_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="told"):
        render("regions", picture="")


def test_a_build_is_a_bar_and_a_line() -> None:
    assert build_html(BuildState()) == ""
    running = build_html(BuildState(running=True, done=3, total=1200, message="embedding"))
    assert '<progress max="1200" value="3"></progress>' in running
    assert "<p>embedding · 3 of 1,200 images</p>" in running
    assert '<progress max="1" value="0">' in build_html(BuildState(running=True, message="reading"))
    done = build_html(BuildState(message="<i>done", name="<b>mine"))
    assert done == "<p><b>&lt;b&gt;mine</b> · &lt;i&gt;done</p>"


def made_by_hand(source: str) -> list[int]:
    """The lines of a module that put values into HTML themselves, or escape them themselves."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            texts = [part.value for part in node.values if isinstance(part, ast.Constant)]
            if any(re.search(r"</?[a-z]", str(text)) for text in texts):
                lines.append(node.lineno)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [getattr(node, "module", None), *(alias.name for alias in node.names)]
            if "html" in names or "escape" in names:
                lines.append(node.lineno)
    return lines


def test_no_module_makes_html_by_hand() -> None:
    assert made_by_hand("import html\n\nf'<b>{name}</b>'\n'<p>nothing is put into this</p>'\nf'{1} < {2}'") == [1, 3]
    modules = sorted(PACKAGE.rglob("*.py"))
    assert len(modules) > 20
    assert {str(path): lines for path in modules if (lines := made_by_hand(path.read_text()))} == {}


def test_every_template_is_used_and_every_use_has_its_template() -> None:
    source = "".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    used = set(re.findall(r'\brender\(\s*"(\w+)"', source))
    assert used == {path.stem for path in (PACKAGE / "views" / "templates").iterdir()}
