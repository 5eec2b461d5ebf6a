"""What Gradio can't make sense of: one line to whoever sent it, one line in the log, and no trace."""

import logging
import traceback

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from for_app.gate import refuse

_log = logging.getLogger(__name__)


class OneLineErrors:
    """ASGI middleware around an application that raises for requests that it didn't expect.

    FOR's own routes and events catch what goes wrong in them, and log its trace; what arrives here comes from reading
    the request itself. The trace is logged at level DEBUG.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        held: list[Message] = []
        started = False

        async def holding(message: Message) -> None:
            """Keep back the answer that Starlette sends before it raises."""
            nonlocal started
            if held or (message["type"] == "http.response.start" and message["status"] == 500):
                held.append(message)
                return
            started = True
            await send(message)

        try:
            await self._app(scope, receive, holding)
        except Exception as error:
            _log.warning("a request was not understood (%s): %s", where_raised(error), shown(scope["path"]))
            _log.debug("its trace", exc_info=error)
            if not started:
                await refuse(send, 400, "this request makes no sense here")
            return
        for message in held:
            if message["type"] == "http.response.start" and scope["path"].startswith("/gradio_api/"):
                message = {**message, "status": 400}  # Gradio's 500 for data of a visitor that an event can't take
            await send(message)


def where_raised(error: BaseException) -> str:
    """The kind of an error, and the line that it comes from."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" in {frames[-1].filename.rpartition('site-packages/')[2]}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"


def shown(path: str) -> str:
    """A visitor's text as one short line of a log."""
    return ascii(path[:100])
