"""The attacks on files of `tests/attack`, in short.

That by images is tests/for_search/store/test_odd_images.py, those on the server are in tests/for_app/server.
"""

import os
import re
import subprocess
import sys

import pytest

from tests.helpers.paths import REPOSITORY

pytestmark = pytest.mark.slow


def attack(name: str, *arguments: str) -> str:
    """What an attack prints, run as a program: it forks, kills and measures."""
    command = [sys.executable, "-W", "error", "-m", f"tests.attack.{name}", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_kill_9_of_a_growing_library_loses_nothing() -> None:
    assert "nothing left over" in attack("kill_growing", "--kills", "10")


@pytest.mark.parametrize(("what", "kills"), [("embed", 5), ("index", 5), ("train", 3)])
def test_kill_9_of_what_is_new_changes_no_byte(what: str, kills: int) -> None:
    said = attack("kill_fresh", "--what", what, "--kills", str(kills))
    assert re.match(rf"{what}: {kills} kills of \d+ runs, each of which ended with the same bytes", said)


def test_a_flipped_bit_changes_no_answer_unseen() -> None:
    said = attack("flip_bytes", "--positions", "25", "--sampled-manifests")
    assert said.rstrip().endswith("0 times another one")
