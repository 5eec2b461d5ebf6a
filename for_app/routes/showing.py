"""The routes themselves: a search, a picture, an opened hit, a comparison, a table, and the files of the page."""

import math
from pathlib import Path

import anyio
from starlette.datastructures import QueryParams
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount
from starlette.staticfiles import StaticFiles

from for_app.answers import answer, answer_of_all, describe_hit, evidence_of, parts_of, table_of_all, telling_hits
from for_app.examples import examples_of
from for_app.routes.asking import MAX_AT_ONCE, Questions, plain_route, whole_number
from for_app.views.board_tables import leaderboard_html
from for_app.views.pictures import LARGE_PX, THUMBNAIL_PX, jpeg, mime_type, picture
from for_app.views.side_by_side import comparison_html
from for_model.errors import UsageError
from for_search import api
from for_search.library.concept_texts import compare_methods, keep
from for_search.library.library import Library
from for_search.query.searcher import clean_query

MAX_AT_A_TIME = 240  # hits in one answer; the page asks again for more
MAX_COMPARED = 24
_TELLING = 3  # images that are asked about at a time
STATIC = Path(__file__).parents[1] / "static"
_SIZES = {"thumbnail": THUMBNAIL_PX, "large": LARGE_PX}
_PRIVATE = {"Cache-Control": "private, max-age=600"}  # the index may be made again meanwhile


def plain_routes(library: Library, own: bool = False) -> list[BaseRoute]:
    """All routes of the page's scripts, under `for/`.

    own: whether only the user of this machine reaches the server, who may see where files lie, and open them.
    """
    limiter = anyio.CapacityLimiter(MAX_AT_ONCE)
    show = _Answers(library, own)
    answers = {
        "indexes": show.indexes,
        "search": show.search,
        "everything": show.everything,
        "everything.csv": show.table,
        "telling": show.telling,
        "concepts": show.concepts,
        "waiting": show.waiting,
        "picture": show.picture,
        "hit": show.hit,
        "evidence": show.evidence,
        "parts": show.parts,
        "compare": show.compare,
        "leaderboard": show.leaderboard,
        **({"original": show.original} if own else {}),
    }
    routes = [plain_route(library, f"/for/{name}", answering, limiter) for name, answering in answers.items()]
    if own and library.concepts is not None:
        routes.append(plain_route(library, "/for/keep", show.keep, limiter, changes=True))
    return [*routes, Mount("/for/static", StaticFiles(directory=STATIC))]


