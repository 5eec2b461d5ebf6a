"""The API of a page that is served for real, called as docs/api.md says."""

import gc
import json
import urllib.request
from urllib.error import HTTPError

import pytest
from gradio_client import Client, handle_file

from for_app.page import build_app
from for_app.serve import serve
from for_app.server.users import Users
from for_search import api
from tests.helpers.pages import Served
from tests.helpers.paths import REPOSITORY
from tests.helpers.patience import PATIENCE_S
from tests.helpers.ports import free_port
from tests.helpers.serving import end_page

pytestmark = [pytest.mark.slow, pytest.mark.gradio]

DOCUMENT = REPOSITORY / "docs" / "api.md"


@pytest.fixture(scope="module")
def client(served: Served) -> Client:
    return Client(served.url, verbose=False)


def without_times(answer: dict) -> dict:
    methods = [without_times(each) for each in answer.get("methods", ())]
    return {name: methods or value for name, value in answer.items() if name != "latency_ms"}


def test_endpoints_answer_as_the_functions_do(served: Served, client: Client) -> None:
    library, other = served.library, served.library.names[2]
    image = library.searcher(other).index.images[3]
    expected = {
        ("/search", "umbrella", 5): api.search(library, "umbrella", 5),
        ("/search", "umbrella", 5, other): api.search(library, "umbrella", 5, other),
        ("/search_like", str(image.id), 5, other): api.search_image(library, image.id, 5, other),
        ("/search_like", str(image.id), 5, other, 7): api.search_image(library, image.id, 5, other, 7),
        ("/compare", "umbrella", 5): api.compare(library, "umbrella", 5),
        ("/evidence", "umbrella", str(image.id), other): api.evidence(library, "umbrella", image.id, other),
        ("/stats", other): api.stats(library, other),
    }
    for (name, *arguments), wanted in expected.items():
        answer = client.predict(*arguments, api_name=name)
        assert without_times(answer) == json.loads(json.dumps(without_times(wanted)))
        assert str(served.folder) not in json.dumps(answer)


def test_an_image_is_uploaded(served: Served, client: Client) -> None:
    searcher = served.library.searcher(served.library.default)
    image = searcher.index.images[4]
    answer = client.predict(handle_file(searcher.image_path(image)), 3, api_name="/search_image")
    assert [hit["rank"] for hit in answer["hits"]] == [1, 2, 3]
    assert answer["hits"][0]["id"] == image.id


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (("/search", "", 5), "empty"),
        (("/search", "umbrella", 0), "k is 0"),
        (("/search", "umbrella", 10**6), "ask for 1 to 1000"),
        (("/search", "umbrella", 5, "nobody"), "no index is called 'nobody'"),
        (("/search_like", "nobody", 5), "no image of the index"),
        (("/evidence", "umbrella", "../../etc/passwd"), "no image of the index"),
        (("/compare", " ", 5), "empty"),
    ],
)
def test_what_makes_no_sense_is_one_line(served: Served, client: Client, call: tuple, said: str) -> None:
    with pytest.raises(Exception, match=said) as error:
        client.predict(*call[1:], api_name=call[0])
    assert "\n" not in str(error.value).strip()
    assert client.predict("umbrella", 1, api_name="/search")["hits"]  # and the page lives on


def test_a_password_is_asked_for(served: Served) -> None:
    app = build_app(served.library)
    url = serve(app, port=free_port(), auth=Users.only("ann", "secret"))
    try:
        request = urllib.request.Request(f"{url}gradio_api/call/search", b'{"data": ["dog"]}')
        with pytest.raises(HTTPError) as refused:
            urllib.request.urlopen(request, timeout=PATIENCE_S)
        assert refused.value.code == 401
        client = Client(url, auth=("ann", "secret"), verbose=False)
        assert client.predict("dog", 1, api_name="/search")["hits"]
    finally:
        end_page(app)
        del app
        gc.collect()  # here, where what gradio leaves to the collector may warn


def test_folders_are_indexed_only_where_that_is_allowed(served: Served) -> None:
    for allowed in (True, False):
        config = build_app(served.library, allow_build=allowed).get_config_file()
        buttons = [part["props"].get("elem_id") for part in config["components"]]
        assert ("build" in buttons) == allowed
        events = [event["api_name"] for event in config["dependencies"]]
        assert ("begin" in events) == allowed


def test_only_what_is_documented_can_be_called(served: Served, client: Client) -> None:
    named = set(client.view_api(return_format="dict", print_info=False)["named_endpoints"])  # type: ignore[index]
    text = DOCUMENT.read_text(encoding="utf-8")
    assert {name for name in named if f"## `{name[1:]}`" not in text} == set()
    assert {"/search", "/search_image", "/search_like", "/compare", "/evidence", "/stats"} <= named
