"""Under which names this server answers, and whose pages may ask it for changes.

A page of another site can have its own name lead to this machine (DNS rebinding), and its browser then takes this
server for that site. The name it asked for still stands in the header `Host`, by which it is told here.
"""

import ipaddress
import re
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from for_app.gate import refuse

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{0,5})?", re.IGNORECASE)
_SAFE = ("GET", "HEAD", "OPTIONS")
_CHANGES = re.compile(r"/logout/?|.*/deep_link/?")  # by GET all the same
_WILDCARDS = ("", "0.0.0.0", "::")


class Hosts:
    """ASGI middleware that answers to names it knows, and takes changes from its own pages only.

    host: what the server listens on. A wildcard lets in every name that is an address, since no page of another site
        can have one of those lead elsewhere.
    more: further names, as of a reverse proxy.
    """

    def __init__(self, app: ASGIApp, host: str, more: Iterable[str] = ()) -> None:
        self._app = app
        self._any_address = host in _WILDCARDS
        self._names = {"localhost", host.lower(), *(name.lower() for name in more)}
        self._elsewhere = {name.lower() for name in more}  # whose pages may come by another name than the Host's

    def add(self, name: str) -> None:
        """Answer to one more name."""
        self._names.add(name.lower())
        self._elsewhere.add(name.lower())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})  # nothing here talks by one
        elif not self._known(name := host_name(hosts[0]) if len(hosts := _all(scope, b"host")) == 1 else None):
            shown = f"the name {name}" if name else "a request without one sound name in its header Host"
            await refuse(send, 421, f"this server does not answer to {shown}: --allow-host NAME lets it")
        elif self._changes(scope) and not self._from_own_page(scope, hosts[0]):
            await refuse(
                send, 403, "only this server's own pages may ask it for that; --allow-host NAME adds those of a proxy"
            )
        else:
            # Whoever may read the answers asks from the same origin, so that Gradio need never allow another one.
            headers = [(key, value) for key, value in scope["headers"] if key != b"origin" and self._sound(key, value)]
            await self._app({**scope, "headers": headers}, receive, send)

    def _known(self, name: str | None) -> bool:
        if name is None:
            return False
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return name in self._names
        return self._any_address or address.is_loopback or name in self._names

    def _sound(self, key: bytes, value: bytes) -> bool:
        """Whether a header may go on: Gradio makes addresses of what a proxy, or anybody, says that this server is."""
        if key == b"x-forwarded-host":
            return self._known(host_name(value.decode("latin-1")))
        return key != b"x-forwarded-proto" or value in (b"http", b"https")

    @staticmethod
    def _changes(scope: Scope) -> bool:
        return scope["method"] not in _SAFE or bool(_CHANGES.fullmatch(scope["path"]))

    def _from_own_page(self, scope: Scope, host: str) -> bool:
        """Whether no browser says that another site's page asks; programs send neither header."""
        if any(site not in ("same-origin", "none") for site in _all(scope, b"sec-fetch-site")):
            return False
        return all(self._own(origin, host) for origin in _all(scope, b"origin"))

    def _own(self, origin: str, host: str) -> bool:
        scheme, _, place = origin.lower().partition("://")
        return scheme in ("http", "https") and (
            _without_default_port(place) == _without_default_port(host.lower()) or host_name(place) in self._elsewhere
        )


def host_name(host: str) -> str | None:
    """The name in a header Host: without port and brackets, in small letters. None for what is none."""
    match = _HOST.fullmatch(host)
    sound = match and int((match[2] or ":")[1:] or 0) <= 65535
    return match[1].strip("[]").removesuffix(".").lower() if match and sound else None


def _without_default_port(host: str) -> str:
    return re.sub(r":(80|443)?$", "", host)


def _all(scope: Scope, header: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == header]
