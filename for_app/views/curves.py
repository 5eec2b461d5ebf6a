"""The ablations of Tables 5, 6 and 7 as curves: mAP@50 over the share of labels, the queries, the decoder layers.

Points of the paper that stand in another of its tables (50 queries in Table 1, say) are taken from there.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from for_app.views.leaderboard import FOLDER, PAPER_FILE
from for_eval.leaderboard.paper_rows import Cells, losses_of, read_csv, read_paper
from for_eval.leaderboard.paper_tables import SUITES

_GROUPS = ("base", "novel")
PAPER_DATASET = "COCO"


@dataclass(frozen=True)
class Curve:
    """One curve of a chart.

    group: `base` or `novel`.
    of: what else tells it from other curves of the group; may be empty.
    x: ascending.
    y: mAP@50 in percent.
    """

    group: str
    of: str
    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True)
class Ablation:
    """An ablation as a chart.

    title: for people.
    x_label: of the horizontal axis.
    logarithmic: whether that axis is.
    ours, paper: the curves; empty for none.
    """

    title: str
    x_label: str
    logarithmic: bool
    ours: tuple[Curve, ...]
    paper: tuple[Curve, ...]


_LOSSES = {"both": "both losses", "labels": "labels alone"}

# What the paper's FOR is where a row of its tables doesn't say: its Table 8, over all labels of COCO.
_PAPER_DEFAULTS = {
    "embeddings an image": "50",
    "decoder layers": "2",
    "labelled": "100%",
    "frozen": "q, k, v, o",
    "pseudo-labels from": "IN21K",
}


@dataclass(frozen=True)
class MarksCurves:
    """How a search goes on with rounds of marks, for one method: of every refiner a curve over the rounds.

    method: its title.
    unseen: refiner -> (rounds, average precision over the images not shown yet, in percent).
    found: refiner -> (rounds, share of the right images that was shown, in percent).
    """

    method: str
    unseen: dict[str, tuple[tuple[float, float], ...]]
    found: dict[str, tuple[tuple[float, float], ...]]


def curves_of_marks(frame: pd.DataFrame) -> tuple[MarksCurves, ...]:
    """The curves of each method of a dataset's table of marks, in the table's order."""
    return tuple(
        MarksCurves(str(method), _over_rounds(rows, "AP unseen"), _over_rounds(rows, "found"))
        for method, rows in frame.groupby("method", sort=False)
    )


def _over_rounds(rows: pd.DataFrame, column: str) -> dict[str, tuple[tuple[float, float], ...]]:
    """Refiner -> points, by rounds; what wasn't measured is left out."""
    return {
        str(refiner): tuple(sorted(zip(known["rounds"].astype(float), known[column].astype(float), strict=True)))
        for refiner, known in rows.dropna(subset=[column]).groupby("refiner", sort=False)
    }


@dataclass(frozen=True)
class _Source:
    """Where an ablation comes from: its x is a column, of ours and of the paper.

    table: of `paper_tables`, which has the title.
    losses: of the paper's rows, as `losses_of` says them.
    """

    table: str
    x_label: str
    logarithmic: bool
    column: str
    column_of_paper: str
    losses: tuple[str, ...] = ("both",)


_ABLATIONS = (
    _Source("queries", "queries", True, "queries", "embeddings an image"),
    _Source("layers", "decoder layers", False, "decoder layers", "decoder layers"),
    _Source("labelled", "labelled images (%)", True, "labelled", "labelled", ("both", "labels")),
)


def _number(value: str) -> float | None:
    """`8`, `0.5%` -> the number; None for anything else."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%?\s*", value)
    return float(found[1]) if found else None


def _x_of_paper(source: _Source, row: Cells) -> float | None:
    """A row's x, if it is FOR with the paper's defaults in all that the ablation doesn't change."""
    said = {column: row.get(column) or default for column, default in _PAPER_DEFAULTS.items()}
    others = {column: default for column, default in _PAPER_DEFAULTS.items() if column != source.column_of_paper}
    if row.get("method") != "FOR" or losses_of(row) not in source.losses or not others.items() <= said.items():
        return None
    return _number(said[source.column_of_paper])


def read_ablations(folder: Path = FOLDER, dataset: str = "miniscenes") -> tuple[Ablation, ...]:
    """The curves of a leaderboards folder; an ablation without any is left out.

    dataset: a suite's, whose tables ours are.
    Raises DataError for a CSV that can't be read.
    """
    paper = read_paper(folder / PAPER_FILE) if (folder / PAPER_FILE).is_file() else []
    found = []
    for source in _ABLATIONS:
        path = folder / f"{dataset}-{source.table}.csv"
        ours = read_csv(path) if path.is_file() else []
        of_ours = [(_number(row.get(source.column, "")), row.get("losses", ""), row) for row in ours]
        of_paper = [(_x_of_paper(source, row), losses_of(row), row) for row in paper]
        curves, theirs = _curves(of_ours, "{} mAP@50"), _curves(of_paper, f"{PAPER_DATASET} {{}}")
        if curves or theirs:
            title = SUITES[dataset].tables[source.table].title
            found.append(Ablation(title, source.x_label, source.logarithmic, curves, theirs))
    return tuple(found)


def _curves(rows: Iterable[tuple[float | None, str, Cells]], score: str) -> tuple[Curve, ...]:
    """The curves of a table: a point a row that has an x, by group and losses.

    rows: x, losses, cells.
    score: the heading of a group's scores, with `{}` for the group.
    """
    points: dict[tuple[str, str], dict[float, float]] = {}
    for x, losses, row in rows:
        for group in _GROUPS:
            y = _number(row.get(score.format(group)) or "")
            if x is not None and y is not None:
                points.setdefault((group, _LOSSES.get(losses, losses)), {})[x] = y
    return tuple(
        Curve(group, of, tuple(sorted(values)), tuple(values[x] for x in sorted(values)))
        for (group, of), values in sorted(points.items(), key=lambda item: (item[0][1], _GROUPS.index(item[0][0])))
    )
