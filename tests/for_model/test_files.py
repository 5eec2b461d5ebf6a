"""One lock: held by one, given back however its process ends."""

import subprocess
import sys
from pathlib import Path

import pytest

from for_model.errors import StoreError, UsageError
from for_model.files import locked
from tests.helpers.paths import REPOSITORY

HOLD = """
import sys, time
from pathlib import Path
from for_model.errors import StoreError
from for_model.files import locked
with locked(Path(sys.argv[1]), StoreError("held")):
    print("held", flush=True)
    time.sleep(3600)
"""


def test_a_lock_is_held_by_one_and_dropped_when_its_process_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        try:
            with pytest.raises(StoreError, match="somebody else"), locked(path, StoreError("somebody else")):
                pass
        finally:
            child.kill()
    with locked(path, StoreError("still held")):
        with pytest.raises(UsageError, match="this process"), locked(path, UsageError("this process")):
            pass
        with pytest.raises(StoreError), locked(path, StoreError("the first still holds it")):
            pass
    with pytest.raises(TimeoutError, match="its own"), locked(path, StoreError("busy")):
        raise TimeoutError("its own")
    assert path.read_bytes() == b""


def test_a_folder_that_cannot_be_made_is_an_oserror(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"), locked(tmp_path / "file" / "lock", StoreError("busy")):
        pass
