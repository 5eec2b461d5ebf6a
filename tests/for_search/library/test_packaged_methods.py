"""What is kept of the packaged methods, and that the page's first answers need nothing more."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from for_model.errors import UsageError, WeightsError
from for_model.files import cache_dir
from for_model.methods.build import build_method
from for_model.methods.clip_method import ClipMethod
from for_model.methods.protocol import LazyMethod, Method
from for_model.methods.registry import built_in_methods
from for_model.text import embed_queries
from for_search.library.packaged_methods import packaged_method
from tests.helpers.patience import PATIENCE_S

TEXTS = ("kite", "a red kite over the sea")


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FOR_CACHE", str(tmp_path / "cache"))


def _never() -> Method:
    pytest.fail("loaded")


def _file() -> Path:
    (path,) = (cache_dir() / "methods").iterdir()
    return path


def test_loaded_once_and_then_described(method: ClipMethod) -> None:
    first, made = packaged_method("x", TEXTS, lambda: method)
    assert first.loaded
    again, kept = packaged_method("x", TEXTS, _never)
    assert not again.loaded
    assert again.info == method.info
    assert list(kept) == list(TEXTS)
    for text, row in zip(TEXTS, embed_queries(method, TEXTS).numpy(), strict=True):
        np.testing.assert_array_equal(made[text], row)
        np.testing.assert_array_equal(kept[text], row)


def test_other_texts_are_another_file(method: ClipMethod) -> None:
    packaged_method("x", TEXTS, lambda: method)
    assert packaged_method("x", TEXTS[:1], lambda: method)[0].loaded
    assert packaged_method("y", TEXTS, lambda: method)[0].loaded


def test_a_changed_package_is_read_anew(method: ClipMethod, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "for_model"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.setattr("for_model.__file__", str(package / "__init__.py"))
    packaged_method("x", TEXTS, lambda: method)
    assert not packaged_method("x", TEXTS, _never)[0].loaded
    (package / "__init__.py").write_text("changed = True")
    assert packaged_method("x", TEXTS, lambda: method)[0].loaded


@pytest.mark.parametrize("damage", ["cut", "info", "text", "short", "long", "nan"])
def test_a_damaged_file_is_made_again(method: ClipMethod, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    packaged_method("x", TEXTS, lambda: method)
    content = json.loads(_file().read_bytes())
    if damage == "info":
        content["method"].pop("dim")
    elif damage == "text":
        content["texts"].pop(TEXTS[0])
    elif damage == "short":
        content["texts"][TEXTS[0]].pop()
    elif damage == "long":
        content["texts"][TEXTS[0]][0] = 2.0
    elif damage == "nan":
        content["texts"][TEXTS[0]][0] = float("nan")
    _file().write_text("{" if damage == "cut" else json.dumps(content))
    assert packaged_method("x", TEXTS, lambda: method)[0].loaded
    assert "making it again" in caplog.text
    assert not packaged_method("x", TEXTS, _never)[0].loaded


def test_a_folder_that_cannot_be_written_costs_a_warning(method: ClipMethod, caplog: pytest.LogCaptureFixture) -> None:
    cache_dir().mkdir()
    (cache_dir() / "methods").write_text("")
    assert packaged_method("x", TEXTS, lambda: method)[0].loaded
    assert "can't be written" in caplog.text


def test_a_lazy_method_is_loaded_once_however_many_ask(method: ClipMethod) -> None:
    loads = []
    go_on = threading.Event()

    def load() -> Method:
        loads.append(go_on.wait(PATIENCE_S))
        return method

    lazy = LazyMethod(method.info, load)
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(lazy.get) for _ in range(4)]
        assert not lazy.loaded
        go_on.set()
        assert all(each.result() is method for each in waiting)
    assert loads == [True]


def test_loading_that_failed_is_tried_again(method: ClipMethod) -> None:
    answers: list[object] = [UsageError("not now"), method]

    def load() -> Method:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, ClipMethod)
        return answer

    lazy = LazyMethod(method.info, load)
    with pytest.raises(UsageError, match="not now"):
        lazy.get()
    assert lazy.get() is method


def test_another_method_than_described_is_refused(method: ClipMethod) -> None:
    lazy = LazyMethod(replace(method.info, n_embeddings=3), lambda: method)
    with pytest.raises(WeightsError, match="start again"):
        lazy.get()
    assert not lazy.loaded


def test_the_built_in_methods_have_as_many_embeddings_as_their_names_say() -> None:
    loaded = build_method("clip", device="cpu")
    assert isinstance(loaded, ClipMethod)
    for spec, n_embeddings in built_in_methods().items():
        assert build_method(spec, loaded=loaded.backbone).info.n_embeddings == n_embeddings
