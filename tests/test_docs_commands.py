"""Every command of README and docs runs, as it stands but smaller; which ones don't run here, and why, is said below.

A page's commands run one after the other, as its reader would, in a folder with what the page takes for granted: a few
drawings as photographs, a small nuImages, MiniScenes of some scenes, the repository's configs and leaderboards.
"""

import importlib
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from for_model.data.miniscenes import scenes as miniscenes
from for_model.data.miniscenes.concepts import Split
from tests.helpers.nuimages_making import write_nuimages
from tests.helpers.paths import REPOSITORY

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]

# Commands that don't run here: the first pattern that is found in a command gives the reason.
NOT_RUN = {
    r"\b(A\.json|DIR|DATASET|TABLE|HEAD|FOLDER)\b": "has names of the reader's own in it",
    r"app\.py(?! --help)": "serves until it is stopped: tests/test_app.py starts it",
    r"--server": "asks a running page: tests/for_app/test_remote_search.py starts one",
    r"photo-lite|photo_study": "needs requirements-photos.txt, and minutes: tests/test_photographs.py",
    r"tests\.screenshot": "needs a browser: tests/test_photographs.py takes a picture",
    r"tests\.benchmarks|pytest tests/benchmarks": "takes minutes: tests/test_benchmarks.py imports it",
    r"tests\.attack": "takes minutes: tests/test_attacks.py and tests/for_app/server/test_attacks.py are short",
    r"for_app\.server\.users": "asks for a password: tests/for_app/server/test_users.py answers it",
    r"for_eval refine": "takes minutes: tests/for_eval/refinement/test_simulated_user.py has its own",
    r"for_eval loop (?!--help)": "takes minutes: tests/for_eval/refinement/test_loop.py runs it on some scenes",
    r"for_model scenes .*--dev 600": "draws for a minute, for the command that follows it, which isn't run here either",
    r"^torchrun": "needs several GPUs: tests/for_model/training/test_train.py trains with two processes",
    r"for-coco\.toml|for-plus-flickr8k\.toml": "needs a download: tests/for_model/training/test_config.py reads it",
    r"pretrain-mini": "takes an hour: tests/for_model/training/test_pretrain.py runs it on some scenes",
    r"for_eval tables": "takes hours: tests/for_eval/leaderboard/test_run_tables.py runs it on some scenes",
    r"leaderboard --dataset (coco|lvis) ": "needs a download: tests/for_eval/leaderboard/test_evaluate.py has its own",
    r"from_pretrained": "needs a download",
    r"--ray\b": "needs a cluster: tests/for_search/store/test_ray_workers.py starts one",
    r"s3://": "needs a bucket: tests/for_search/store/test_mirror.py has folders behind URLs",
    r"--engine qdrant": "needs a server: tests/for_search/index/qdrant has its own",
    r"--engine gpu": "needs a GPU: tests/for_search/index/test_segments.py has the processor in its place",
    r"for_eval (calibration|combinations)": "takes minutes: tests/for_eval/queries runs both on a world of vectors",
    r"for_eval sketches": "takes minutes: tests/for_eval/refinement/test_sketch_table.py runs it on a world of vectors",
    r"for_model scenes --out scenes --train 8000": "takes a minute",
}
# What is made smaller: what is found in a command, and what stands there instead.
SMALLER = {
    r"--backbone RN50 --image-size 448": "--backbone RN-mini --image-size 96",  # RN50's weights need a download
    r"(for_eval fetch (?!.*--check).*)": r"\1 --dry-run",
    r"(for_eval compare .*)": r"\1 --resamples 5",
    r"(for_model train .*)": r"\1 --smoke",
    r"(for_search sketch-encoder .*)": r"\1 --steps 2",
}
# The exit code of a command that doesn't end with 0: no COCO is there, and few drawings don't tell what a score means.
FAILS = {r"--check$": 2, r"search index --(all|any)": 2}

SCENES: dict[Split, int] = {"train": 40, "dev": 20, "val": 20}

