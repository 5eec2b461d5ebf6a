"""Serving the page: Gradio's server behind the gate, at an address that is checked first."""

import contextlib
import socket
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from for_model.errors import UsageError

if TYPE_CHECKING:
    from for_app.page import ServedBlocks
    from for_app.server.users import Users


def serve(
    app: "ServedBlocks",
    host: str = "127.0.0.1",
    port: int = 7860,
    share: bool = False,
    auth: "Users | None" = None,
    names: Sequence[str] = (),
) -> str:
    """Start the server in the background. Returns the page's address; `app.close()` ends it.

    share: also make a public link through gradio's servers, and print it.
    auth: who may log in; everybody may see the page without.
    names: what else the server is called than `host`, as by a reverse proxy.
    Raises UsageError when the address can't be had.
    """
    from for_app.gate import Gate
    from for_app.server.connections import MAX_CONNECTIONS, TimedProtocol
    from for_app.server.first_script import add_first_script
    from for_app.server.hosts import Hosts
    from for_app.server.junk import OneLineErrors
    from for_app.server.logins import Logins
    from for_app.server.quota import UploadQuota
    from for_app.style import HEAD, theme
    from for_app.uploads import MAX_UPLOAD
    from for_app.views.templates import render

    check_address(host, port)
    hosts: list[Hosts] = []
    add_first_script(render("first_script"))

    @contextlib.asynccontextmanager
    async def guarded(served: Any) -> AsyncIterator[None]:
        """Before the server listens, put around all of Gradio, its own middleware too, what requests must pass."""
        inner = Gate(UploadQuota(OneLineErrors(served.middleware_stack), app.upload_file_set))
        hosts.append(Hosts(Logins(inner, served) if auth else inner, host, names))
        served.middleware_stack = hosts[0]
        yield

    try:
        _, url, shared = app.launch(
            server_name=host,
            server_port=port,
            share=share,
            auth=auth.admits if auth else None,  # type: ignore[arg-type]  # may be a coroutine function
            prevent_thread_lock=True,
            quiet=True,
            theme=theme(),
            head=HEAD,
            footer_links=["api"],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            max_file_size=MAX_UPLOAD,
            app_kwargs={"lifespan": guarded, "routes": app.plain_routes},
            state_session_capacity=1000,  # visitors remembered at once; whoever invents sessions can't fill the memory
        )
    except OSError as error:
        raise UsageError(f"can't serve on {host} port {port} ({error}): choose another with --port") from error
    if share and not shared:
        raise UsageError("no public link could be made, is there an internet connection? Leave --share out")
    if shared:
        hosts[0].add(str(urlsplit(shared).hostname))
    config = app.server.config  # looked at anew for every connection
    config.http_protocol_class, config.limit_concurrency = TimedProtocol, MAX_CONNECTIONS
    return url


def check_address(host: str, port: int) -> None:
    """Raise UsageError when no server can listen there: cheaper to find out before an index is made or opened."""
    if not 1 <= port <= 65535:
        raise UsageError(f"--port {port}: expected 1 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise UsageError(
            f"can't serve on {host} port {port} ({error.strerror or error}): choose another with --port or --host"
        ) from error
