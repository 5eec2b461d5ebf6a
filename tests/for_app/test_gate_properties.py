"""The gate on whatever bodies hypothesis thinks of: it refuses what names a file elsewhere, and passes on the rest."""

import asyncio
import itertools
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from for_app.gate import Gate

ADDRESSES = st.builds(
    "".join,
    st.tuples(
        st.sampled_from(["", " ", "\n\t"]),
        st.sampled_from(["http", "HTTPS", "ftp", "file", "git+ssh", "s3"]),
        st.sampled_from([":/", "://"]),
        st.text(max_size=5),
    ),
)
PATHS = st.sampled_from(["/tmp/gradio/x.png", "C:\\x.png", "a b", "", "http", "x/http:/y", "1http://x"])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | ADDRESSES
KEYS = st.sampled_from(["path", "data", "Path", "url"]) | st.text(max_size=3)
BODIES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(KEYS, inner, max_size=3)
        | st.fixed_dictionaries({"path": ADDRESSES | PATHS | inner})
    ),
    max_leaves=8,
)


def _passed_on(parts: list[bytes]) -> tuple[int, bytes | None]:
    """The status of a POST that comes in parts, and the body that the application was given, None for none."""
    reached: list[bytes] = []
    waiting = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    waiting.append({"type": "http.request", "body": b"", "more_body": False})
    sent: list[Any] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        reached.append((await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> Any:
        return waiting.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Gate(application)({"type": "http", "method": "POST", "path": "/run", "headers": []}, receive, send))
    return sent[0]["status"], reached[0] if reached else None


def _in_parts(body: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(body), *(cut % (len(body) + 1) for cut in cuts)})
    return [body[start:end] for start, end in itertools.pairwise(places)]


def _names_an_address(value: Any) -> bool:
    """Whether a text under a key `path`, anywhere, begins with letters, a colon and a slash, spaces aside."""
    if isinstance(value, list):
        return any(map(_names_an_address, value))
    if not isinstance(value, dict):
        return False
    path = value.get("path")
    scheme, colon, rest = path.partition(":") if isinstance(path, str) else ("", "", "")
    scheme = scheme.lstrip()
    letters = scheme[:1].isascii() and scheme[:1].isalpha()
    fits = letters and len(scheme) > 1 and all(c.isascii() and (c.isalnum() or c in "+.-") for c in scheme)
    return bool(fits and colon and rest.startswith("/")) or any(map(_names_an_address, value.values()))


@given(BODIES, st.lists(st.integers(0, 10_000), max_size=3), st.booleans())
def test_a_body_is_refused_for_an_address_and_else_passed_on_unchanged(
    value: Any, cuts: list[int], escaped: bool
) -> None:
    body = json.dumps(value, ensure_ascii=escaped).encode("utf-8", "surrogatepass")
    try:
        json.loads(body)
    except ValueError:  # half a surrogate pair, which isn't UTF-8: no JSON to Gradio either
        return
    expected = (400, None) if _names_an_address(value) else (200, body)
    assert _passed_on(_in_parts(body, cuts)) == expected


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=3))
def test_what_is_no_json_passes_as_it_is(body: bytes, cuts: list[int]) -> None:
    status, passed = _passed_on(_in_parts(body, cuts))
    assert (status, passed) == (200, body)