_BLOCK = re.compile(r"^ *```\w*\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"`([^`]+)`")
_COMMAND = re.compile(r"(?:\.venv/bin/)?((?:python (?:-m|-c|app\.py)|torchrun|make) ?.*?)(?=; done|$)")


def commands_of(text: str) -> list[str]:
    """The commands of a page in their order: the lines of its blocks, what their comments name, and code in a line."""
    found = []
    for block in _BLOCK.finditer(text):
        for line in re.sub(r"\s*\\\n\s*", " ", block[1]).splitlines():
            code, _, comment = line.partition("# ")
            parts = [code, comment if "python" in comment else ""]  # make is a verb too, and stays alone
            found += [match[1].strip() for part in parts if (match := _COMMAND.search(part.strip()))]
    for code in _INLINE.findall(_BLOCK.sub("", text)):
        if match := _COMMAND.match(" ".join(code.split())):
            found.append(match[1].strip())
    return found


def reason_not_to_run(command: str) -> str | None:
    return next((reason for pattern, reason in NOT_RUN.items() if re.search(pattern, command)), None)


def smaller(command: str) -> str:
    for pattern, replacement in SMALLER.items():
        command = re.sub(pattern, replacement, command)
    return command


def expanded(words: Sequence[str]) -> list[str]:
    """Words with `{a,b}` as bash expands it, which is not in quotes in any of the commands."""
    found = []
    for word in words:
        start, brace, rest = word.partition("{")
        choices, _, end = rest.partition("}")
        found += [start + each + end for each in choices.split(",")] if brace and "," in choices else [word]
    return found


def run(command: str) -> int:
    """Run a command of ours in this process. Returns its exit code."""
    words = expanded(shlex.split(command))[1:]  # without `python`
    name, arguments = ("for_app", words[1:]) if words[0] == "app.py" else (words[1], words[2:])
    module = importlib.import_module(f"{name}.__main__")
    try:
        return int(module.main(arguments) or 0)
    except SystemExit as end:
        return int(end.code or 0)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FOR's cache, shared by the pages."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def reader(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of somebody who reads docs: where commands run, and which `~` stands for."""
    miniscenes.write_scenes(tmp_path / "drawn", {"val": 8}, size=96)
    (tmp_path / "drawn" / "val").rename(tmp_path / "Pictures")
    shutil.copy(tmp_path / "Pictures" / "000000000001.jpg", tmp_path / "PHOTO.jpg")
    (tmp_path / "albums.csv").write_text("path,rating\n000000000001.jpg,5\nnobody.jpg,1\n")
    write_nuimages(tmp_path / "nuimages", train=[["vehicle.car"], ["vehicle.car", "animal"]])
    shutil.copytree(REPOSITORY / "leaderboards", tmp_path / "leaderboards")
    (tmp_path / "docs").mkdir()
    (tmp_path / "marks.json").write_text('[{"image": 1, "right": true}, {"image": 2, "right": false}]')
    rows = [f"{path.name},{number % 6}" for number, path in enumerate(sorted((tmp_path / "Pictures").iterdir()))]
    (tmp_path / "albums.csv").write_text("\n".join(["path,rating", *rows]))
    (tmp_path / "for_model").symlink_to(REPOSITORY / "for_model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FOR_CACHE", str(cache))
    monkeypatch.setattr(miniscenes, "DEFAULT_COUNTS", SCENES)
    return tmp_path


def ours(page: Path) -> list[str]:
    """The commands of a page that run here."""
    found = [command for command in commands_of(page.read_text(encoding="utf-8")) if not command.startswith("make")]
    return [command for command in found if reason_not_to_run(command) is None]


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if ours(page)], ids=lambda page: page.stem)
def test_the_commands_of_a_page_run(page: Path, reader: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ours(page):
        expected = next((code for pattern, code in FAILS.items() if re.search(pattern, command)), 0)
        assert run(smaller(command)) == expected, f"{command}\n{capsys.readouterr().err}"


def test_what_make_is_asked_for_is_in_the_makefile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is made here, only asked for: each of them installs, serves, or runs what is tested elsewhere."""
    asked = {command for page in PAGES for command in commands_of(page.read_text(encoding="utf-8"))}
    asked = {command for command in asked if re.match(r"make\b", command)}
    assert len(asked) > 8
    for variable in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):  # of the `make test` that this test may be a part of
        monkeypatch.delenv(variable, raising=False)
    for command in sorted(asked):
        program, *arguments = shlex.split(command)
        done = subprocess.run(
            [program, "-n", "PYTHON=python3", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"


def test_no_reason_is_left_over() -> None:
    """Each reason not to run something is still needed, as is each change."""
    everything = [command for page in PAGES for command in commands_of(page.read_text(encoding="utf-8"))]
    reasons = {reason_not_to_run(command) for command in everything}
    assert {*NOT_RUN.values()} <= reasons
    for pattern in (*SMALLER, *FAILS):
        assert any(re.search(pattern, command) for command in everything), pattern


def test_commands_are_found() -> None:
    text = """
Run `python -m for_eval table` or
`make run ARGS="--share"`. `for_model/a.py` is no command.

```
.venv/bin/python -m a b \\
    --c d   # e
python app.py --index i     # or: .venv/bin/python -m x y "z"
app.py    starts
make test   # and so make sense
for s in 0 1; do python -m q s=$s; done
```
"""
    assert commands_of(text) == [
        "python -m a b --c d",
        "python app.py --index i",
        'python -m x y "z"',
        "make test",
        "python -m q s=$s",
        "python -m for_eval table",
        'make run ARGS="--share"',
    ]
    assert expanded(["a_{b,c}.json", "{d}"]) == ["a_b.json", "a_c.json", "{d}"]


def test_a_command_that_breaks_is_seen(reader: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("python -m for_search embed --dataset folder --root ~/Photos --out store") == 2
    assert run("python -m for_search serch index dog") == 2
    assert run("python -m for_eval table --with-papers") == 2
    capsys.readouterr()
