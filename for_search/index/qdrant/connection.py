"""Where a Qdrant server listens, who may ask it, and what went wrong, each in one line.

The key is never written down: it comes from the environment variable QDRANT_API_KEY. An index may come from somewhere
else, with the address of somebody's server in it, so the key is sent only to the server that the user has named: with
--url, or in QDRANT_URL, which also stands in place of an index's own address.
"""

import contextlib
import os
import warnings
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from for_model.errors import StoreError, UsageError

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

KEY_VARIABLE = "QDRANT_API_KEY"
URL_VARIABLE = "QDRANT_URL"
_TIMEOUT_S = 120  # an exact scan of a full shard takes seconds
_DEFAULT_PORT = 6333
_named: set[str] = set()  # by `name_server`


def check_url(url: str) -> str:
    """The address of a server, as it is written into an index.

    Raises UsageError for what is no address, and for one with a user or key in it: others may read the index.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"{url!r} is no server's address: expected one such as http://localhost:{_DEFAULT_PORT}")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise UsageError(f"the server's address holds more than host, port and path: put its key into {KEY_VARIABLE}")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}:{port or _DEFAULT_PORT}{parts.path.rstrip('/')}"


def name_server(url: str) -> None:
    """The user has named this server: from now on this process tells it the key, and asks it under this address."""
    _named.add(url)


def connect(url: str) -> "QdrantClient":
    """A client of the server at `url`, or of the one that QDRANT_URL names in its place; it asks nothing yet.

    Raises UsageError when the client isn't installed, or QDRANT_URL holds no address.
    """
    instead = os.environ.get(URL_VARIABLE, "").strip()
    if url not in _named and not instead:
        return _client(url, None)
    key = os.environ.get(KEY_VARIABLE, "").strip() or None
    return _client(url if url in _named else check_url(instead), key)


@lru_cache(maxsize=16)
def _client(url: str, key: str | None) -> "QdrantClient":
    try:
        from qdrant_client import QdrantClient
    except ImportError as error:
        raise UsageError(
            "the engine qdrant needs the package qdrant-client: make install-cluster, or pip install -r "
            "requirements-cluster.txt"
        ) from error
    with warnings.catch_warnings():
        # It warns of a key that goes over http, as within a private network it may.
        warnings.simplefilter("ignore")
        return QdrantClient(url=url, api_key=key, timeout=_TIMEOUT_S, check_compatibility=False)


@contextlib.contextmanager
def asking(url: str, collection: str) -> Iterator[None]:
    """Turn whatever goes wrong with a server into StoreError, one line that says what to do."""
    from qdrant_client.http.exceptions import ApiException, UnexpectedResponse

    try:
        yield
    except UnexpectedResponse as error:
        raise StoreError(_refusal(url, collection, error.status_code or 0, _reason(error))) from error
    except ApiException as error:
        raise StoreError(
            f"the Qdrant server at {url} can't be reached ({_first_line(getattr(error, 'source', error))}): is it "
            f"running, and is that its address? {URL_VARIABLE} names another"
        ) from error
    except ValueError as error:  # of the client itself, as when it finds no such collection in its own memory
        code = 404 if "not found" in str(error) else 0
        raise StoreError(_refusal(url, collection, code, _first_line(error))) from error


def _refusal(url: str, collection: str, code: int, reason: str) -> str:
    if code in (401, 403):
        return (
            f"the Qdrant server at {url} refused the key: put its key into {KEY_VARIABLE}, and its address into "
            f"{URL_VARIABLE}, as the key is sent to no other server"
        )
    if code == 404:
        return (
            f"the Qdrant server at {url} has no collection {collection!r}: open the index again if it has just been "
            "brought up to date, else build it again with --rebuild"
        )
    return f"the Qdrant server at {url} answered {code or 'with an error'} for {collection!r}: {reason}"


def _reason(error: Any) -> str:
    content = error.content.decode("utf-8", "replace") if isinstance(error.content, bytes) else str(error.content)
    return _first_line(content or error.reason_phrase)


def _first_line(what: object) -> str:
    return (str(what).strip().splitlines() or [type(what).__name__])[0][:200]
