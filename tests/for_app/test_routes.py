"""What the page's own scripts ask of the server, without a browser."""

import gc
import io
import json
import urllib.request
from typing import Any
from urllib.parse import urlencode

import pytest
from PIL import Image

from for_app.examples import EXAMPLES
from for_app.page import build_app
from for_app.serve import serve
from for_app.server.users import Users
from for_search.refine.answer import refine_index
from for_search.refine.feedback import feedback_of
from tests.helpers.pages import Served
from tests.helpers.patience import PATIENCE_S
from tests.helpers.ports import free_port
from tests.helpers.serving import ask, end_page, upload

# Gradio's own dependencies warn when they are imported and served; a client that is dropped closes its sockets late.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def get(served: Served, route: str, **params: Any) -> tuple[int, Any]:
    status, body = ask(served.url, f"/for/{route}?{urlencode(params, doseq=True)}")
    return status, json.loads(body)


def test_a_search_by_words_by_an_image_by_a_part_and_by_an_upload(served: Served) -> None:
    name = served.library.names[2]
    searcher = served.library.searcher(name)
    image = searcher.index.images[7]
    status, path = upload(served.url, "seven.jpg", searcher.image_path(image).read_bytes())
    assert status == 200
    sent = "/".join(json.loads(path)[0].split("/")[-2:])
    expected = {
        ("q", "umbrella"): searcher.text_query("umbrella"),
        ("like", image.id): searcher.like_query(image.id),
    }
    for (key, value), query in expected.items():
        _, told = get(served, "search", index=name, n=5, **{key: value})
        assert [hit["id"] for hit in told["hits"]] == [hit.image.id for hit in searcher.find(query, 5).hits]
    _, told = get(served, "search", index=name, n=5, like=image.id, part=3)
    hits = searcher.find(searcher.like_query(image.id, 3), 5).hits
    assert [hit["id"] for hit in told["hits"]] == [hit.image.id for hit in hits]
    assert told["label"] == f"like a part of {image.path.rpartition('/')[2]}"
    for _ in range(2):  # encoded, and remembered
        _, told = get(served, "search", index=name, n=5, upload=sent)
        assert (told["label"], told["hits"][0]["id"]) == ("like seven.jpg", image.id)
    _, told = get(served, "search", index=name)  # nothing asked for: an example
    assert told["label"] == EXAMPLES["miniscenes"][0]
    assert told["examples"] == list(EXAMPLES["miniscenes"])


def test_only_images_that_meet_a_condition(served: Served) -> None:
    searcher = served.library.searcher(served.library.default)
    held = searcher.index.images.where("has(labels, 'dog')")
    _, told = get(served, "search", q="umbrella", n=5, where="has(labels, 'dog')")
    ids = {searcher.index.images[int(place)].id for place in held}
    assert told["total"] == len(ids)
    assert {hit["id"] for hit in told["hits"]} <= ids
    _, told = get(served, "search", q="umbrella", where="width < 0")
    assert (told["total"], told["hits"]) == (0, [])


def test_marks_are_learnt_from(served: Served) -> None:
    before = get(served, "search", q="dog", n=30)[1]
    assert before["cutoff"] != 0.5  # what a text's scores mean
    right, wrong = before["hits"][20]["id"], before["hits"][0]["id"]
    after = get(served, "search", q="dog", n=30, right=right, wrong=wrong)[1]
    probabilities = [hit["probability"] for hit in after["hits"]]
    assert probabilities == sorted(probabilities, reverse=True)
    assert after["cutoff"] == 0.5
    text = served.library.searcher(served.library.default).text_query("dog").embeddings[0]
    learnt = refine_index(
        served.library.searcher(served.library.default).index,
        text,
        feedback_of([{"image": right, "right": True}, {"image": wrong, "right": False}]),
        sample=served.library.sample(served.library.default),
    )
    assert [hit["id"] for hit in after["hits"]] == [hit.image.id for hit in learnt.best(30)]
    assert [hit["id"] for hit in after["hits"]] != [hit["id"] for hit in before["hits"]]
    assert get(served, "evidence", q="dog", id=right, right=right)[1]["heat"]


