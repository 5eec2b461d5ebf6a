"""The attack of `tests/attack/kill_growing.py`, in short."""

import os
import subprocess
import sys

import pytest

from tests.helpers.paths import REPOSITORY


@pytest.mark.slow
def test_kill_9_of_a_growing_library_loses_nothing() -> None:
    command = [sys.executable, "-W", "error", "-m", "tests.attack.kill_growing", "--kills", "10"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "nothing left over" in done.stdout
