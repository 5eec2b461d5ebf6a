"""The paper's own numbers, below ours: never mixed, averaged or sorted into each other.

`leaderboards/paper.csv` is copied from the paper's tables, one row a row of theirs, in their order; what a table
doesn't say is empty. None of it was measured by us.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

from for_eval.leaderboard.paper_tables import LABELLING, SUITES
from for_eval.metrics.retrieval import GROUPS
from for_model.errors import DataError

PAPER = Path(__file__).parents[2] / "leaderboards" / "paper.csv"
OURS = "ours"
_WHOLE = (1, 2, 9)  # the tables whose rows are methods, not settings of one
_DATASETS = {"coco": "COCO", "coco2014": "COCO 2014", "lvis": "LVIS", "nuimages": "nuImages", "miniscenes": "COCO"}
_LABELLING = "-multilabel"  # what the names of the tables end in that Table 10 matches
_COLUMNS = ("protocol", "backbone", "method", "embeddings an image", "losses")
_LOSSES = {("yes", "no"): "labels", ("no", "yes"): "pseudo-labels", ("yes", "yes"): "both"}

Cells = dict[str, str]


def read_paper(path: Path = PAPER) -> list[Cells]:
    """The rows of paper.csv. Raises DataError when the file is missing or has no `source` column."""
    if not path.is_file():
        raise DataError(f"{path} isn't there: the leaderboards come with FOR's repository, not with a wheel; clone it")
    rows = read_csv(path)
    if not rows or not all((row.get("source") or "").startswith("paper Table ") for row in rows):
        raise DataError(f"{path}: expected a column 'source' that says 'paper Table N': check the file out again")
    return rows


def rows_of_tables(paper: Sequence[Cells], numbers: Sequence[int]) -> list[Cells]:
    """The rows of some of the paper's tables, in the order of `numbers`, as each table has them.

    paper: as `read_paper` gives it.
    numbers: of the paper's tables, such as `paper_tables.Table.paper`.
    """
    return [row for number in numbers for row in paper if row["source"] == f"paper Table {number}"]


def losses_of(row: Cells) -> str:
    """With which losses a row of the paper was trained: `labels`, `pseudo-labels`, `both`; empty for one untrained."""
    return _LOSSES.get((row.get("labels", ""), row.get("pseudo-labels", "")), "")


def read_csv(path: Path) -> list[Cells]:
    """The rows of a table, heading -> cell. Raises DataError when it can't be read."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path} can't be read ({error}): expected a table as CSV") from error


def with_paper(tables: Sequence[Path], paper: Sequence[Cells]) -> str:
    """Generated tables as Markdown, each with the paper's matching rows below ours.

    tables: CSVs as `results.write_tables` and `run_tables.write_table_csvs` write them.
    paper: as `read_paper` gives it.

    A dataset's table is matched by Tables 1, 2 and 9, that of labelling its images by Table 10, one of a suite by those
    that it repeats; MiniScenes stands beside COCO. The column `source` says whose row it is.
    """
    return "\n\n".join(_section(path, paper) for path in tables)


def _section(path: Path, paper: Sequence[Cells]) -> str:
    ours = read_csv(path)
    dataset, _, name = path.stem.partition("-")
    columns: tuple[str, ...] = _COLUMNS
    scores: tuple[str, ...] = GROUPS
    numbers: tuple[int, ...] = _WHOLE
    if dataset in SUITES and name in SUITES[dataset].tables:
        table = SUITES[dataset].tables[name]
        columns, numbers = table.columns, table.paper
        if "protocol" in ours[0]:
            columns += ("protocol",)
        if table.scores is LABELLING:
            scores = tuple(LABELLING)
    elif path.stem.endswith(_LABELLING):
        dataset, numbers, scores = path.stem.removesuffix(_LABELLING), (10,), tuple(LABELLING)
    else:
        dataset = path.stem
    theirs = _DATASETS.get(dataset, "")
    headings = ["source", "dataset", *columns, *scores]
    lines = [f"{path.name}, {'mAP@50 ' if scores == GROUPS else ''}in percent", ""]
    lines += [_line(headings), "|---" * len(headings) + "|"]
    for row in ours:
        lines.append(_line([OURS, dataset, *(row.get(c, "") for c in columns), *(_ours(row, s) for s in scores)]))
    for row in _matching(paper, numbers, f"{theirs} {scores[0]}"):
        cells = [row["source"], theirs, *(_theirs(row, c) for c in columns)]
        lines.append(_line([*cells, *(row[f"{theirs} {score}"] for score in scores)]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _ours(row: Cells, score: str) -> str:
    mean, std = row[f"{score} mAP@50" if score in GROUPS else score], row.get(f"{score} std")
    return f"{mean} ± {std}" if std else mean


def _theirs(row: Cells, column: str) -> str:
    if column == "losses":
        return losses_of(row)
    if column == "queries":
        return row["embeddings an image"]
    return row.get(column, "")


def _matching(paper: Sequence[Cells], numbers: Sequence[int], score: str) -> list[Cells]:
    """The rows of some of the paper's tables that have a score; what an earlier table says isn't repeated."""
    found: dict[tuple[str, ...], Cells] = {}
    for place, row in enumerate(rows_of_tables(paper, numbers)):
        if row.get(score):
            same = tuple(row[c] for c in ("method", "backbone", "embeddings an image", score))
            found.setdefault(same if len(numbers) > 1 else (str(place),), row)
    return list(found.values())
