"""The attack of `tests/attack/kill_growing.py`, in short."""

import pytest

from tests.helpers.programs import program

_ATTACK = """
import sys, warnings
from tests.attack.kill_growing import main
warnings.simplefilter("error")
sys.exit(main())
"""


@pytest.mark.slow
def test_kill_9_of_a_growing_library_loses_nothing() -> None:
    with program(_ATTACK, "--kills", "6") as attack:
        ended, (out, error) = attack.wait(), attack.said()
    assert (ended, error) == (0, "")
    assert "nothing left over" in out
