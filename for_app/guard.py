"""What becomes of an error: the visitor sees one line, the log keeps the trace, the other visitors see nothing."""

import functools
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import gradio as gr

from for_app.server.junk import where_raised
from for_app.views.templates import render
from for_model.errors import ForError
from for_search.library.library import Library
from for_search.query import searcher as search

_UNEXPECTED = "something went wrong here, and is in the server's log; try again, or ask for something else"

_NO_SENSE = "this request makes no sense here"

_log = logging.getLogger(__name__)
Function = TypeVar("Function", bound=Callable[..., Any])


class GuardedBlocks(gr.Blocks):
    """A page that prints no trace for data that its events can't take: the functions themselves log theirs."""

    async def process_api(self, *arguments: Any, **named: Any) -> dict[str, Any]:
        try:
            return await super().process_api(*arguments, **named)
        except gr.Error as error:
            error.print_exception = False
            raise
        except Exception as error:
            _log.warning("an event was not understood (%s)", where_raised(error))
            _log.debug("its trace", exc_info=error)
            raise gr.Error(_NO_SENSE, print_exception=False) from error


def page_event(library: Library, function: Function) -> Function:
    """`function` for an event of the page: an error becomes a warning of one line, and what is shown stays."""

    @functools.wraps(function)
    def guarded(*arguments: Any, **named: Any) -> Any:
        try:
            return function(*arguments, **named)
        except Exception as error:
            gr.Warning(render("warning", line=visitors_line(library, error)))
            return gr.skip()

    return guarded  # type: ignore[return-value]


def api_endpoint(library: Library, function: Function) -> Function:
    """`function` for programs: an error becomes one line, which `gradio_client` raises."""

    @functools.wraps(function)
    def guarded(*arguments: Any, **named: Any) -> Any:
        try:
            return function(*arguments, **named)
        except Exception as error:
            raise gr.Error(visitors_line(library, error), print_exception=False) from error

    return guarded  # type: ignore[return-value]


def visitors_line(library: Library, error: Exception) -> str:
    """What a visitor may read of an error, without paths of this machine; one that wasn't foreseen is logged."""
    if not isinstance(error, ForError):
        _log.error("unexpected error in a request", exc_info=error)
        return _UNEXPECTED
    return without_private_paths(library, " ".join(str(error).split()))


def without_private_paths(library: Library, line: str) -> str:
    """A line without the paths of this machine."""
    return search.without_paths(line, library.private_paths())
