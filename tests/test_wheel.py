"""The wheel: all that FOR needs is in it, and it works where there is no repository."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.helpers.paths import REPOSITORY

PACKAGES = ("for_model", "for_search", "for_eval", "for_app")
COMMANDS = ("for-model", "for-search", "for-eval", "for-app")

pytestmark = pytest.mark.slow

# All steps in one process: torch takes seconds to import. The built-in scenes are made as the first start makes them,
# but for their number.
_FIRST_START = """
import json, sys
import for_model, for_search, for_eval, for_app
for package in (for_model, for_search, for_eval, for_app):
    assert package.__file__.startswith(sys.prefix), package.__file__
from for_app.routes.showing import STATIC
from for_app.style import HEAD
from for_model.data.miniscenes import scenes
from for_search import api
from for_search.library.library import Library
assert 'src="for/static/main.js"' in HEAD
assert (STATIC / "main.js").is_file() and (STATIC / "page.css").is_file()
scenes.DEFAULT_COUNTS = {"val": 20}
library = Library.built_in()
for index in library.names:
    print(json.dumps({"index": index, **api.search(library, "umbrella", 3, index)}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, because building leaves folders in the source that the next wheel would take files from."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "requirements.in"):
        shutil.copy(REPOSITORY / name, source)
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(out)!r})"
    done = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (made,) = out.glob("for_retrieval-*.whl")
    return made


def _environment(folder: Path, wheel: Path) -> Path:
    """A new environment with the wheel, and with the packages that FOR needs from this one; returns its `bin`.

    Packages that are installed to be edited, as FOR is here, don't come along: their `.pth` files are not followed.
    """
    venv.create(folder, with_pip=False)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    (site / "needs.pth").write_text(sysconfig.get_path("purelib"))
    python = folder / "bin" / "python"
    install = [*(sys.executable, "-m", "pip", "--python", str(python), "install"), "--no-deps", "--no-index"]
    subprocess.run([*install, "--quiet", "--no-warn-script-location", str(wheel)], check=True)
    return folder / "bin"


def test_every_file_of_the_packages_is_in_the_wheel(wheel: Path) -> None:
    there = {path for name in PACKAGES for path in (REPOSITORY / name).rglob("*") if path.is_file()}
    expected = {str(path.relative_to(REPOSITORY)) for path in there if "__pycache__" not in path.parts}
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        needs = archive.read(metadata).decode()
    assert packed == expected
    assert "Requires-Dist: torch" in needs


def test_an_installed_wheel_searches_the_built_in_scenes(wheel: Path, tmp_path: Path) -> None:
    commands = _environment(tmp_path / "environment", wheel)
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    variables["FOR_CACHE"] = str(tmp_path / "cache")

    def run(*command: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)

    for command in COMMANDS:
        helped = run(str(commands / command), "--help")
        assert helped.returncode == 0, helped.stderr
        assert f"usage: python -m {command.replace('-', '_')}" in helped.stdout
    done = run(str(commands / "python"), "-c", _FIRST_START)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert {answer["index"].partition(": ")[2] for answer in answers} >= {"CLIP", "Cluster-CLIP 8", "FOR 8", "FOR+ 8"}
    for answer in answers:
        assert [hit["rank"] for hit in answer["hits"]] == [1, 2, 3]
