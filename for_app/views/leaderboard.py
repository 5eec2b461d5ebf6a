"""The leaderboards' CSVs as tables to look at: what was measured here beside what the paper says, never mixed.

Everything is read by the names in the headers, so that a CSV may gain columns. `board_tables` draws them.
"""

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from for_eval.leaderboard.paper_rows import PAPER, Cells, read_paper, rows_of_tables
from for_eval.leaderboard.paper_tables import SUITES
from for_model.errors import DataError

MEASURED = "measured with FOR"
FOLDER, PAPER_FILE = PAPER.parent, PAPER.name
MARKS_FILE = "refine.csv"

_DETAILS = re.compile(r" over | over$|precision|recall|^low$|^high$")
_SETTING = ("dataset", "split", "protocol", "backbone", "weights", "image size", "device", "images", "skipped")


@dataclass(frozen=True)
class Board:
    """One table.

    title: for people.
    dataset: that `ours` was measured on; empty for none.
    ours: the rows measured with FOR.
    paper: the paper's rows, empty where it has none.
    marks: whether it is of rounds of marks on results, see `for_eval.refinement`.
    Both begin with a column `source`; numbers are numbers, and what wasn't measured is missing (NaN).
    """

    title: str
    dataset: str
    ours: pd.DataFrame
    paper: pd.DataFrame
    marks: bool = False


def read_boards(folder: Path = FOLDER) -> tuple[Board, ...]:
    """All tables of a leaderboards folder: those of a dataset with intervals, then the paper's, by number, then the
    rest of the paper's.

    Raises DataError when the folder holds no table, or one that can't be read.
    """
    paths = sorted(path for path in folder.glob("*.csv") if path.name != PAPER_FILE and "with-paper" not in path.stem)
    paper = read_paper(folder / PAPER_FILE) if (folder / PAPER_FILE).is_file() else []
    if not paths and not paper:
        raise DataError(f"no tables in {folder}: make them with `make leaderboards`")
    every, nothing = _frame(paper), _frame([])
    whole, parts = [], []
    for path in paths:
        dataset, _, part = path.stem.rpartition("-")
        tables = SUITES[dataset].tables if dataset in SUITES else {}
        if part in tables:
            table = tables[part]
            found = rows_of_tables(paper, table.paper)
            theirs = _frame(found).astype(every.dtypes).dropna(axis="columns", how="all") if found else nothing
            parts.append((table.paper, dataset, Board(f"{table.title} ({dataset})", dataset, _ours(path), theirs)))
        elif "base mAP@50" in (ours := _ours(path)):  # what studies found is told in their own documents
            whole.append(Board(f"{path.stem}: methods with 95% intervals", path.stem, ours, nothing))
    last = Board("The paper's own numbers", "", nothing, every)
    return (*whole, *(board for _, _, board in sorted(parts, key=lambda row: row[:2])), *_marks_boards(folder), last)


def _marks_boards(folder: Path) -> list[Board]:
    """What marks are worth, a table for each dataset, of all its names; the file has base, novel and hard ones too."""
    if not (folder / MARKS_FILE).is_file():
        return []
    frame = _ours(folder / MARKS_FILE)
    frame = frame[frame["group"] == "all"].drop(columns=["group", "split", "embeddings an image"])
    return [
        Board(f"Marks on results ({dataset})", str(dataset), of_dataset.reset_index(drop=True), _frame([]), marks=True)
        for dataset, of_dataset in frame.groupby("dataset", sort=False)
    ]


def read_csv_table(path: Path) -> pd.DataFrame:
    """A CSV with numbers as numbers and empty cells missing. Raises DataError."""
    try:
        return pd.read_csv(path, keep_default_na=False, na_values=[""], encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} can't be read ({error}): make it again with `python -m for_eval table`") from error


def _ours(path: Path) -> pd.DataFrame:
    frame = read_csv_table(path)
    if "source" in frame.columns:
        frame = frame[~frame["source"].astype(str).str.startswith("paper")].drop(columns="source")
    return frame.assign(source=MEASURED)[["source", *frame.columns]].reset_index(drop=True)


def _frame(rows: Sequence[Cells]) -> pd.DataFrame:
    """Rows of the paper with numbers as numbers and empty cells missing."""
    if not rows:
        return pd.DataFrame({"source": []})
    frame = pd.DataFrame(rows)
    frame = frame.where(frame != "")
    for column in frame.columns:
        with contextlib.suppress(ValueError):  # a column of words
            frame[column] = pd.to_numeric(frame[column])
    return frame


def main_columns(frame: pd.DataFrame) -> pd.DataFrame:
    """A table without the columns that say the same in every row, are empty, or are details of the metric."""
    same = {column for column in _SETTING if column in frame and frame[column].nunique(dropna=False) == 1}
    told = [c for c in frame.columns if frame[c].notna().any() and c not in same and not _DETAILS.search(c)]
    return frame[["source", *(column for column in told if column != "source")]]