@pytest.mark.parametrize(
    ("route", "params", "said"),
    [
        ("search", {"q": " "}, "Type what you are looking for"),
        ("search", {"q": "dog", "index": "nobody"}, "no index is called 'nobody'"),
        ("search", {"q": "dog", "from": "-1"}, "expected a whole number"),
        ("search", {"q": "dog", "where": "colour = 1"}, "can't be understood"),
        ("search", {"like": "nobody"}, "no image of the index"),
        ("search", {"like": "1", "part": "99"}, "expected 0 to 7"),
        ("search", {"upload": "../../etc/passwd"}, "not uploaded here"),
        ("search", {"upload": "0/gone.png"}, "file not found"),
        ("search", {"q": "dog", "right": "nobody"}, "no image of the index"),
        ("search", {"q": "dog", "right": "1", "wrong": "1"}, "marked right and wrong"),
        ("picture", {"id": "nobody"}, "no image of the index"),
        ("evidence", {"q": "dog", "id": "../../etc/passwd"}, "no image of the index"),
        ("compare", {"q": ""}, "Type what you are looking for"),
    ],
)
def test_what_makes_no_sense_is_one_line(served: Served, route: str, params: dict[str, str], said: str) -> None:
    status, told = get(served, route, **params)
    assert status == 400
    assert said in told["error"]
    assert "\n" not in told["error"]
    assert str(served.folder) not in told["error"]


def test_pictures_and_originals(served: Served) -> None:
    searcher = served.library.searcher(served.library.default)
    image = searcher.index.images[4]
    status, body = ask(served.url, f"/for/picture?id={image.id}")
    assert status == 200
    assert Image.open(io.BytesIO(body)).size == (160, 160)
    # this page is shown as one that others reach: no paths, no files
    assert "path" not in get(served, "hit", id=image.id)[1]
    assert ask(served.url, f"/for/original?id={image.id}")[0] == 404
    assert ask(served.url, "/for/static/../page.py")[0] == 404
    app = build_app(served.library, own=True)
    url = serve(app, port=free_port())
    try:
        path = searcher.image_path(image)
        assert json.loads(ask(url, f"/for/hit?id={image.id}")[1])["path"] == str(path)
        with urllib.request.urlopen(f"{url}for/original?id={image.id}", timeout=PATIENCE_S) as response:
            assert response.read() == path.read_bytes()
            assert response.headers["content-type"] == "image/jpeg"
            assert response.headers["x-content-type-options"] == "nosniff"
    finally:
        end_page(app)
        del app
        gc.collect()


def test_a_page_with_a_password_shows_nothing_without(served: Served) -> None:
    app = build_app(served.library)
    url = serve(app, port=free_port(), auth=Users.only("ann", "secret"))
    try:
        for route in ("search?q=dog", "picture?id=1", "hit?id=1", "compare?q=dog", "indexes", "leaderboard"):
            assert ask(url, f"/for/{route}", headers={})[0] == 401
        form = urlencode({"username": "ann", "password": "secret"}).encode()
        with urllib.request.urlopen(f"{url}login", form, timeout=PATIENCE_S) as response:
            cookies = "; ".join(each.partition(";")[0] for each in response.headers.get_all("set-cookie"))
        assert ask(url, "/for/search?q=dog", headers={"cookie": cookies})[0] == 200
        wrong = cookies.replace("=", "=x")
        assert ask(url, "/for/search?q=dog", headers={"cookie": wrong})[0] == 401
    finally:
        end_page(app)
        del app
        gc.collect()


def test_a_comparison_says_what_it_knows(served: Served) -> None:
    body = ask(served.url, "/for/compare?q=umbrella&n=3")[1].decode()
    assert body.count('class="shot"') == 4 * 3
    assert body.count('<li class="right">') + body.count('<li class="wrong">') == 12
    two = urlencode({"q": "<i>", "n": 3, "method": served.library.names[:2]}, doseq=True)
    body = ask(served.url, f"/for/compare?{two}")[1].decode()
    assert body.count('class="shot"') == 2 * 3
    assert body.count(" checked") == 2
    assert "&lt;i&gt;</b> is no category" in body
