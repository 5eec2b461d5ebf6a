"""open_clip comes from one place. What comes along with it: tests/test_start.py."""

import ast
import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import pytest

from for_model import open_clip_import
from for_model.open_clip_import import _AskedLater, import_open_clip
from tests.helpers.imports import modules
from tests.helpers.paths import REPOSITORY


def test_nothing_else_imports_it() -> None:
    importing = set()
    for name, path in modules(REPOSITORY, ("app", "for_model", "for_search", "for_eval", "for_app")).items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            imported += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(each.split(".")[0] == "open_clip" for each in imported):
                importing.add(name)
    assert importing == {"for_model.open_clip_import"}


def test_the_question_to_the_compiler_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = ModuleType("torch._dynamo.utils")
    compiler.is_compile_supported = lambda device_type: f"asked about {device_type}"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, compiler.__name__, compiler)
    assert _AskedLater("stand-in").is_compile_supported("cpu") == "asked about cpu"


def test_what_stood_in_is_gone_afterwards() -> None:
    assert import_open_clip() is sys.modules["open_clip"]
    assert not isinstance(sys.modules.get("torch._dynamo.utils"), _AskedLater)
    import timm  # both can be imported where they are installed

    assert timm.__name__ == "timm"


def test_threads_that_import_it_at_once_wait_for_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    import_open_clip()
    monkeypatch.delitem(sys.modules, "open_clip")  # its parts stay, so that importing it again is quick
    entered: list[Mapping[str, ModuleType | None]] = []

    @contextlib.contextmanager
    def standing_in(modules: Mapping[str, ModuleType | None]) -> Iterator[None]:
        entered.append(modules)
        time.sleep(0.02)
        yield

    monkeypatch.setattr(open_clip_import, "_standing_in", standing_in)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: import_open_clip(), range(4)))
    assert all(each is found[0] for each in found)
    assert len(entered) == 2  # one thread's, once around torchvision and once around open_clip
