"""A pytest plugin that shows what tests cost in CPU seconds.

    make test ARGS="-p tests.helpers.cpu_times"

Counted are user and system seconds of the test's process and of all programs below it, running or ended; on systems
without Linux's /proc only of those that have ended. What a fixture of a file or session costs counts for the first test
that uses it. Elapsed seconds stand beside: far more of them than CPU seconds, on an idle machine, mean waiting.
Beside much else CPU seconds too double or triple: compare what was measured in one run.
"""

import contextlib
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

SHOWN = 40  # files and tests
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _running_below_s(pid: int) -> float:
    """CPU seconds of the programs that run below a process, and of those below them that have ended."""
    spent_s, below = {}, defaultdict(list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        # Not Path.open, which a test may just have replaced; and what the program was may just have ended.
        with contextlib.suppress(OSError), open(stat) as file:  # noqa: PTH123
            fields = file.read().rpartition(") ")[2].split()  # those behind the program's name
            below[int(fields[1])].append(int(stat.parent.name))
            spent_s[int(stat.parent.name)] = sum(map(int, fields[11:15])) / _TICKS_PER_S  # own, and of ended children
    found, waiting = 0.0, below[pid]
    while waiting:
        found += spent_s[child := waiting.pop()]
        waiting += below[child]
    return found


def cpu_s() -> float:
    """CPU seconds so far of this process and of all programs below it."""
    return sum(os.times()[:4]) + (_running_below_s(os.getpid()) if _has_children() else 0.0)


def pytest_collection_finish(session: pytest.Session) -> None:
    session.cpu_times_before = session.cpu_times_imports = cpu_s()  # all files are imported now, in each process


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: "pytest.CallInfo[None]") -> Iterator[None]:
    outcome = yield
    report, session, now = outcome.get_result(), item.session, cpu_s()
    # Less than before are those of a program that nobody waited for, such as a browser's, when it has ended.
    report.cpu_s, report.imports_s = max(0.0, now - session.cpu_times_before), session.cpu_times_imports
    session.cpu_times_before, session.cpu_times_imports = now, 0.0  # the imports are told once


class _Table:
    def __init__(self) -> None:
        self.imports_s = 0.0
        self.spent: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])  # CPU and elapsed seconds

    def add(self, report: pytest.TestReport) -> None:
        self.imports_s += report.imports_s
        for name in (report.nodeid, report.nodeid.split("::")[0]):
            self.spent[name][0] += report.cpu_s
            self.spent[name][1] += report.duration


_table = _Table()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ and hasattr(report, "cpu_s"):
        _table.add(report)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    line = terminalreporter.write_line
    terminalreporter.section("CPU seconds, and elapsed ones")
    files = {name: spent for name, spent in _table.spent.items() if "::" not in name}
    tests = {name: spent for name, spent in _table.spent.items() if "::" in name}
    cpu, elapsed = (sum(spent[i] for spent in files.values()) for i in (0, 1))
    line(f"{cpu:8.1f} {elapsed:8.1f}  all tests")
    line(f"{_table.imports_s:8.1f}           imports before the first test, in all processes")
    for group in (files, tests):
        line("")
        for name, spent in sorted(group.items(), key=lambda entry: -entry[1][0])[:SHOWN]:
            line(f"{spent[0]:8.1f} {spent[1]:8.1f}  {name}")
    line("")
    line("Most waiting:")
    for name, spent in sorted(tests.items(), key=lambda entry: entry[1][0] - entry[1][1])[:15]:
        line(f"{spent[0]:8.1f} {spent[1]:8.1f}  {name}")