class _Answers:
    """What each route answers."""

    def __init__(self, library: Library, own: bool) -> None:
        self._library, self._own = library, own
        self._questions = Questions(library)

    def indexes(self, params: QueryParams) -> Response:
        """The names of all indexes, and of the one that the page opens with."""
        return JSONResponse({"names": self._library.names, "default": self._library.default})

    def search(self, params: QueryParams) -> Response:
        """`n` hits from rank `from` + 1 on, of images that meet `where`; with the first of them, all that is said about
        the search.

        Where nothing is asked for, an example is.
        """
        examples = examples_of(self._questions.searcher(params))
        given = any(params.get(each) for each in ("q", "like", "upload"))
        asked = self._questions.asked(params if given else QueryParams([*params.multi_items(), ("q", examples[0])]))
        said = answer(asked, *_page_of(params), _score(params.get("least"))).to_json()
        return JSONResponse({**said, "examples": examples})

    def everything(self, params: QueryParams) -> Response:
        """`n` of all images that a text, or a concept, and marks mean, from rank `from` + 1 on."""
        asked = self._questions.asked(params)
        return JSONResponse(
            {**answer_of_all(asked, *_page_of(params)).to_json(), "examples": examples_of(asked.searcher)}
        )

    def table(self, params: QueryParams) -> Response:
        """All of these images as a CSV file."""
        name = {"Content-Disposition": 'attachment; filename="answer.csv"'}
        return Response(table_of_all(self._questions.asked(params), self._own), media_type="text/csv", headers=name)

    def telling(self, params: QueryParams) -> Response:
        """The three images whose marks would tell most."""
        return JSONResponse({"hits": telling_hits(self._questions.asked(params), _TELLING)})

    def concepts(self, params: QueryParams) -> Response:
        """The concepts that can be searched for, and whether whoever asks may keep one."""
        return JSONResponse({**api.concepts(self._library), "keeps": self._own and self._library.concepts is not None})

    def keep(self, params: QueryParams) -> Response:
        """Keep what is searched for and its marks as a concept called `name`; `replace` lets one of that name go."""
        kept = keep(
            self._library,
            params.get("name", "").strip(),
            self._questions.index(params),
            "" if params.get("like") or params.get("upload") else params.get("q", "").strip(),
            self._questions.marks(params)[0],
            replace=bool(params.get("replace")),
        )
        return JSONResponse({"name": kept.name, "right": kept.feedback.n_right, "wrong": kept.feedback.n_wrong})

    def waiting(self, params: QueryParams) -> Response:
        """Why a search may take long: the network isn't in memory yet."""
        searcher = self._questions.searcher(params)
        ready = searcher.encoder.loaded if params.get("upload") else searcher.encoder.reads_texts
        backbone = searcher.index.info.backbone
        why = "" if ready else f"Loading {backbone}, the network that reads the query: only the first search waits."
        return JSONResponse({"why": why})

    def picture(self, params: QueryParams) -> Response:
        """An image of the index as a JPEG; a placeholder for one that can't be shown."""
        searcher = self._questions.searcher(params)
        size = _SIZES.get(params.get("size", "thumbnail"), THUMBNAIL_PX)
        image, problem = picture(searcher, searcher.index.image(params.get("id", "")), size)
        return Response(jpeg(image), media_type="image/jpeg", headers={} if problem else _PRIVATE)

    def original(self, params: QueryParams) -> Response:
        """An image's own file, unchanged."""
        searcher = self._questions.searcher(params)
        path = searcher.image_path(searcher.index.image(params.get("id", "")))
        safety = {"Content-Security-Policy": "sandbox", "X-Content-Type-Options": "nosniff"}
        return FileResponse(path, media_type=mime_type(path), headers=safety)

    def hit(self, params: QueryParams) -> Response:
        """What is known of a hit's file."""
        searcher = self._questions.searcher(params)
        return JSONResponse(describe_hit(searcher, searcher.index.image(params.get("id", "")), self._own))

    def evidence(self, params: QueryParams) -> Response:
        """Where in an image the match comes from."""
        asked = self._questions.asked(params)
        return JSONResponse(evidence_of(asked, asked.searcher.index.image(params.get("id", ""))))

    def parts(self, params: QueryParams) -> Response:
        """Which part of an image each of its places belongs to."""
        searcher = self._questions.searcher(params)
        return JSONResponse(parts_of(searcher, searcher.index.image(params.get("id", ""))))

    def compare(self, params: QueryParams) -> Response:
        """The query through several methods, as HTML."""
        text = clean_query(params.get("q") or "")
        if not text.strip():
            raise UsageError("Type what you are looking for")
        name = self._questions.index(params)
        known = [name, *self._library.siblings(name)]
        asked = [each for each in params.getlist("method") if each in known] or known
        k = whole_number(params.get("n", "8"), "n", 1, MAX_COMPARED)
        comparison = compare_methods(self._library, asked[0], asked, text, k)
        searchers = {each: self._library.searcher(each) for each in asked}
        return HTMLResponse(comparison_html(comparison, searchers, known, self._library.labels(asked[0]) is not None))

    def leaderboard(self, params: QueryParams) -> Response:
        """A table of the leaderboards, as HTML, with the choice of the others."""
        return HTMLResponse(leaderboard_html(params.get("table", "")))


def _page_of(params: QueryParams) -> tuple[int, int]:
    """How many hits are left out, and how many are wanted."""
    return whole_number(params.get("from", "0"), "from"), whole_number(params.get("n", "24"), "n", 1, MAX_AT_A_TIME)


def _score(text: str | None) -> float | None:
    """A score of the address; None for none, or what is no number."""
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
