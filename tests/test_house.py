"""The rules of the house that import-linter doesn't know: rooms that can be overlooked, no cycles, views that draw."""

import ast
from collections import Counter
from pathlib import Path

import pytest

from tests.helpers.imports import cycle, imported, modules, run_time_nodes
from tests.helpers.paths import REPOSITORY

PACKAGES = ("for_model", "for_search", "for_eval", "for_app")
MODULES = modules(REPOSITORY, ("app", *PACKAGES))
FOLDERS = sorted({path.parent for name, path in MODULES.items() if name != "app"})
MAX_MODULES = 12
VIEWS = sorted((REPOSITORY / "for_app" / "views").glob("*.py"))
# What asks for an answer, by the names of the methods of Searcher, SearchIndex, Library, Method and LabelService.
SEARCHES = {
    "search",
    "find",
    "text_query",
    "image_query",
    "like_query",
    "score_images",
    "encode_images",
    "encode_texts",
}


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {name: imported(path.read_text(encoding="utf-8"), MODULES) for name, path in MODULES.items()}
    assert sum(len(imports) for imports in graph.values()) > 300  # the graph is read, not empty
    assert cycle(graph) == []


def test_a_cycle_is_found_where_it_is_hidden_in_a_function() -> None:
    sources = {
        "top": "import low",
        "low": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import top\nelse:\n    import pack.one",
        "pack": "",
        "pack.one": "def late():\n    from pack import two",
        "pack.two": "class Late:\n    def call(self):\n        import low",
    }
    graph = {name: imported(source, sources) for name, source in sources.items()}
    assert graph == {"top": {"low"}, "low": {"pack.one"}, "pack": set(), "pack.one": {"pack.two"}, "pack.two": {"low"}}
    assert cycle(graph) == ["low", "pack.one", "pack.two"]
    assert cycle({**graph, "pack.two": {"pack"}}) == []


def test_no_folder_has_too_many_modules() -> None:
    counts = Counter(path.parent for path in MODULES.values() if path.stem not in ("__init__", "__main__"))
    assert {str(folder): count for folder, count in counts.items() if count > MAX_MODULES} == {}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(REPOSITORY)))
def test_a_room_says_what_lives_there_and_what_does_not(folder: Path) -> None:
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    sentences = [part for part in " ".join(text.split()).replace(". ", ".\n").splitlines() if len(part.split()) > 3]
    assert len(sentences) >= 2, text


def test_nothing_imports_the_page_but_the_page() -> None:
    of_the_page = {name for name in MODULES if name.split(".")[0] in ("app", "for_app")}
    for name in MODULES.keys() - of_the_page:
        assert not imported(MODULES[name].read_text(encoding="utf-8"), MODULES) & of_the_page, name
    assert "app" not in {found for path in MODULES.values() for found in imported(path.read_text("utf-8"), MODULES)}


def _runs_a_search(source: str) -> list[str]:
    """What in a view's source could run a search: functions taken from for_search, and calls of methods that ask.

    Methods of a constant, such as a compiled regular expression, are its own affair.
    """
    found = []
    for node in run_time_nodes(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "for_search":
            found += [f"imports {alias.name}" for alias in node.names if not alias.name[0].isupper()]
        elif isinstance(node, ast.Import):
            found += [f"imports {alias.name}" for alias in node.names if alias.name.split(".")[0] == "for_search"]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in SEARCHES:
            whose = ast.unparse(node.func.value)
            if whose != "re" and not whose.isupper():
                found.append(f"calls {whose}.{node.func.attr}")
    return found


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.stem)
def test_a_view_runs_no_search(view: Path) -> None:
    assert _runs_a_search(view.read_text(encoding="utf-8")) == []


def test_a_search_in_a_view_would_be_seen() -> None:
    source = """
import re
from typing import TYPE_CHECKING
from for_search.query.searcher import Searcher, load_searcher
if TYPE_CHECKING:
    from for_search.query.side_by_side import compare
def draw(searcher: Searcher) -> str:
    re.search("a", "b")
    _WORD.search("a")
    return str(searcher.find(searcher.text_query("a")))
"""
    assert sorted(_runs_a_search(source)) == [
        "calls searcher.find",
        "calls searcher.text_query",
        "imports load_searcher",
    ]
