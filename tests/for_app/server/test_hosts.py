"""DNS rebinding, and pages of other sites that ask for changes."""

import pytest

from for_app.server.hosts import Hosts, host_name
from tests.helpers.asgi import Welcoming, request


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:7860", "localhost.", "127.0.0.1:7860", "127.0.0.2", "[::1]:7860", "10.1.2.3:80"]
)
def test_loopback_names_and_its_own_are_answered(host: str) -> None:
    assert request(Hosts(Welcoming(), "10.1.2.3"), headers={"host": host}).status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.com", "evil.com:7860", "localhost.evil.com", "abc.gradio.live", "192.0.2.9", "", "a@localhost", "[::"],
)
def test_other_names_are_not(host: str) -> None:
    inside = Welcoming()
    heard = request(Hosts(inside, "127.0.0.1"), headers={"host": host})
    assert (heard.status, inside.reached) == (421, [])
    assert b"--allow-host" in heard.body
    assert b"\n" not in heard.body


def test_a_request_has_one_host() -> None:
    hosts = Hosts(Welcoming(), "127.0.0.1")
    assert request(hosts).status == 421
    assert request(hosts, headers=[("host", "localhost"), ("host", "evil.com")]).status == 421


def test_a_wildcard_lets_addresses_in_but_no_names() -> None:
    hosts = Hosts(Welcoming(), "0.0.0.0", ["Photos.example.org"])
    for host, status in (("192.168.1.5:7860", 200), ("[fe80::1]", 200), ("photos.example.org", 200), ("evil.com", 421)):
        assert request(hosts, headers={"host": host}).status == status
    assert request(hosts, headers={"host": "abc.gradio.live"}).status == 421
    hosts.add("abc.gradio.live")
    assert request(hosts, headers={"host": "abc.gradio.live"}).status == 200


@pytest.mark.parametrize(
    ("origin", "site", "status"),
    [
        (None, None, 200),  # a program
        ("http://localhost:7860", "same-origin", 200),
        ("http://LOCALHOST:7860", None, 200),
        ("https://photos.example.org", "same-origin", 200),  # a reverse proxy that changes the Host
        ("http://localhost:3000", "same-site", 403),
        ("http://localhost:3000", None, 403),
        ("http://evil.com", "cross-site", 403),
        ("null", None, 403),
        (None, "cross-site", 403),
        ("file://localhost:7860", None, 403),
    ],
)
def test_changes_are_for_its_own_pages(origin: str | None, site: str | None, status: int) -> None:
    hosts = Hosts(Welcoming(), "127.0.0.1", ["photos.example.org"])
    sent = {"host": "localhost:7860", "origin": origin, "sec-fetch-site": site}
    headers = {key: value for key, value in sent.items() if value is not None}
    assert request(hosts, "POST", "/gradio_api/queue/join", headers).status == status
    assert request(hosts, "GET", "/logout", headers).status == status
    assert request(hosts, "GET", "/", headers).status == 200


def test_what_is_inside_hears_of_no_origin_and_so_allows_none() -> None:
    inside = Welcoming()
    request(Hosts(inside, "127.0.0.1"), headers={"host": "localhost", "origin": "http://evil.com", "accept": "*/*"})
    assert [key for key, _ in inside.reached[0]["headers"]] == [b"host", b"accept"]


def test_what_a_proxy_says_is_passed_on_only_where_it_is_known() -> None:
    inside = Welcoming()
    hosts = Hosts(inside, "127.0.0.1", ["photos.example.org"])
    for host, proto in (("photos.example.org", "https"), ("evil.com", "javascript"), ("\xff[", "http,,")):
        request(hosts, headers={"host": "localhost", "x-forwarded-host": host, "x-forwarded-proto": proto})
    kept = [dict(scope["headers"]) for scope in inside.reached]
    own = {b"host": b"localhost"}
    assert kept == [{**own, b"x-forwarded-host": b"photos.example.org", b"x-forwarded-proto": b"https"}, own, own]


def test_names_of_hosts() -> None:
    assert host_name("A.b:1") == "a.b"
    assert host_name("[2001:db8::1]:80") == "2001:db8::1"
    for wrong in ("a b", "a/b", "a:b", "a:65536", "", "é.com", "a\n"):
        assert host_name(wrong) is None
