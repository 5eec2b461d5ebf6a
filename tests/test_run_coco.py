"""`make run-coco`, line by line as make would run it, with a small COCO on a server of this machine."""

import functools
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from for_app.views.leaderboard import read_boards
from for_eval.__main__ import main
from for_eval.download.sources import SOURCES, Archive, PublishedSplit, Source
from for_model.data.miniscenes.scenes import write_scenes
from for_search.library.library import Library
from tests.helpers.paths import REPOSITORY
from tests.helpers.patience import PATIENCE_S

pytestmark = pytest.mark.slow
N_IMAGES = 12
PYTHON = ".venv/bin/python"


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Some drawn scenes, published as COCO's validation images are."""
    write_scenes(tmp_path / "scenes", {"val": N_IMAGES})
    content = json.loads((tmp_path / "scenes" / "annotations" / "instances_val.json").read_text())
    for image in content["images"]:
        image["coco_url"] = f"http://images/val2017/{image['file_name']}"
    folder = tmp_path / "published"
    folder.mkdir()
    with zipfile.ZipFile(folder / "annotations.zip", "w") as archive:
        archive.writestr("annotations/instances_val2017.json", json.dumps(content))
    with zipfile.ZipFile(folder / "val2017.zip", "w") as archive:
        for image in content["images"]:
            archive.write(tmp_path / "scenes" / "val" / image["file_name"], f"val2017/{image['file_name']}")
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()

        def offer(name: str, part: str, holds: str, n_files: int) -> Archive:
            body = (folder / name).read_bytes()
            url = f"http://127.0.0.1:{server.server_address[1]}/{name}"
            return Archive(url, len(body), hashlib.sha256(body).hexdigest(), part, ("val2017",), (holds,), n_files)  # type: ignore[arg-type]

        archives = (
            offer("annotations.zip", "annotations", "annotations/instances_val2017.json", 1),
            offer("val2017.zip", "images", "val2017/", N_IMAGES),
        )
        splits = (PublishedSplit("val2017", N_IMAGES, len(content["annotations"])),)
        n_categories = len(content["categories"])
        source = Source("coco", "COCO", "http://page", "none", "coco", splits, n_categories, archives)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setitem(SOURCES, "coco", source)
        yield
        server.shutdown()
        thread.join()


def recipe(coco: Path) -> list[str]:
    """What `make run-coco` would run, without the installation."""
    model = "MODEL=--backbone RN-mini --weights random"
    asked = ["make", "-n", "--no-print-directory", "run-coco", f"COCO={coco}", model, "ARGS="]
    # under `make test ARGS=...` the outer make would tell this one how to print, and its ARGS
    outer = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES")
    environment = {name: value for name, value in os.environ.items() if name not in outer}
    told = subprocess.run(asked, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True).stdout
    lines = told.replace("\\\n", "").splitlines()
    return lines[next(n for n, line in enumerate(lines) if " fetch " in line) :]


def test_one_command_brings_the_papers_world(published: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("make") is None:
        pytest.fail("needs make")
    coco = tmp_path / "a coco"
    fetch, leaderboard, index_and_open = recipe(coco)
    monkeypatch.chdir(tmp_path)
    for line in (fetch, leaderboard):
        python, _, module, *arguments = shlex.split(line)
        assert (python, module) == (PYTHON, "for_eval")
        assert main(arguments) == 0
    said = index_and_open.replace(f"exec {PYTHON} app.py", "echo ready").replace(PYTHON, shlex.quote(sys.executable))
    done = subprocess.run(["bash", "-c", said], cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    _, _, indexes = done.stdout.rpartition("ready ")
    library = Library(weights="random")
    for each in indexes.strip().split("--index ")[1:]:
        library.add(Path(each.strip()))
    assert [name.rpartition(": ")[2] for name in library.names] == ["Cluster-CLIP 8", "Dense-CLIP", "CLIP"]
    assert len(library.siblings(library.default)) == 2  # Compare has all three
    assert library.labels(library.default) is not None
    board = read_boards(tmp_path / "leaderboards")[0]
    assert (board.dataset, len(board.ours)) == ("coco", 3)
