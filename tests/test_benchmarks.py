"""Benchmarks aren't run with the tests, but must still fit the code that they measure."""

import runpy
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).parent / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_benchmark_can_be_imported(path: Path) -> None:
    names = runpy.run_path(str(path))
    assert "main" in names or any(name.startswith("bench_") for name in names)
