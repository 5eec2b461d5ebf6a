"""A headless Chromium for tests and screenshots, driven over its DevTools pipe: no driver, no port, no dependency."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.helpers.patience import PATIENCE_S

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

_KEYS = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39}  # Windows' numbers of keys with names

# Chromium reads commands from descriptor 3 and writes answers to descriptor 4, each ended by a zero byte.
_ON_PIPES = 'exec "$@" 3<&"$0" 4>&"$OUT_FD"'


class Page:
    """One page. `requested` collects the addresses of all that it asked for, `problems` the errors of its console."""

    def __init__(self, write_to: int, read_from: int) -> None:
        self._write_to, self._read_from = write_to, read_from
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self.requested: list[str] = []
        self.problems: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, command: str, seconds: float = PATIENCE_S, **parameters: Any) -> dict[str, Any]:
        """Send a DevTools command and wait for its answer. Raises RuntimeError for an error, TimeoutError for none."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": command, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write_to, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + seconds
        while True:
            answer = self._receive(deadline)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{command}: {answer['error']['message']}")
                return answer["result"]
            self._note(answer)

    def open(self, url: str, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Load a page in a window of that size. Raises RuntimeError."""
        self.resize(width, height)
        self.prefer(dark)
        if error := self.call("Page.navigate", url=url).get("errorText"):
            raise RuntimeError(f"{url}: {error}")

    def resize(self, width: int, height: int) -> None:
        """Show what is open in a window of that size, as on a phone below a width of 600."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def prefer(self, dark: bool) -> None:
        """Let the visitor prefer dark pages, or light ones, from now on."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def value(self, expression: str) -> Any:
        """The JSON value of a JavaScript expression. Raises RuntimeError when it throws."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def wait(self, expression: str, seconds: float = PATIENCE_S) -> None:
        """Wait until a JavaScript expression is true. Raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(RuntimeError):  # the page may be between two documents
                if self.value(f"Boolean({expression})"):
                    return
            time.sleep(0.05)
        raise TimeoutError(f"not true within {seconds} s: {expression}; the console said {self.problems}")

    def click(self, selector: str, text: str = "") -> None:
        """Click the first visible element of a selector whose text holds `text`."""
        found = f"[...document.querySelectorAll({json.dumps(selector)})]"
        found += f".find(e => e.offsetParent && e.innerText.includes({json.dumps(text)}))"
        self.wait(found)
        self.value(f"{found}.click()")

    def type(self, text: str, enter: bool = False) -> None:
        """Replace the text of the focused field, and press Enter if asked to."""
        self.value("document.activeElement.select()")
        self.call("Input.insertText", text=text)
        if enter:
            self.press("Enter")

    def press(self, key: str) -> None:
        """Press and release a letter, or one of _KEYS by its name."""
        pressed = {"key": key, "code": key if key in _KEYS else f"Key{key.upper()}"}
        pressed |= {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            number = _KEYS.get(key) or ord(key.upper())
            self.call("Input.dispatchKeyEvent", type=kind, windowsVirtualKeyCode=number, **pressed)

    def screenshot(self, path: Path) -> None:
        """Write what the window shows as a PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read_from], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError("Chromium did not answer in time")
            block = os.read(self._read_from, 1 << 20)
            if not block:
                raise RuntimeError("Chromium has ended")
            self._buffer += block
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        parameters = event.get("params", {})
        if event.get("method") == "Network.requestWillBeSent":
            self.requested.append(parameters["request"]["url"])
        elif event.get("method") == "Runtime.exceptionThrown":
            self.problems.append(str(parameters["exceptionDetails"]))
        elif event.get("method") == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.problems.append(f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}")


@contextlib.contextmanager
def open_page() -> Iterator[Page]:
    """A Chromium of its own, with an empty profile, that can reach nothing but this machine; ended on leaving."""
    if CHROMIUM is None:
        raise RuntimeError("no Chromium found: apt-get install chromium")
    child_in, write_to = os.pipe()
    read_from, child_out = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [
            *("bash", "-c", _ON_PIPES, str(child_in), CHROMIUM, "--headless", "--remote-debugging-pipe"),
            *("--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-extensions"),
            # Else each page that is opened gets a process of its own, and the one before stays: twice the work.
            *("--disable-back-forward-cache", "--disable-dev-shm-usage", f"--user-data-dir={profile}"),
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
        ]
        process = subprocess.Popen(
            command,
            pass_fds=(child_in, child_out),
            env={**os.environ, "OUT_FD": str(child_out)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(child_in)
        os.close(child_out)
        try:
            yield Page(write_to, read_from)
        finally:
            os.close(write_to)
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            os.close(read_from)
