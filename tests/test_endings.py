"""How commands end when a place can't be written, the output is closed or full, Ctrl-C is pressed, or a terminal takes
no UTF-8: one line, and the exit codes of `for_model.cli`."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from for_app.__main__ import main as app_main
from for_eval import commands as eval_commands
from for_eval.__main__ import main as eval_main
from for_model.__main__ import main as model_main
from for_model.cli import run_command
from for_model.data.folder import load_folder
from for_model.data.miniscenes.scenes import write_scenes
from for_model.errors import ForError
from for_model.methods.protocol import LazyMethod
from for_search import embed_command
from for_search.__main__ import main as search_main
from for_search.index.index_files import build_index
from for_search.query import searcher as searching
from for_search.refine.concepts import make_concept, write_concept
from for_search.refine.feedback import feedback_of
from for_search.store.embed import embed
from tests.helpers.fake_method import FakeMethod
from tests.helpers.full_disk import full_disk
from tests.helpers.nuimages_making import write_nuimages
from tests.helpers.paths import REPOSITORY

MAINS: dict[str, Callable[[list[str]], int]] = {
    "for_model": model_main,
    "for_search": search_main,
    "for_eval": eval_main,
    "for_app": app_main,
}
# What a command writes to {out}; the world is a folder of images, its index, a concept and scenes.
WRITERS = {
    "embed": "for_search embed --dataset folder --root images --out {out}",
    "embed and index": "for_search embed --dataset folder --root images --out store --index {out}",
    "index": "for_search index store --out {out}",
    "compact index": "for_search index store --out {out} --engine compact",
    "concept": "for_search concept create new index --text dog --marks marks.json --concepts {out}",
    "export": "for_search concept export kept index --out {out}/concept.csv",
    "export links": "for_search concept export kept index --form links --out {out}",
    "export coco": "for_search concept export kept index --form coco --out {out}",
    "scenes": "for_model scenes --train 0 --dev 0 --val 2 --size 64 --out {out}",
    "train": f"for_model train {REPOSITORY}/for_model/configs/for-miniscenes.toml --out {{out}}",
    "pretrain-mini": "for_model pretrain-mini --work {out} --out w.safetensors",
    "its weights": "for_model pretrain-mini --work work --out {out}/w.safetensors",
    "fetch": "for_eval fetch coco --root {out} --splits val",
    "classes": "for_eval classes --root nuimages --out {out}/classes.toml",
    "leaderboard": "for_eval leaderboard --dataset miniscenes --root scenes --methods clip --out {out}",
    "tables": "for_eval tables --dataset miniscenes --only main --out {out}",
    "calibration": "for_eval calibration --dataset miniscenes --root scenes --methods clip --out {out}",
    "combinations": "for_eval combinations --dataset miniscenes --root scenes --methods clip --out {out}",
    "refine": "for_eval refine --dataset miniscenes --root scenes --methods clip --out {out}",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    (folder / "images").mkdir()
    for i in range(3):
        Image.new("RGB", (40, 40), (80 * i, 255 - 80 * i, 9)).save(folder / "images" / f"schön-{i}.png")
    write_scenes(folder / "scenes", {"val": 3}, size=64)
    write_nuimages(folder / "nuimages")
    (folder / "file").write_text("a file")
    method = FakeMethod()
    embed(load_folder(folder / "images"), method, folder / "store")
    index = build_index(folder / "store", folder / "index")
    marks = [{"image": f"schön-{i}.png", "right": i == 0} for i in range(2)]
    (folder / "marks.json").write_text(json.dumps(marks))
    write_concept(folder / "concepts", make_concept("kept", index, feedback_of(marks), "dog"), False)
    return folder


@pytest.fixture(autouse=True)
def _in_the_world(world: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(world)
    monkeypatch.setattr(embed_command, "method_of", lambda *_: FakeMethod())
    monkeypatch.setattr(eval_commands, "method_of", lambda *_: FakeMethod())
    monkeypatch.setattr(searching, "_method_of", lambda *_: LazyMethod.of(FakeMethod()))
    monkeypatch.setenv("FOR_CACHE", str(tmp_path / "cache"))


def run(command: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """A command's exit code, and what it says on stderr but for the log of what it does."""
    package, *arguments = command.split()
    code = MAINS[package](arguments)
    return code, capsys.readouterr().err


def is_one_line(said: str) -> bool:
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    return len(errors) == 1 and said.rstrip("\n").endswith(errors[0]) and "Traceback" not in said


