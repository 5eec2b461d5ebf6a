"""A search answered by a running page, over its API, instead of by an index on this machine."""

import http.client
import http.cookiejar
import json
import mimetypes
import secrets
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from for_model.errors import DataError, UsageError

_SECONDS = 120.0  # a page that loads a large network before its first answer takes some
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_API = "/gradio_api"


class RemotePage:
    """A page of FOR somewhere.

    url: its address, as the page itself prints it.
    login: user and password with a colon between them, for a page that asks for them; None for none.

    Raises UsageError for what is no address, or no login.
    """

    def __init__(self, url: str, login: str | None = None) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"--server {url!r}: expected a page's address, such as http://127.0.0.1:7860")
        if login is not None and not all(login.partition(":")):
            raise UsageError("--auth: expected USER:PASSWORD, both with at least one character")
        self._url, self._login = url.rstrip("/"), login
        handlers: list[urllib.request.BaseHandler] = [
            urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()),  # the login is a cookie
        ]
        if parts.hostname in _LOOPBACK:  # which no proxy can reach
            handlers.append(urllib.request.ProxyHandler({}))
        self._opener = urllib.request.build_opener(*handlers)

    def ask(self, endpoint: str, values: Sequence[Any]) -> dict[str, Any]:
        """What an endpoint of docs/api.md answers.

        values: its arguments, all of them, in their order.

        Raises DataError when no page of FOR answers at the address or it wants another login, UsageError with the
        page's own line for what it says makes no sense.
        """
        self._log_in()
        answer = self._json(f"{_API}/run/{endpoint}", json.dumps({"data": list(values)}).encode())
        data = answer.get("data") if isinstance(answer, dict) else None
        if not (isinstance(data, list) and len(data) == 1 and isinstance(data[0], dict)):
            raise self._no_page("its answer is another than FOR's")
        return data[0]

    def upload(self, path: Path) -> dict[str, Any]:
        """Send an image's file, and return what stands for it among an endpoint's values. Raises as `ask` does."""
        self._log_in()
        boundary = secrets.token_hex(16)
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        name = urllib.parse.quote(path.name)
        head = f'Content-Disposition: form-data; name="files"; filename="{name}"\r\nContent-Type: {kind}\r\n\r\n'
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UsageError(f"{path} can't be read: {error.strerror or error}") from error
        body = b"--%b\r\n%b%b\r\n--%b--\r\n" % (boundary.encode(), head.encode(), content, boundary.encode())
        answer = self._json(f"{_API}/upload", body, f"multipart/form-data; boundary={boundary}")
        if not (isinstance(answer, list) and len(answer) == 1 and isinstance(answer[0], str)):
            raise self._no_page("it takes no upload")
        return {"path": answer[0], "orig_name": path.name, "meta": {"_type": "gradio.FileData"}}

    def _log_in(self) -> None:
        if self._login is not None:
            user, _, password = self._login.partition(":")
            form = urllib.parse.urlencode({"username": user, "password": password}).encode()
            self._json("/login", form, "application/x-www-form-urlencoded")
            self._login = None  # the cookie says it from now on

    def _json(self, path: str, body: bytes, kind: str = "application/json") -> Any:
        request = urllib.request.Request(self._url + path, body, {"Content-Type": kind})
        try:
            with self._opener.open(request, timeout=_SECONDS) as response:
                content = response.read()
        except urllib.error.HTTPError as error:
            with error:
                raise self._refused(path, error.code, error.read()) from error
        except urllib.error.URLError as error:
            raise self._no_page(error.reason) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._no_page(error) from error
        try:
            return json.loads(content)
        except ValueError as error:
            raise self._no_page("its answer isn't JSON") from error

    def _refused(self, path: str, status: int, content: bytes) -> DataError | UsageError:
        """The error that a status other than 200 stands for."""
        try:
            said = json.loads(content)
        except ValueError:
            said = None
        line = next((said[key] for key in ("error", "detail") if isinstance(said, dict) and said.get(key)), None)
        if path == "/login":
            if status == 429:
                return DataError(f"{self._url}: {line or 'too many wrong passwords'}")
            return DataError(f"{self._url} has no such user, or another password: give --auth USER:PASSWORD")
        if status == 401:
            return DataError(f"{self._url} asks for a login: give --auth USER:PASSWORD, or set FOR_AUTH to it")
        if isinstance(line, str) and path.startswith(f"{_API}/run/") and status != 404:
            return UsageError(" ".join(line.split()))
        return self._no_page(f"it answers {status}{f', {line}' if isinstance(line, str) else ''}")

    def _no_page(self, reason: object) -> DataError:
        line = " ".join(str(getattr(reason, "strerror", None) or reason).split())
        return DataError(
            f"no page of FOR answers at {self._url} ({line}): start one with `python app.py`, or leave --server out"
        )


def search_remotely(
    page: RemotePage,
    index: str,
    text: str,
    k: int,
    where: str,
    several: Sequence[Sequence[str]],
    like: str | None,
    weight: float,
) -> dict[str, Any]:
    """The page's answer to a search, as `for_search.api` gives it: images have ids and no paths.

    index: a name of one of its indexes; an empty one for the first.
    text: what is searched for; concepts are the page's own.
    several: texts of which all, one and none must be in an image.
    like: the file of an image, or the id of one of the index; None for none.

    Raises as `RemotePage.ask` does.
    """
    if like is None:
        return page.ask("search", [text, k, index, *(list(each) for each in several), where])
    if Path(like).is_file():
        return page.ask("search_image", [page.upload(Path(like)), k, index, text, weight, where])
    return page.ask("search_like", [like, k, index, -1, text, weight, where])
