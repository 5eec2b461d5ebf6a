"""What a start imports, and above all what it doesn't: one process, looked at step by step, as imports take seconds."""

import json
import subprocess
import sys
from typing import Any

import pytest

from for_app.examples import EXAMPLES
from for_model.data.miniscenes import scenes as miniscenes
from for_search.library.library import Library
from tests.helpers.paths import REPOSITORY

pytestmark = pytest.mark.slow

N_SCENES = 20
_STEPS = """
import json, sys
from importlib import import_module

WATCHED = ("torch", "open_clip", "faiss", "pycocotools", "matplotlib", "timm", "tokenizers", "transformers")
WATCHED += ("torch._dynamo", "sympy")
steps = {}

def look(step, found=None):
    steps[step] = {"imported": sorted({*WATCHED} & {*sys.modules}), "found": found}

def modules(*names):
    for name in names:
        import_module(name)

modules("for_model.methods.registry", "for_model.data.registry")
modules(*(f"{package}.__main__" for package in ("for_model", "for_search", "for_eval", "for_app")))
look("names and --help")
modules("for_model.training.config")
look("settings of a training")

from for_model.data.miniscenes import scenes as miniscenes
miniscenes.DEFAULT_COUNTS = {"val": int(sys.argv[1])}
from for_app.answers import answer
from for_app.examples import EXAMPLES
from for_app.page import build_app
from for_app.question import Question
from for_search.library.library import Library
texts = EXAMPLES["miniscenes"]
library = Library.built_in(texts=texts)
build_app(library, allow_build=True)
searcher = library.searcher(library.default)

def best():
    shown = answer(Question(searcher, searcher.text_query(texts[0])), 0, 5)
    return [[hit.image.id for hit in shown.hits], "encoded" in shown.about["details"]]

look("first answer", best())
searcher.method
look("encoded answer", best())
modules("for_model.backbones.photo_lite", "for_model.methods.build", "for_model.methods.transformers_encoders")
look("all that methods are made of")
print(json.dumps(steps))
"""


@pytest.fixture(scope="module")
def first_start() -> list[Any]:
    """The ids of the best scenes for the first example, of a small MiniScenes whose index this start has made."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(miniscenes, "DEFAULT_COUNTS", {"val": N_SCENES})
        library = Library.built_in(texts=EXAMPLES["miniscenes"])
        return [hit.image.id for hit in library.searcher(library.default).search(EXAMPLES["miniscenes"][0], 5).hits]


@pytest.fixture(scope="module")
def steps(first_start: list[Any]) -> dict[str, Any]:
    """What a second start has imported and found, step by step."""
    command = [sys.executable, "-c", _STEPS, str(N_SCENES)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_titles_choices_help_and_settings_need_no_network(steps: dict[str, Any]) -> None:
    assert steps["names and --help"]["imported"] == []
    assert steps["settings of a training"]["imported"] == []


def test_the_first_answer_of_a_second_start_loads_no_network(steps: dict[str, Any], first_start: list[Any]) -> None:
    assert steps["first answer"]["found"] == [first_start, False]
    assert not {"torch", "open_clip", "matplotlib"} & {*steps["first answer"]["imported"]}


def test_encoding_a_text_imports_torch_and_open_clip_but_no_compiler(
    steps: dict[str, Any], first_start: list[Any]
) -> None:
    """torch's compiler, which sympy is a part of, and the models of timm and transformers take longer than torch."""
    assert steps["encoded answer"]["found"] == [first_start, True]
    assert {"torch", "open_clip"} <= {*steps["encoded answer"]["imported"]}
    assert not {"torch._dynamo", "sympy", "timm", "transformers"} & {*steps["encoded answer"]["imported"]}


def test_what_is_optional_is_imported_by_who_uses_it(steps: dict[str, Any]) -> None:
    assert not {"timm", "tokenizers", "transformers"} & {*steps["all that methods are made of"]["imported"]}