PLACES = {"a file": "file", "under a file": "file/x", "where nothing may be made": "/sys/x"}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", WRITERS)
def test_a_place_that_cannot_be_written(name: str, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = run(WRITERS[name].format(out=PLACES[place]), capsys)
    assert (code, is_one_line(said)) == (2, True), (code, said)


@pytest.mark.parametrize("name", sorted(WRITERS.keys() - {"export links"}))  # a link takes no room
def test_a_full_disk(name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with full_disk():
        code, said = run(WRITERS[name].format(out=tmp_path / "new"), capsys)
    assert (code, is_one_line(said)) == (2, True), (code, said)


CACHES = {**PLACES, "missing": "a/b/c"}


@pytest.mark.parametrize("place", CACHES)
@pytest.mark.parametrize("command", ["search index dog", "embed --dataset folder --root images --out {out}"])
def test_a_cache_that_cannot_be_written_stops_nobody_who_can_do_without(
    command: str, place: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOR_CACHE", str(tmp_path / "new" if place == "missing" else Path(CACHES[place]).absolute()))
    code, said = run(f"for_search {command.format(out=tmp_path / 'store')}", capsys)
    assert (code, "error" in said, "Traceback" in said) == (0, False, False), said


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "command",
    [
        "for_search embed --dataset miniscenes --out {out}",
        "for_eval leaderboard --dataset miniscenes --methods clip --out {out}",
        f"for_model train {REPOSITORY}/for_model/configs/for-miniscenes.toml",
        "for_model pretrain-mini --out w.safetensors",
        "for_app --port 7999",
    ],
)
def test_a_cache_that_is_needed_and_cannot_be_written_is_one_line(
    command: str, place: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOR_CACHE", str(Path(PLACES[place]).absolute()))
    code, said = run(command.format(out=tmp_path / "out"), capsys)
    assert (code, is_one_line(said)) == (2, True), (code, said)
    assert "FOR_CACHE=FOLDER" in said


class _Output(io.TextIOWrapper):
    """What a command prints to: closed by its reader, full, or a terminal of an encoding."""

    def __init__(self, encoding: str = "utf-8", error: OSError | None = None) -> None:
        self.kept = io.BytesIO()
        super().__init__(self.kept, encoding=encoding)
        self.error = error

    def flush(self) -> None:
        if self.error is not None:
            raise self.error
        super().flush()


PRINTERS = [
    "for_search search index dog",
    "for_search search index dog --json",
    "for_search verify index",
    "for_search concept list",
    "for_search concept show kept",
    "for_search --help",
    "for_model --help",
    "for_eval --help",
    "for_eval fetch --help",
    "for_app --help",
]


def run_into(output: _Output, command: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "stdout", output)
    package, *arguments = command.split()
    try:
        return MAINS[package](arguments)
    except SystemExit as ended:  # --help
        return int(ended.code or 0)


@pytest.mark.parametrize("command", PRINTERS)
def test_who_reads_has_gone(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_into(_Output(error=BrokenPipeError(errno.EPIPE, "Broken pipe")), command, monkeypatch) == 141
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("command", PRINTERS)
def test_a_full_output(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_into(_Output(error=OSError(errno.ENOSPC, "No space left on device")), command, monkeypatch) == 2
    said = capsys.readouterr().err
    assert said == "error: the output: No space left on device; make room there, or choose another folder\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1251"])
@pytest.mark.parametrize("command", PRINTERS)
def test_a_terminal_that_is_not_utf8(command: str, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    output = _Output(encoding)
    assert run_into(output, command, monkeypatch) == 0
    said = output.kept.getvalue().decode(encoding)
    assert said
    if command.endswith("--json"):
        assert {hit["path"] for hit in json.loads(said)["hits"]} == {f"schön-{i}.png" for i in range(3)}


def test_a_mistake_of_ours_keeps_its_trace() -> None:
    def action() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_command(action)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ImportError("half imported"), ForError("x"), OSError(5, "x")])
def test_ctrl_c_whatever_a_library_makes_of_it(error: BaseException, capsys: pytest.CaptureFixture[str]) -> None:
    def action() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise error from None

    assert run_command(action) == 130
    assert capsys.readouterr().err.count("\n") == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_while_torch_is_imported_waits_for_its_end() -> None:
    """Its C++ ends the program as crashed where an import in it raises."""
    imported = []

    def action() -> None:
        module = compile("import signal\nsignal.raise_signal(signal.SIGINT)\nimported.append(1)", "torch", "exec")
        exec(module, {"__name__": "torch.distributed", "imported": imported})
        time.sleep(60)

    assert run_command(action) == 130
    assert imported == [1]
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["for_search search index dog", "for_eval --help", "for_model --help", "for_app"])
def test_ctrl_c_at_any_moment_of_a_program(command: str, world: Path, tmp_path: Path) -> None:
    """From the moment on that Python runs FOR's own code, imports included, until the command has ended."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "FOR_CACHE": str(tmp_path)}
    for moment_s in (0.0, 0.05, 0.2, 0.6):
        code = (
            "import for_model.cli, runpy, sys, threading, _thread; print('begun', flush=True);"
            f"sys.argv = {command.split()!r}; runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=False)"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=world,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(moment_s)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
        assert process.returncode in (130, 0), said  # 0 where it was done before
        assert "Traceback" not in said
        if process.returncode == 130:
            assert said.rstrip().endswith("stopped; the same command goes on from here")


@pytest.mark.slow
def test_ctrl_c_when_all_is_done_changes_nothing() -> None:
    code = "import atexit, os, signal; atexit.register(os.kill, os.getpid(), signal.SIGINT); import for_model.cli"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_a_closed_pipe_and_a_full_device_of_a_program(world: Path, tmp_path: Path) -> None:
    program = f"{sys.executable} -m for_search"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "FOR_CACHE": str(tmp_path), "PYTHONIOENCODING": "ascii"}
    environment.pop("PYTHONUNBUFFERED", None)
    for command, code, said in (
        (f"{program} verify index | true; exit ${{PIPESTATUS[0]}}", 141, ""),
        (f"{program} verify index > /dev/full", 2, "error: the output: No space left on device; "),
        (f"{program} verify index > /dev/full 2> /dev/full", 2, ""),
        (f"LC_ALL=C {program} concept list > /dev/null", 0, ""),
    ):
        done = subprocess.run(
            ["bash", "-c", command], cwd=world, env=environment, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr.count("\n")) == (code, bool(said)), done.stderr
        assert done.stderr.startswith(said)
