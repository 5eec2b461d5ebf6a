"""What a request of the page's scripts asks for, and how its answer or its error goes back."""

import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from pathlib import Path
from typing import Any, Generic, TypeVar

import anyio
import numpy as np
from gradio.utils import get_upload_folder
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from for_app.guard import visitors_line
from for_app.question import Question
from for_app.uploads import uploaded_image
from for_model.errors import ForError, UsageError
from for_search.library.concept_texts import learnt_things, named_concept
from for_search.library.library import Library
from for_search.query.combination import Combination
from for_search.query.searcher import Query, Searcher, clean_query
from for_search.refine.answer import Refinement, refine_index
from for_search.refine.concepts import concept_name, learnt_thing, refine_by_concept
from for_search.refine.feedback import Feedback, feedback_of

MAX_AT_ONCE = 8  # requests that are worked on at a time, as many as Gradio's own queue takes
_KEPT_QUERIES, _KEPT_LEARNT = 64, 64
_NO_QUERY = np.zeros((0, 0), np.float32)

Answering = Callable[[QueryParams], Response]
_Value = TypeVar("_Value")


class Questions:
    """Reads from a request's parameters what is to be searched, and with what. Several threads may share one.

    What marks taught is remembered by all that it was learnt from, so a visitor's marks tell nobody else anything.
    """

    def __init__(self, library: Library) -> None:
        self._library = library
        self._uploads: Remembered[Query] = Remembered(_KEPT_QUERIES)
        self._texts: Remembered[Query] = Remembered(_KEPT_QUERIES)
        self._learnt: Remembered[Refinement] = Remembered(_KEPT_LEARNT)

    def index(self, params: QueryParams) -> str:
        """The name of the index that `index` names, that of the first without."""
        return params.get("index") or self._library.default

    def searcher(self, params: QueryParams) -> Searcher:
        """The searcher of that index. Raises UsageError for an unknown one."""
        return self._library.searcher(self.index(params))

    def asked(self, params: QueryParams) -> Question:
        """What is searched for: `like` (an image's id) and `part` (an embedding's number), `upload`, or the text `q`,
        which may name a concept; what was learnt of it from the images marked `right` and `wrong`; what an image shall
        hold besides (`all`, `any`, `none`); `where`, a condition over the images' columns.

        Raises UsageError where there is nothing to search for, or for what isn't there.
        """
        searcher = self.searcher(params)
        marks, n_gone = self.marks(params)
        allowed = searcher.index.where(params.get("where", ""))
        several = {role: [text for text in params.getlist(role) if text.strip()] for role in ("all", "any", "none")}
        text = "" if params.get("like") or params.get("upload") else params.get("q", "").strip()
        if any(several.values()):
            if not text:
                raise UsageError("Several things at once are asked for in words: type the first of them")
            combination = Combination((text, *several["all"]), several["any"], several["none"])
            things = learnt_things(self._library, self.index(params), combination)
            if marks.marks:  # they say what the text means
                things[combination.all_of[0]] = learnt_thing(self._learn(params, searcher, marks), text)
            return Question(
                searcher,
                Query(combination.label, _NO_QUERY, 0.0),
                n_gone=n_gone,
                combination=combination,
                things=things,
                allowed=allowed,
            )
        if not marks.marks and concept_name(text) is None:
            return Question(searcher, self._query(params, searcher), n_gone=n_gone, allowed=allowed)
        learnt = self._learn(params, searcher, marks)
        label = text or self._query(params, searcher).label
        marked = frozenset(mark.image for mark in marks.marks)
        return Question(searcher, Query(label, _NO_QUERY, learnt.fit_ms), learnt, marked, n_gone, allowed=allowed)

    def marks(self, params: QueryParams) -> tuple[Feedback, int]:
        """The marks, and how many of them are of images that the index doesn't have.

        `right` and `wrong` are ids of images, `right-part` and `wrong-part` the number of a part, @ and the id.
        """
        searcher, n_gone = self.searcher(params), 0
        marks: list[dict[str, Any]] = []
        for kind in ("right", "wrong"):
            given: list[tuple[str, int | None]] = [(each, None) for each in params.getlist(kind)]
            for each in params.getlist(f"{kind}-part"):
                number, _, image_id = each.partition("@")
                given.append((image_id, whole_number(number, f"the part of {kind}-part")))
            for image_id, part in given:
                try:
                    image = searcher.index.image(image_id).id
                except UsageError:
                    n_gone += 1
                    continue
                marks.append({"image": image, "right": kind == "right", "embedding": part})
        return feedback_of(marks), n_gone

    def _learn(self, params: QueryParams, searcher: Searcher, marks: Feedback) -> Refinement:
        """What the text, the concept or the image means by the marks."""
        concept = named_concept(self._library, params.get("q", "").strip())
        asked = tuple(params.get(each) for each in ("q", "like", "part", "upload"))

        def learn() -> Refinement:
            sample = self._library.sample(self.index(params))
            if concept is not None:
                return refine_by_concept(searcher, concept, sample, marks)
            text = self._query(params, searcher).embeddings.mean(axis=0)
            return refine_index(searcher.index, text / np.linalg.norm(text), marks, sample=sample)

        return self._learnt.found(searcher, (*asked, concept, marks.marks), learn)

    def _query(self, params: QueryParams, searcher: Searcher) -> Query:
        """What is searched for before anything is learnt."""
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
        # a text is asked for again with every mark
        return self._texts.found(searcher, text, lambda: searcher.text_query(text))

    def _upload_query(self, searcher: Searcher, upload: str) -> Query:
        """The query of an uploaded file, encoded once while visitors look at what it finds.

        upload: `folder/name` within the upload folder.
        """

        def encode() -> Query:
            path = {"path": str(Path(get_upload_folder()) / upload)}
            image = uploaded_image(path, target=2 * searcher.index.info.image_size)
            return searcher.image_query(image, f"like {Path(upload).name}")

        return self._uploads.found(searcher, upload, encode)


