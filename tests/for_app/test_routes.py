"""What the page's own scripts ask of the server, without a browser."""

import csv
import gc
import io
import json
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from PIL import Image

from for_app.examples import EXAMPLES
from for_app.page import build_app
from for_app.serve import serve
from for_app.server.users import Users
from for_model.backbones.clip_resnet import load_clip_resnet
from for_model.methods.protocol import LazyMethod
from for_search.library.library import Library
from for_search.query.combination import Combination, find_combination
from for_search.refine.answer import refine_index, whole_answer
from for_search.refine.feedback import feedback_of
from tests.helpers.pages import Served
from tests.helpers.patience import PATIENCE_S
from tests.helpers.ports import free_port
from tests.helpers.serving import ask, end_page, upload

pytestmark = [pytest.mark.slow, pytest.mark.gradio]


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
    assert [hit["id"] for hit in after["hits"]] == [hit.image.id for hit in learnt.unmarked(30)]  # the marked apart
    words = whole_answer(learnt).in_words()
    assert after["marks"] == {"right": 1, "wrong": 1, "gone": 0, "words": words}
    assert after["total"] == 28
    assert [hit["id"] for hit in after["hits"]] != [hit["id"] for hit in before["hits"]]
    assert get(served, "evidence", q="dog", id=right, right=right)[1]["heat"]


def test_all_that_is_meant_goes_out_page_by_page_and_as_csv(served: Served) -> None:
    hits = get(served, "search", q="dog", n=30)[1]["hits"]
    marks = {"right": [hits[0]["id"], hits[20]["id"]], "wrong": hits[1]["id"]}
    first = get(served, "everything", q="dog", n=2, **marks)[1]
    assert [hit["id"] for hit in first["hits"]] == marks["right"]  # those marked right come first
    pages = [get(served, "everything", q="dog", n=2, **marks, **{"from": n})[1] for n in range(0, first["total"], 2)]
    found = [hit["id"] for page in pages for hit in page["hits"]]
    assert len(found) == first["total"] == len(set(found))
    assert hits[1]["id"] not in found
    assert first["marks"]["words"] == f"about {first['total']} images, {first['marks']['words'].split()[-2]} right"
    query = urlencode({"q": "dog", **marks}, doseq=True)
    status, body = ask(served.url, f"/for/everything.csv?{query}")
    assert status == 200
    rows = list(csv.DictReader(body.decode().splitlines()))
    assert [int(row["image"]) for row in rows] == found
    assert [row["marked"] for row in rows].count("True") == 2
    assert not any("/" in row["path"] for row in rows)  # a visitor is told no path


def test_the_three_images_that_would_tell_most_are_unmarked(served: Served) -> None:
    hits = get(served, "search", q="dog", n=30)[1]["hits"]
    marked = {"right": hits[0]["id"], "wrong": hits[1]["id"]}
    told = get(served, "telling", q="dog", **marked)[1]["hits"]
    assert len({hit["id"] for hit in told} - set(marked.values())) == 3
    narrow = get(served, "telling", q="dog", where=f"id in ({hits[5]['id']}, {hits[6]['id']})", **marked)[1]["hits"]
    assert {hit["id"] for hit in narrow} == {hits[5]["id"], hits[6]["id"]}


def test_visitors_cannot_see_one_anothers_marks(served: Served) -> None:
    """Two visitors who search for the same at once, one of whom marks: marks are in nothing but their own requests."""
    before = get(served, "search", q="cat", n=30)[1]
    marks = {"right": before["hits"][25]["id"], "wrong": before["hits"][0]["id"]}
    marked = get(served, "search", q="cat", n=30, **marks)[1]
    other = get(served, "search", q="cat", n=30, right=before["hits"][3]["id"])[1]
    assert get(served, "search", q="cat", n=30)[1]["hits"] == before["hits"]
    assert get(served, "search", q="cat", n=30)[1]["marks"] is None
    assert get(served, "search", q="cat", n=30, **marks)[1]["hits"] == marked["hits"] != other["hits"]
    assert get(served, "telling", q="cat")[0] == 400  # nothing was marked by this visitor
    assert get(served, "concepts")[1] == {"concepts": [], "broken": [], "keeps": False}


def test_marks_of_images_that_are_gone_are_counted(served: Served) -> None:
    told = get(served, "search", q="dog", n=5, right=["nobody", "99999"])[1]
    assert told["marks"] == {"right": 0, "wrong": 0, "gone": 2, "words": ""}
    assert [hit["id"] for hit in told["hits"]] == [hit["id"] for hit in get(served, "search", q="dog", n=5)[1]["hits"]]
    status, told = get(served, "search", q="dog", right=list(range(1, 31)) * 70)  # each of 30 images is marked 70 times
    assert status == 400
    assert "2,100 marks, expected at most 2,000" in told["error"]


