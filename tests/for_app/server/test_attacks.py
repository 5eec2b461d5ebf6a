"""The attacks on the server that once worked, against a page that is served for real."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from urllib.parse import urlencode

import pytest

from for_app.server.users import Users
from tests.attack import junk_requests, slow_connections
from tests.helpers.patience import PATIENCE_S
from tests.helpers.serving import ask, call, upload
from tests.helpers.small_page import small_page

pytestmark = [pytest.mark.slow, pytest.mark.gradio]


@pytest.fixture(scope="module")
def guarded() -> Iterator[str]:
    """A page that asks for a login."""
    with small_page(Users.only("ann", "secret")) as url:
        yield url


def _login(url: str, password: str, **headers: str) -> tuple[int, list[str], dict[str, str]]:
    """The status, the cookies and all other headers of a login."""
    form = urlencode({"username": "ann", "password": password}).encode()
    try:
        with urllib.request.urlopen(
            urllib.request.Request(f"{url}login", form, headers), timeout=PATIENCE_S
        ) as response:
            return response.status, response.headers.get_all("set-cookie"), dict(response.headers)
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, [], dict(refused.headers)


def test_a_login_is_for_this_server_alone(guarded: str) -> None:
    assert _login(guarded, "secret", Host="abc.gradio.live")[0] == 421
    assert _login(guarded, "secret", Origin="http://evil.com")[0] == 403
    own = {"Origin": guarded.rstrip("/")}
    status, cookies, headers = _login(guarded, "secret", **own)
    assert status == 200
    assert not any(name.lower().startswith("access-control") for name in headers)
    assert len(cookies) == 2
    assert all(cookie.endswith("SameSite=Lax") for cookie in cookies)
    foreign = urllib.request.Request(guarded, headers={"Origin": "http://evil.com"})
    with urllib.request.urlopen(foreign, timeout=PATIENCE_S) as response:
        assert not any(name.lower().startswith("access-control") for name in response.headers)
    body = json.dumps({"session_hash": "s", "fn_index": 0, "event_id": "e"}).encode()
    cookie = "; ".join(each.partition(";")[0] for each in cookies)
    for path in ("/gradio_api/cancel", "/gradio_api/reset"):
        assert ask(guarded, path, body)[0] == 401
        assert ask(guarded, path, body, {"cookie": cookie, "content-type": "application/json"})[0] == 200
    assert ask(guarded, "/config", headers={"cookie": cookie})[0] == 200
    assert ask(guarded, "/")[0] == 200  # asks for the login


def test_guesses_are_few(guarded: str) -> None:
    statuses = [_login(guarded, f"guess {n}")[0] for n in range(30)]
    assert statuses[:5] == [400] * 5
    assert 429 in statuses
    assert statuses.count(400) < 10


def test_what_makes_sense_is_answered_and_junk_is_a_line() -> None:
    with small_page() as url:
        assert call(url, "search", ["dog", 3, None])[0] == "complete"
        status, sent = upload(url, "a.txt", b"hello")
        assert status == 200
        event, said = call(url, "search_image", [{"path": json.loads(sent)[0]}, 0.5])
        assert (event, said) == ("complete", {"weight": 0.5})
    assert junk_requests.run(120, seed=3).endswith(" 0 traces")


def test_slow_connections_end() -> None:
    assert "0 left" in slow_connections.run(60, headers_s=0.5)
