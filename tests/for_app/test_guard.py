"""What a visitor reads of an error, and what the log keeps."""

import logging

import gradio as gr
import pytest

from for_app.guard import api_endpoint, page_event
from for_model.errors import UsageError
from for_model.files import cache_dir
from for_search.library.library import Library


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(gr, "Warning", lines.append)
    return lines


def fail(message: str = "") -> None:
    if message:
        raise UsageError(message)
    raise ZeroDivisionError("secret detail")


def test_an_error_on_the_page_is_one_line_and_changes_nothing(warned: list[str]) -> None:
    assert page_event(Library(), fail)("<b>no\nsuch thing</b>") == gr.skip()
    assert warned == ["&lt;b&gt;no such thing&lt;/b&gt;"]


def test_what_nobody_foresaw_is_logged_and_not_told(warned: list[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        assert page_event(Library(), fail)() == gr.skip()
        with pytest.raises(gr.Error, match="something went wrong"):
            api_endpoint(Library(), fail)()
    assert len(warned) == 1
    assert "secret detail" not in warned[0]
    assert caplog.text.count("ZeroDivisionError: secret detail") == 2


def test_no_path_of_this_machine_is_told() -> None:
    with pytest.raises(gr.Error) as error:
        api_endpoint(Library(), fail)(f"{cache_dir()}/indexes/x is damaged")
    assert error.value.message == "…/indexes/x is damaged"


def test_what_works_comes_through() -> None:
    assert page_event(Library(), lambda x: x + 1)(2) == 3
    assert api_endpoint(Library(), lambda x: x + 1)(2) == 3
