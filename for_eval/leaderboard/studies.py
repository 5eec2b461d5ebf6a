"""Results of other kinds than mAP@50 of single names: a JSON file each, and a table that is made from them alone."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from for_eval.leaderboard.columns import Column, to_csv
from for_eval.leaderboard.results import read_result
from for_model.errors import UsageError
from for_model.files import slug, write_bytes, write_json


@dataclass(frozen=True)
class Study:
    """One kind of results.

    name: of their folder, `OUT/results/NAME`, and of the table, `OUT/NAME.csv`.
    format: which each result says that it has.
    command: of `python -m for_eval`, that makes them.
    columns: of the table.
    lines: a result -> what its lines in the table say.
    """

    name: str
    format: str
    command: str
    columns: tuple[Column, ...]
    lines: Callable[[dict[str, Any]], Iterable[dict[str, Any]]]

    def folder(self, out: Path) -> Path:
        return out / "results" / self.name

    def path(self, out: Path, *parts: str) -> Path:
        """The file of a result that some words tell from the others."""
        return self.folder(out) / f"{slug(*parts)}.json"

    def write(self, out: Path, result: dict[str, Any]) -> Path:
        """Write a result; a later one of the same dataset, split and method takes its place."""
        method = result["method"]
        names = (result["dataset"], result["split"], method["backbone"], method["method"], str(method["n_embeddings"]))
        path = self.path(out, *names)
        write_json(path, result)
        return path

    def read(self, out: Path) -> list[dict[str, Any]]:
        """All results, by the names of their files. Raises DataError for a damaged or foreign one."""
        return [read_result(path, self.format, self.command) for path in sorted(self.folder(out).glob("*.json"))]

    def write_table(self, out: Path) -> Path:
        """Write the table and return its path. Raises UsageError when there are no results."""
        results = self.read(out)
        if not results:
            raise UsageError(f"no results in {self.folder(out)}: run `python -m for_eval {self.command}` first")
        path = out / f"{self.name}.csv"
        write_bytes(path, to_csv((line for result in results for line in self.lines(result)), self.columns).encode())
        return path
