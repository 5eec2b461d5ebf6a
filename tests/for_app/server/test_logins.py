"""Nothing without a login, no cookie for other sites, and few guesses."""

from types import SimpleNamespace

import pytest

from for_app.server import logins
from for_app.server.logins import Logins, Throttle
from tests.helpers.asgi import Welcoming, request

SERVED = SimpleNamespace(cookie_id="x", tokens={"token-of-ann": "ann"})


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/cancel",
        "/gradio_api/reset",
        "/gradio_api/queue/join",
        "/gradio_api/upload",
        "/gradio_api/heartbeat/x",
        "/gradio_api/anything/new",
        "/config",
        "/for/search",
        "/for/static/../search",
        "/monitoring/x",
        "/loginx",
    ],
)
def test_nothing_is_answered_before_a_login(path: str) -> None:
    for method in ("GET", "POST"):
        if ".." in path:
            continue
        inside = Welcoming()
        door = Logins(inside, SERVED)
        assert (request(door, method, path).status, inside.reached) == (401, [])
        for cookie in ("access-token-x=wrong", "access-token-y=token-of-ann", "other=token-of-ann", "=;;"):
            assert request(door, method, path, {"cookie": cookie}).status == 401
        for name in ("access-token-x", "access-token-unsecure-x"):
            assert request(door, method, path, {"cookie": f"a=b; {name}=token-of-ann"}).status == 200


@pytest.mark.parametrize("path", ["/", "/login", "/theme.css", "/assets/a.js", "/for/static/a.js", "/gradio_api/user"])
def test_the_login_page_is(path: str) -> None:
    assert request(Logins(Welcoming(), SERVED), "GET", path).status == 200


def test_its_cookies_are_for_its_own_site() -> None:
    cookies = [
        (b"set-cookie", b"access-token-x=t; HttpOnly; Path=/; SameSite=none; Secure"),
        (b"Set-Cookie", b"b=t; samesite=lax"),
        (b"content-type", b"text/plain"),
    ]
    heard = request(Logins(Welcoming(headers=cookies), SERVED), "POST", "/login")
    assert heard.headers == [
        (b"set-cookie", b"access-token-x=t; HttpOnly; Path=/; Secure; SameSite=Lax"),
        (b"Set-Cookie", b"b=t; SameSite=Lax"),
        (b"content-type", b"text/plain"),
    ]


def test_wrong_passwords_take_longer_and_longer() -> None:
    clock = Clock()
    door = Logins(Welcoming(400), SERVED, Throttle(clock))
    tried = [request(door, "POST", "/login").status for _ in range(300)]
    assert tried == [400] * 5 + [429] * 295
    assert b"try again in 1 seconds" in request(door, "POST", "/login").body
    guesses = 0
    for _ in range(3600):
        clock.now += 1
        guesses += request(door, "POST", "/login").status == 400
    assert 60 <= guesses <= 70  # in an hour
    assert request(door, "POST", "/login", client="192.0.2.2").status == 400  # another address waits for nobody


def test_a_right_password_is_no_failure_and_ends_the_waiting() -> None:
    door = Logins(Welcoming(200), SERVED, Throttle(Clock()))
    assert {request(door, "POST", "/login").status for _ in range(100)} == {200}


def test_all_addresses_together_have_a_limit_but_who_has_logged_in_before() -> None:
    clock = Clock()
    throttle = Throttle(clock)
    assert throttle.attempt("2001:db8::1") == 0
    throttle.succeeded("2001:db8::1")
    waits = [throttle.attempt(f"10.0.{n // 250}.{n % 250}") for n in range(500)]
    assert sum(wait == 0 for wait in waits) == logins.MAX_FAILURES_A_MINUTE
    assert throttle.attempt("2001:db8::2") == 0  # of the same network
    clock.now += 61
    assert throttle.attempt("10.9.9.9") == 0


def test_addresses_are_forgotten_and_networks_count_as_one() -> None:
    clock = Clock()
    throttle = Throttle(clock)
    for n in range(3000):
        clock.now += 60
        throttle.attempt(f"10.{n // 60000}.{n // 250 % 250}.{n % 250}")
    assert len(throttle._failures) == 1000
    clock.now += 60
    assert [throttle.attempt(f"2001:db8::{n}") > 0 for n in range(7)] == [False] * 5 + [True] * 2
