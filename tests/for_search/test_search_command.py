"""`python -m for_search search`: a text, several things at once, an image and a text."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from for_model.methods.build import build_method
from for_search.__main__ import main
from for_search.index.index_files import build_index
from for_search.query import searcher as searching
from for_search.query.searcher import Searcher
from tests.helpers.paths import REPOSITORY
from tests.helpers.small_world import holds, make_world
from tests.helpers.store_making import change_manifest, make_store, random_units


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Searcher:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def _opens_the_world(world: Searcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world.index.path.parent)
    monkeypatch.setattr(searching, "searcher_of", lambda *_, **__: world)


def search(*arguments: str) -> int:
    return main(["search", "index", *arguments])


def test_a_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert search("dog", "-k", "12") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "10 good matches"
    assert lines[11] == "----  less sure"


@pytest.mark.parametrize("text", ["asdfgh", "quantum bureaucracy"])
def test_nonsense(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert search(text) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["no good matches", "----  less sure"]
    assert len(lines) == 12


def test_several_things(capsys: pytest.CaptureFixture[str]) -> None:
    assert search("--all", "dog", "umbrella", "--none", "bus", "-k", "3", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    for hit in found["hits"]:
        image = (hit["id"] - 10) // 3
        assert holds(image, "dog")
        assert holds(image, "umbrella")
        assert not holds(image, "bus")
    assert search("--any", "dog", "bus", "-k", "2") == 0
    assert "good matches" in capsys.readouterr().out


def test_like_an_image_but(capsys: pytest.CaptureFixture[str]) -> None:
    assert search("umbrella", "--like", "10", "--weight", "1", "-k", "5", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["query"] == "like image 10, umbrella"
    assert all(holds((hit["id"] - 10) // 3, "umbrella") for hit in found["hits"])
    assert "probability" not in found["hits"][0]
    assert search("--like", "10", "-k", "1", "--json") == 0
    assert json.loads(capsys.readouterr().out)["hits"][0]["id"] == 10


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("dog", "--all", "bus"),
        ("--all", "dog", "--like", "10"),
        ("--none", "dog"),
        ("--like", "11"),
        ("red", "--like", "10", "--weight", "2"),
    ],
)
def test_what_makes_no_sense(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert search(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_a_wrong_condition_is_told_before_the_network_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(searching, "searcher_of", lambda *_, **__: pytest.fail("loaded"))
    assert search("dog", "--where", "colour = 1") == 2
    error = capsys.readouterr().err
    assert "can't be understood" in error
    assert error.count("\n") == 1


def test_like_a_file(world: Searcher, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file is decoded; that the world's method can't look at pixels shows that it got there."""
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    with pytest.raises(NotImplementedError):
        search("--like", str(tmp_path / "photo.png"))


@pytest.mark.slow
def test_it_imports_no_torch(tmp_path: Path) -> None:
    """Of weights that come with FOR; neither does it import what only learns from marks."""
    method = build_method("for+", device="cpu").info
    store = make_store(tmp_path / "store", random_units((40, method.n_embeddings, method.dim)))
    change_manifest(store.path, lambda manifest: manifest.update(method=method.to_json()))
    build_index(store.path, tmp_path / "index")
    code = (
        "import sys; from for_search.__main__ import main; main(['search', 'index', 'a dog', '-k', '1']);"
        "print([name for name in ('torch', 'open_clip', 'scipy', 'pandas', 'gradio') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert "match" in done.stdout.splitlines()[0]
