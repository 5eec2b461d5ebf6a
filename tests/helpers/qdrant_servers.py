"""What stands in for a Qdrant server in tests: the client's own memory or folder, the server's core, that behind HTTP.

No server can be installed from a package registry. The first two are the client's brute force in numpy; the core is the
server's own code for a shard (see `qdrant_core`); behind HTTP the real client speaks to it as to a server.
"""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import QdrantClient, models
from qdrant_client.local.persistence import CollectionPersistence

from for_search.index.qdrant import connection
from tests.helpers.qdrant_core import CoreClient

URL = "http://qdrant.example:6333"
KEY = "a-key-that-nobody-may-write-down"


def use_client(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this client answer for every server."""
    monkeypatch.setattr(connection, "_client", lambda url, key: client)


_open_folder = CollectionPersistence.__init__


def _open_without_waiting(self: CollectionPersistence, *given: Any, **named: Any) -> None:
    """A client's folder, for which nobody waits until each point is on the disk, see tests/conftest.py."""
    _open_folder(self, *given, **named)
    self.storage.execute("PRAGMA synchronous = OFF")


CollectionPersistence.__init__ = _open_without_waiting  # type: ignore[method-assign]


def client_of(kind: str, folder: Path) -> Any:
    """A client of nothing yet. kind: `memory`, `folder` or `core`."""
    if kind == "core":
        return CoreClient(folder / "core")
    return QdrantClient(":memory:") if kind == "memory" else QdrantClient(path=str(folder / "local"))


@contextmanager
def serve_core(folder: Path, key: str | None = None) -> Iterator[tuple[str, list[tuple[str, str, str | None]]]]:
    """The core behind HTTP: its address, and what it was asked: method, path, key.

    key: which requests have to have.
    """
    core, asked, lock = CoreClient(folder / "core"), list[tuple[str, str, str | None]](), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            asked.append((self.command, self.path, self.headers.get("api-key")))
            if key is not None and self.headers.get("api-key") != key:
                self.reply(401, b"Must provide an API key or an Authorization bearer token")
                return
            try:
                with lock:
                    result = _answer(core, self.command, self.path.split("?")[0], json.loads(body or b"null"))
            except ValueError as error:
                self.reply(404, json.dumps({"status": {"error": f"Not found: {error}"}, "time": 0}).encode())
            else:
                self.reply(200, json.dumps({"result": result, "status": "ok", "time": 0}).encode())

        def reply(self, code: int, content: bytes) -> None:
            self.send_response(code)
            self.send_header("content-type", "application/json" if content.startswith(b"{") else "text/plain")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None: ...

        do_GET = do_PUT = do_POST = do_DELETE = answer

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    connection._client.cache_clear()
    connection._named.clear()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        connection._client.cache_clear()
        server.shutdown()
        thread.join()
        server.server_close()


def _answer(core: CoreClient, method: str, path: str, body: Any) -> Any:
    name, rest = re.fullmatch(r"/collections/([^/]+)(.*)", path).groups()  # type: ignore[union-attr]
    answers: dict[tuple[str, str], Callable[[], Any]] = {
        ("GET", "/exists"): lambda: {"exists": core.collection_exists(name)},
        ("PUT", ""): lambda: _create(core, name, body),
        ("GET", ""): lambda: _info(core, name),
        ("DELETE", ""): lambda: core.delete_collection(name),
        ("POST", "/points/count"): lambda: vars(core.count(name, body["exact"])),
        ("PUT", "/points"): lambda: _done(core.upsert(name, models.Batch(**body["batch"]), wait=True)),
        ("POST", "/points/delete"): lambda: _done(core.delete(name, models.PointIdsList(**body), wait=True)),
        ("POST", "/points"): lambda: [vars(each) for each in core.retrieve(name, body["ids"], True, False)],
        ("POST", "/points/query/batch"): lambda: [
            {"points": [{"id": point.id, "version": 0, "score": point.score} for point in answer.points]}
            for answer in core.query_batch_points(name, [models.QueryRequest(**each) for each in body["searches"]])
        ],
    }
    return answers[method, rest]()


def _done(_: None) -> Any:
    return {"operation_id": 0, "status": "completed"}


def _create(core: CoreClient, name: str, body: Any) -> bool:
    asked = models.CreateCollection(**body)
    assert isinstance(asked.vectors, models.VectorParams)
    assert asked.hnsw_config is not None
    core.create_collection(
        name,
        vectors_config=asked.vectors,
        hnsw_config=asked.hnsw_config,
        quantization_config=asked.quantization_config,  # type: ignore[arg-type]
        optimizers_config=asked.optimizers_config,
    )
    return True


def _info(core: CoreClient, name: str) -> Any:
    found = core.get_collection(name)
    optimizers = {"deleted_threshold": 0.2, "vacuum_min_vector_number": 1000, "default_segment_number": 1}
    return {
        "status": found.status,
        "optimizer_status": "ok",
        "segments_count": 1,
        "indexed_vectors_count": found.indexed_vectors_count,
        "payload_schema": {},
        "config": {
            "params": {"vectors": found.config.params.vectors.model_dump(mode="json")},
            "hnsw_config": {"m": 16, "ef_construct": 100, "full_scan_threshold": 10000},
            "optimizer_config": {**optimizers, "flush_interval_sec": 5},
        },
    }
