"""What is answered before a login, and how often a password may be guessed."""

import collections
import ipaddress
import re
import time
from collections.abc import Callable, Collection, Mapping
from http.cookies import CookieError, SimpleCookie
from typing import Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from for_app.gate import refuse

FREE_FAILURES = 5  # of an address, before it waits: 1 s, 2 s, 4 s, ...
MAX_WAIT_S = 60.0
MAX_FAILURES_A_MINUTE = 60  # of all addresses together
_REMEMBERED = 1000  # addresses

# The page that asks for a name and a password, and what it is made of.
_OPEN = re.compile(
    r"/|/(login|logout|theme\.css|robots\.txt|favicon\.ico|manifest\.json|pwa_icon(/\d+)?)/?"
    r"|/(static|assets|svelte|for/static)/.*"
    r"|/gradio_api/(login_check|user|token|app_id|startup-events|theme\.css)/?"
)
_SAMESITE = re.compile(rb";\s*samesite=\w+", re.IGNORECASE)


class Served(Protocol):
    """What is asked of Gradio's application."""

    cookie_id: str
    tokens: Mapping[str, str]


class Throttle:
    """Slows down who fails: each address by itself, and all of them together.

    An address that has logged in before isn't slowed down by what others do. Attempts count as failures until they are
    found to be none, so that a thousand at the same time are no way around it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: collections.OrderedDict[str, tuple[int, float]] = collections.OrderedDict()
        self._trusted: collections.OrderedDict[str, None] = collections.OrderedDict()
        self._lately: collections.deque[float] = collections.deque(maxlen=MAX_FAILURES_A_MINUTE)

    def attempt(self, address: str) -> float:
        """Seconds until this address may try again; 0 if it may now, which then counts as a failure."""
        now, source = self._clock(), _source(address)
        failures, until = self._failures.get(source, (0, 0.0))
        if now < until:
            return until - now
        full = len(self._lately) == MAX_FAILURES_A_MINUTE and source not in self._trusted
        if full and now < self._lately[0] + 60:
            return self._lately[0] + 60 - now
        self._lately.append(now)
        failures += 1
        wait_s = min(2.0 ** min(failures - FREE_FAILURES, 30), MAX_WAIT_S) if failures >= FREE_FAILURES else 0.0
        _remember(self._failures, source, (failures, now + wait_s))
        return 0.0

    def succeeded(self, address: str) -> None:
        """The last attempt of this address was none of those."""
        source = _source(address)
        self._failures.pop(source, None)
        if self._lately:
            self._lately.pop()
        _remember(self._trusted, source, None)


class Logins:
    """ASGI middleware: nothing but the login page without a login, and few guesses.

    served: Gradio's application, which knows who has logged in.
    """

    def __init__(self, app: ASGIApp, served: Served, throttle: Throttle | None = None) -> None:
        self._app, self._served = app, served
        self._throttle = throttle or Throttle()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or admitted(scope, self._served.cookie_id, self._served.tokens):
            await self._app(scope, receive, send)
        elif not _OPEN.fullmatch(scope["path"]):
            await refuse(send, 401, "log in first")
        elif scope["method"] == "POST":
            await self._login(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _login(self, scope: Scope, receive: Receive, send: Send) -> None:
        address = scope["client"][0] if scope.get("client") else ""
        if wait_s := self._throttle.attempt(address):
            await refuse(send, 429, f"too many wrong passwords: try again in {wait_s:.0f} seconds")
            return

        async def noticing(message: Message) -> None:
            if message["type"] == "http.response.start":
                if message["status"] == 200:
                    self._throttle.succeeded(address)
                message = {**message, "headers": [_own_site_only(header) for header in message["headers"]]}
            await send(message)

        await self._app(scope, receive, noticing)


def admitted(scope: Scope, cookie_id: str, tokens: Collection[str]) -> bool:
    """Whether a request has one of the cookies that Gradio gives to those who have logged in."""
    names = (f"access-token-{cookie_id}", f"access-token-unsecure-{cookie_id}")
    for key, value in scope["headers"]:
        if key == b"cookie":
            try:
                cookies = SimpleCookie(value.decode("latin-1"))
            except CookieError:
                continue
            if any(name in cookies and cookies[name].value in tokens for name in names):
                return True
    return False


def _own_site_only(header: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    """A cookie that other sites' pages can't have sent; any other header as it is."""
    key, value = header
    if key.lower() != b"set-cookie":
        return header
    return key, _SAMESITE.sub(b"", value) + b"; SameSite=Lax"


def _source(address: str) -> str:
    """Who stands behind an address: of IPv6, where anybody has 2**64 of them, the network."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(ipaddress.ip_network((parsed, 64), strict=False)) if parsed.version == 6 else address


def _remember(places: "collections.OrderedDict", source: str, value: object) -> None:
    """The last that were told, and no more of them."""
    places[source] = value
    places.move_to_end(source)
    while len(places) > _REMEMBERED:
        places.popitem(last=False)