def test_several_things_at_once_with_evidence_for_each(served: Served) -> None:
    searcher = served.library.searcher(served.library.default)
    told = get(served, "search", q="dog", all="cat", none="person", n=5)[1]
    found = find_combination(searcher, Combination(("dog", "cat"), (), ("person",)), 5)
    assert [hit["id"] for hit in told["hits"]] == [hit.image.id for hit in found.hits]
    assert told["label"] == "dog and cat, without person"
    assert [each["role"] for each in told["hits"][0]["things"]] == ["all", "all", "none"]
    seen = get(served, "evidence", q="dog", all="cat", none="person", id=told["hits"][0]["id"])[1]
    assert [each["text"] for each in seen["things"]] == ["dog", "cat"]
    assert len({each["colour"] for each in seen["things"]}) == 2
    assert seen["heat"].startswith("data:image/jpeg")
    # marks say what the first of the things means
    marks = {"right": told["hits"][4]["id"], "wrong": told["hits"][0]["id"]}
    taught = get(served, "search", q="dog", all="cat", none="person", n=5, **marks)[1]
    assert [hit["things"][0] for hit in taught["hits"]] != [hit["things"][0] for hit in told["hits"]]


def test_a_concept_is_kept_and_searched_for_and_only_by_its_owner(served: Served, tmp_path: Path) -> None:
    held = served.library
    library = Library(weights="random", concepts=tmp_path / "concepts")
    for name in held.names:
        library.add_opened(held.searcher(name))
    app = build_app(library, own=True)
    url = serve(app, port=free_port())

    def at(route: str, **params: Any) -> tuple[int, Any]:
        status, body = ask(url, f"/for/{route}?{urlencode(params, doseq=True)}")
        return status, json.loads(body) if route != "compare" else body.decode()

    def post(headers: dict[str, str] | None = None, **params: Any) -> tuple[int, Any]:
        status, body = ask(url, "/for/keep", urlencode(params, doseq=True).encode(), headers or {"x-none": ""})
        return status, json.loads(body)

    try:
        hits = at("search", q="dog", n=30)[1]["hits"]
        marks = {"right": [hits[2]["id"], hits[20]["id"]], "wrong": hits[0]["id"]}
        assert ask(served.url, "/for/keep", b"name=x&q=dog")[0] in (404, 405)  # a page that others reach
        assert post({"origin": "http://evil.com"}, name="mine", q="dog", **marks)[0] == 403
        assert post(name="mine", q="dog", **marks) == (200, {"name": "mine", "right": 2, "wrong": 1})
        status, told = post(name="mine", q="dog", **marks)
        assert (status, "is there already" in told["error"]) == (400, True)
        assert str(tmp_path) not in told["error"]
        assert post(name="../x", q="dog")[0] == 400
        assert at("concepts")[1]["keeps"]
        assert [each["name"] for each in at("concepts")[1]["concepts"]] == ["mine"]
        by_concept = at("search", q="concept:mine", n=30)[1]
        assert by_concept["total"] == 30  # of a concept, those that taught it are found too
        assert by_concept["marks"]["right"] == 2
        whole = at("everything", q="dog", n=30, **marks)[1]["hits"]
        assert at("everything", q="concept:mine", n=30)[1]["hits"] == whole
        more = at("search", q="concept:mine", n=30, wrong=hits[2]["id"])[1]  # what is marked now goes before
        assert (more["marks"]["right"], more["marks"]["wrong"]) == (1, 2)
        assert post(name="mine", q="concept:mine", wrong=hits[5]["id"], replace="1")[1]["wrong"] == 2
        assert "concept:mine" in at("compare", q="concept:mine")[1]
        assert at("search", q="umbrella", all="concept:mine", n=3)[0] == 200
        status, told = at("search", q="concept:none")
        assert (status, told["error"]) == (400, "no concept is called 'none' in …, there are: mine")
    finally:
        end_page(app)
        del app
        gc.collect()


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
        ("everything", {"q": "dog"}, "mark some right and wrong"),
        ("everything.csv", {"q": "dog"}, "mark some right and wrong"),
        ("telling", {"q": "dog"}, "mark an image right or wrong first"),
        ("search", {"q": "concept:none"}, "no folder of concepts is known here"),
        ("search", {"like": "1", "none": "dog"}, "asked for in words"),
        ("search", {"q": "dog", "all": ["a"] * 10}, "ask for at most 10 at once"),
        ("search", {"q": "dog", "right": "1", "wrong": "1"}, "marked right and wrong"),
        ("picture", {"id": "nobody"}, "no image of the index"),
        ("evidence", {"q": "dog", "id": "../../etc/passwd"}, "no image of the index"),
        ("parts", {"id": "../../etc/passwd"}, "no image of the index"),
        ("search", {"q": "dog", "right-part": "x@1"}, "the part of right-part is 'x': expected a whole number"),
        ("compare", {"q": ""}, "Type what you are looking for"),
    ],
)
def test_what_makes_no_sense_is_one_line(served: Served, route: str, params: dict[str, Any], said: str) -> None:
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


def test_a_search_that_waits_for_a_network_says_so(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    searcher = served.library.searcher(served.library.default)
    assert get(served, "waiting", q="dog") == (200, {"why": ""})

    def not_loaded(weights_sha256: str) -> None:
        encoder = LazyMethod(replace(searcher.encoder.info, weights_sha256=weights_sha256), lambda: searcher.method)
        monkeypatch.setattr(served.library, "searcher", lambda _: replace(searcher, encoder=encoder))

    not_loaded("of other weights")
    status, said = get(served, "waiting", q="dog")
    assert (status, said["why"][:52]) == (200, "Loading RN-mini, the network that reads the query: o")
    not_loaded(load_clip_resnet("RN-mini", device="cpu").weights_sha256)  # these texts are read without it
    assert get(served, "waiting", q="dog") == (200, {"why": ""})
    assert "Loading RN-mini" in get(served, "waiting", upload="a/b.jpg")[1]["why"]
