"""What an application can't make sense of is a line, to the visitor and in the log."""

import logging
from typing import Any

import pytest

from for_app.server.junk import OneLineErrors
from tests.helpers.asgi import Welcoming, request


async def _raises(scope: Any, receive: Any, send: Any) -> None:
    """As Starlette does: answer 500, then raise."""
    await Welcoming(500)(scope, receive, send)
    raise KeyError("junk")


def test_an_error_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        heard = request(OneLineErrors(_raises), "POST", "/gradio_api/x\nforged")
    assert (heard.status, heard.body) == (400, b'{"detail": "this request makes no sense here"}')
    (record,) = caplog.records
    assert record.exc_info is None
    assert "\n" not in record.getMessage()
    assert "KeyError" in record.getMessage()
    assert "test_junk.py" in record.getMessage()


def test_answers_pass_and_an_error_of_our_own_stays_one() -> None:
    assert request(OneLineErrors(Welcoming(404))).status == 404
    heard = request(OneLineErrors(Welcoming(500)), path="/for/search")
    assert (heard.status, heard.body) == (500, b"welcome")
    assert request(OneLineErrors(Welcoming(500)), path="/gradio_api/run/search").status == 400