class Remembered(Generic[_Value]):
    """What was found last with a searcher: at most `most` things. Several threads may share one."""

    def __init__(self, most: int) -> None:
        self._most, self._lock = most, threading.Lock()
        self._values = OrderedDict[tuple[int, Hashable], tuple[Searcher, _Value]]()

    def found(self, searcher: Searcher, what: Hashable, find: Callable[[], _Value]) -> _Value:
        """What was found with a searcher for `what`; else `find` finds it."""
        key = (id(searcher), what)  # the searcher is kept beside, so that no other gets its number
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key][1]
        value = find()
        with self._lock:
            self._values[key] = searcher, value
            while len(self._values) > self._most:
                self._values.popitem(last=False)
        return value


def whole_number(text: str, name: str, low: int = 0, high: int = 10**9) -> int:
    """The number of a parameter, moved into low..high. Raises UsageError for what is none."""
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise UsageError(f"{name} is {text[:20]!r}: expected a whole number")
    return min(max(int(text), low), high)


def plain_route(
    library: Library, path: str, answering: Answering, limiter: anyio.CapacityLimiter, changes: bool = False
) -> Route:
    """A route; that only those who have logged in reach it is seen to in `for_app.server.logins`.

    library: whose private paths no error tells.
    answering: makes the answer from the parameters, in a thread. A ForError becomes `{"error": line}` with status 400,
        what wasn't foreseen a line and status 500, its trace in the log.
    limiter: of how many are worked on at a time.
    changes: whether it changes something: then it is a POST, which no other site's page can make, and its parameters
        are the fields of a form.
    """

    def answered(params: QueryParams) -> Response:
        try:
            return answering(params)
        except Exception as error:
            return JSONResponse({"error": visitors_line(library, error)}, 400 if isinstance(error, ForError) else 500)

    async def endpoint(request: Request) -> Response:
        params = QueryParams((await request.body()).decode("utf-8", "replace")) if changes else request.query_params
        return await anyio.to_thread.run_sync(answered, params, limiter=limiter)

    handler: Callable[[Request], Awaitable[Response]] = endpoint
    return Route(path, handler, methods=["POST" if changes else "GET"])
