"""What README and docs name exists: files, links, commands; and the example of a method of one's own runs."""

import contextlib
import importlib
import io
import re
import sys
from pathlib import Path

import pytest
import torch

from for_model.methods.build import build_method
from for_model.methods.clip_method import ClipMethod
from for_model.methods.registry import METHODS, MethodEntry
from tests.helpers.paths import REPOSITORY

DOCS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
_PATH = re.compile(r"(?<![\w/.~-])((?:for_\w+|tests|docs)/[\w./-]+\.(?:py|md|json|toml|png|safetensors))")
_BARE = re.compile(r"`(\w+\.py)`")
_LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
_COMMAND = re.compile(r"python -m ((?:for_|tests)\w*(?:\.\w+)*)(?: ([a-z][a-z-]*))?")
_COMMANDS = {"for_model", "for_search", "for_eval"}  # the packages whose first argument is a command
_STANDS_FOR_A_NAME = re.compile(r"[A-Z]{4,}")  # `for-DATASET.toml`, `NAME.py`
_THE_EXAMPLE = "for_model/methods/halves.py"  # of architecture.md, which isn't there


def missing(text: str, folder: Path) -> list[str]:
    """What a page of `folder` names and isn't there: files of the repository, links, and `python -m` commands."""
    paths = [path for path in _PATH.findall(text) if path != _THE_EXAMPLE and not _STANDS_FOR_A_NAME.search(path)]
    found = [path for path in paths if not (REPOSITORY / path).exists()]
    found += [link for link in _LINK.findall(text) if "://" not in link and not (folder / link).exists()]
    for package, command in set(_COMMAND.findall(text)):
        if not knows(package, command if package in _COMMANDS else ""):
            found.append(f"python -m {package} {command}")
    return found


def knows(package: str, command: str) -> bool:
    """Whether `python -m PACKAGE` can be run, and its parser has the command."""
    name = f"{package}.__main__" if (REPOSITORY / package.replace(".", "/")).is_dir() else package
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError:
        return False
    if not command:
        return True
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            module.main([command, "--help"])
        except SystemExit as end:
            return end.code == 0
    return False


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_what_a_page_names_exists(page: Path) -> None:
    assert missing(page.read_text(encoding="utf-8"), page.parent) == []


@pytest.mark.parametrize("page", DOCS[1:], ids=lambda page: page.name)
def test_a_module_without_its_folder_is_one_of_ours(page: Path) -> None:
    modules = {path.name for folder in ("for_*", "tests") for path in REPOSITORY.glob(f"{folder}/**/*.py")} | {"app.py"}
    assert set(_BARE.findall(page.read_text(encoding="utf-8"))) - modules == set()


def test_what_is_missing_is_seen() -> None:
    text = (
        "`for_model/sum_head.py`, `for_model/text.py`, [gone](gone.md), [here](api.md), `for_model/heads/NAME.py`, "
        "`python -m for_eval tabels --only main`, `python -m for_eval tables`, `python -m for_search.nothing`, "
        "`python -m for_eval.photo_study --root x`"
    )
    assert sorted(missing(text, REPOSITORY / "docs")) == [
        "for_model/sum_head.py",
        "gone.md",
        "python -m for_eval tabels",
        "python -m for_search.nothing ",
    ]


def test_the_example_of_a_method_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    source, entry = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "halves.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    entry = entry.strip().replace("for_model.methods.halves", "halves")
    monkeypatch.setitem(METHODS, "halves", eval(entry, {"MethodEntry": MethodEntry}))
    try:
        method = build_method("halves", "RN-mini", "random", device="cpu")
    finally:
        sys.modules.pop("halves", None)
    assert isinstance(method, ClipMethod)
    X = torch.rand(2, 25, method.backbone.width, generator=torch.Generator().manual_seed(0))
    changed = X.clone()
    changed[:, :12] = 0  # the upper half
    Y, found = method.encode_features(X), method.encode_features(changed)
    assert Y.shape == (2, 2, method.info.dim)
    torch.testing.assert_close(found[:, 1], Y[:, 1])
    assert not torch.allclose(found[:, 0], Y[:, 0], atol=1e-3)
