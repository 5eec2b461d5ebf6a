"""What all tests share: a cache folder of their own, one thread a process, no silent skips, the slow files first."""

import importlib.util
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.helpers.axe import AXE
from tests.helpers.paths import REPOSITORY, SHARED

if TYPE_CHECKING:
    from torch import Tensor

# Where the environment forbids Python to keep compiled modules, each program that a test starts would compile torch and
# all the rest anew, which takes longer than what it is started for. So they are kept, but out of the way.
if sys.dont_write_bytecode:
    sys.dont_write_bytecode, sys.pycache_prefix = False, str(REPOSITORY / ".cache" / "bytecode")
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Where tests run in as many processes as there are cores, threads of torch's would only wait for each other. Set before
# torch is imported, and inherited by the programs that tests start; benchmarks have all cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples in every run, and none too slow for a machine that is busy.
settings.register_profile("house", derandomize=True, deadline=None, database=None, max_examples=60)
settings.load_profile("house")


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing that a test caches reaches the user's cache, and nothing there decides a test.

    Processes that share a run share what texts are embedded to: a thousand names, say, take MiniLM seconds.
    """
    cache = tmp_path_factory.mktemp("cache")
    in_parts = "PYTEST_XDIST_WORKER" in os.environ  # then each has a folder in the run's
    texts = (tmp_path_factory.getbasetemp().parent if in_parts else cache.parent) / "texts of all"
    texts.mkdir(exist_ok=True)
    (cache / "text").symlink_to(texts)
    os.environ["FOR_CACHE"] = str(cache)
    os.environ["GRADIO_TEMP_DIR"] = str(tmp_path_factory.mktemp("gradio"))  # two pages don't write the same picture


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_the_disk() -> Iterator[None]:
    """What tests write need not outlive a power cut, so that no write waits until its bytes are on the disk.

    That takes some milliseconds each time. Programs that tests start do wait.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def _random_weights_drawn_once() -> Iterator[None]:
    """Random weights are the same each time, and hundreds of tests load RN-mini with them: they are drawn once, copied
    for who asks again. `test_model_weights.py` draws them itself."""
    if "torch" not in sys.modules:  # no test of this run imports it
        yield
        return
    from for_model.backbones import model_weights

    draw, drawn = model_weights.random_state, {}

    def copied(expected: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
        if sum(value.numel() for value in expected.values()) > 10_000_000:  # RN50, say, would only take up memory
            return draw(expected)
        shapes = tuple((name, tuple(value.shape), value.dtype) for name, value in expected.items())
        if shapes not in drawn:
            drawn[shapes] = draw(expected)
        return {name: value.clone() for name, value in drawn[shapes].items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_weights, "random_state", copied)
        yield


@pytest.fixture(autouse=True, scope="session")
def _heard_interrupts() -> None:
    """Ctrl-C reaches tests and the programs they start, also where a shell ignores it for what is in the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


# Gradio's own dependencies warn when they are imported and served; a client that is dropped closes its sockets late.
_WARNINGS_OF_GRADIO = ("DeprecationWarning", "ResourceWarning", "pytest.PytestUnraisableExceptionWarning")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let what Gradio warns of pass where a page is served; and put files that hold slow tests first: processes that
    take a file each then end at about the same time."""
    for item in items:
        if item.get_closest_marker("gradio"):
            for warning in _WARNINGS_OF_GRADIO:
                item.add_marker(pytest.mark.filterwarnings(f"ignore::{warning}"))
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def _may_skip(item: pytest.Item) -> bool:
    """Whether a skip of this test is expected on this machine."""
    import torch

    from for_model.backbones.photo_packages import missing_packages

    missing = {
        "gpu": not torch.cuda.is_available(),
        "data": not SHARED.is_dir(),
        "photos": bool(missing_packages()) and not os.environ.get("CI"),
        "encoders": importlib.util.find_spec("transformers") is None and not os.environ.get("CI"),
        "compiled": importlib.util.find_spec("numba") is None and not os.environ.get("CI"),
        "cluster": None in map(importlib.util.find_spec, ("qdrant_client", "ray")) and not os.environ.get("CI"),
        "axe": not AXE.is_file() and not (os.environ.get("CI") and shutil.which("npm")),
        "browser": shutil.which("chromium") is None and not os.environ.get("CI"),
    }
    return any(missing[marker] for marker in missing if item.get_closest_marker(marker))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: "pytest.CallInfo[None]"):
    outcome = yield
    report = outcome.get_result()
    if report.skipped and not hasattr(report, "wasxfail") and not _may_skip(item):
        report.outcome = "failed"
        report.longrepr = f"unexpected skip: {report.longrepr}"
