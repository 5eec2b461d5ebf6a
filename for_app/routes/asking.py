"""What a request of the page's scripts asks for, and how its answer or its error goes back."""

import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import numpy as np
from gradio.utils import get_upload_folder
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from for_app.guard import visitors_line
from for_app.uploads import uploaded_image
from for_model.errors import ForError, UsageError
from for_search.library.library import Library
from for_search.query.searcher import Query, Searcher, clean_query
from for_search.refine.answer import Refinement, refine_index
from for_search.refine.feedback import feedback_of
from for_search.refine.refiner_protocol import LinearScorer

MAX_AT_ONCE = 8  # requests that are worked on at a time, as many as Gradio's own queue takes
_KEPT_QUERIES = 64

Answering = Callable[[QueryParams], Response]


class Questions:
    """Reads from a request's parameters what is to be searched, and with what. Several threads may share one."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._uploads: OrderedDict[tuple[int, str], tuple[Searcher, Query]] = OrderedDict()
        self._lock = threading.Lock()

    def searcher(self, params: QueryParams) -> Searcher:
        """The searcher of the index that `index` names, the first without. Raises UsageError for an unknown one."""
        return self._library.searcher(params.get("index") or self._library.default)

    def query(self, params: QueryParams) -> Query:
        """What is searched for: `like` (an image's id) and `part` (an embedding's number), `upload`, or the text `q`.

        Raises UsageError where there is none of them, or for one that isn't there.
        """
        return self.learnt(params)[0]

    def learnt(self, params: QueryParams) -> tuple[Query, Refinement | None]:
        """`query`, and what was learnt from the images marked `right` and `wrong`, whose query it then is."""
        query = self._unmarked_query(params)
        searcher = self.searcher(params)
        marks = [
            {"image": searcher.index.image(each).id, "right": kind == "right"}
            for kind in ("right", "wrong")
            for each in params.getlist(kind)
        ]
        if not marks:
            return query, None
        text = query.embeddings.mean(axis=0)
        sample = self._library.sample(params.get("index") or self._library.default)
        found = refine_index(searcher.index, text / np.linalg.norm(text), feedback_of(marks), sample=sample)
        assert isinstance(found.scorer, LinearScorer)  # what the default refiner learns
        return Query(query.label, found.scorer.query[None], query.encode_ms + found.fit_ms), found

    def _unmarked_query(self, params: QueryParams) -> Query:
        searcher = self.searcher(params)
        if like := params.get("like"):
            part = params.get("part")
            record = searcher.index.image(like)
            query = searcher.like_query(record.id, None if part is None else whole_number(part, "part"))
            name = Path(record.path).name
            return Query(f"like {name}" if part is None else f"like a part of {name}", query.embeddings, 0.0)
        if upload := params.get("upload"):
            return self._upload_query(searcher, upload)
        text = clean_query(params.get("q") or "")
        if not text.strip():
            raise UsageError("Type what you are looking for")
        return searcher.text_query(text)

    def _upload_query(self, searcher: Searcher, upload: str) -> Query:
        """The query of an uploaded file, encoded once while visitors look at what it finds.

        upload: `folder/name` within the upload folder.
        """
        key = (id(searcher), upload)  # the searcher is kept beside, so that no other gets its number
        with self._lock:
            if key in self._uploads:
                self._uploads.move_to_end(key)
                return self._uploads[key][1]
        image = uploaded_image(
            {"path": str(Path(get_upload_folder()) / upload)}, target=2 * searcher.index.info.image_size
        )
        query = searcher.image_query(image, f"like {Path(upload).name}")
        with self._lock:
            self._uploads[key] = (searcher, query)
            while len(self._uploads) > _KEPT_QUERIES:
                self._uploads.popitem(last=False)
        return query


def whole_number(text: str, name: str, low: int = 0, high: int = 10**9) -> int:
    """The number of a parameter, moved into low..high. Raises UsageError for what is none."""
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise UsageError(f"{name} is {text[:20]!r}: expected a whole number")
    return min(max(int(text), low), high)


def plain_route(library: Library, path: str, answering: Answering, limiter: anyio.CapacityLimiter) -> Route:
    """A GET route; that only those who have logged in reach it is seen to in `for_app.server.logins`.

    library: whose private paths no error tells.
    answering: makes the answer from the parameters, in a thread. A ForError becomes `{"error": line}` with status 400,
        what wasn't foreseen a line and status 500, its trace in the log.
    limiter: of how many are worked on at a time.
    """

    def answered(params: QueryParams) -> Response:
        try:
            return answering(params)
        except Exception as error:
            return JSONResponse({"error": visitors_line(library, error)}, 400 if isinstance(error, ForError) else 500)

    async def endpoint(request: Request) -> Response:
        return await anyio.to_thread.run_sync(answered, request.query_params, limiter=limiter)

    handler: Callable[[Request], Awaitable[Response]] = endpoint
    return Route(path, handler, methods=["GET"])
