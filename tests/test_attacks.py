"""The attacks on files of `tests/attack`, in short.

That by images is tests/for_search/store/test_odd_images.py, those on the server are in tests/for_app/server.
"""

import re

import pytest

from tests.helpers.programs import program

pytestmark = pytest.mark.slow


_MAIN = """
import sys, warnings
from importlib import import_module
attack = import_module(f"tests.attack.{sys.argv.pop(1)}")
warnings.simplefilter("error")
sys.exit(attack.main())
"""


def attack(name: str, *arguments: str) -> str:
    """What an attack prints, run as a program: it forks, kills and measures."""
    with program(_MAIN, name, *arguments, OMP_NUM_THREADS="1") as running:
        ended, (out, error) = running.wait(), running.said()
    assert (ended, error) == (0, "")
    return out


def test_kill_9_of_a_growing_library_loses_nothing() -> None:
    assert "nothing left over" in attack("kill_growing", "--kills", "6")


@pytest.mark.parametrize(("what", "kills"), [("embed", 3), ("index", 3), ("train", 2)])
def test_kill_9_of_what_is_new_changes_no_byte(what: str, kills: int) -> None:
    said = attack("kill_fresh", "--what", what, "--kills", str(kills))
    assert re.match(rf"{what}: {kills} kills of \d+ runs, each of which ended with the same bytes", said)


def test_a_flipped_bit_changes_no_answer_unseen() -> None:
    said = attack("flip_bytes", "--positions", "25", "--sampled-manifests")
    assert said.rstrip().endswith("0 times another one")
