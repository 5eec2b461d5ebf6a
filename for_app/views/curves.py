"""The ablations of Tables 5, 6 and 7 as curves: mAP@50 over the share of labels, the queries, the decoder layers.

Points of the paper that stand in another of its tables (50 queries in Table 1, say) are taken from there.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd

from for_app.views.leaderboard import FOLDER, PAPER_FILE, read_csv_table
from for_eval.leaderboard.paper_tables import SUITES

_Row: TypeAlias = "pd.Series[Any]"

_GROUPS = ("base", "novel")
PAPER_DATASET = "COCO"
_PAPER_QUERIES, _PAPER_LAYERS = 50, 2  # of its rows that don't say (Table 8)


@dataclass(frozen=True)
class Curve:
    """mAP@50 in percent, `y`, at ascending `x`. group: `base` or `novel`.  of: what else tells it apart, or empty."""

    group: str
    of: str
    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True)
class Ablation:
    """title: for people.  x_label: of the axis.  logarithmic: that axis.  ours, paper: the curves; empty for none."""

    title: str
    x_label: str
    logarithmic: bool
    ours: tuple[Curve, ...]
    paper: tuple[Curve, ...]


_LOSSES = {"both": "both losses", "labels": "labels alone"}


def _losses(row: _Row) -> str:
    if "losses" in row.index:
        return _LOSSES.get(str(row["losses"]), str(row["losses"]))
    if row.get("labels") == "yes":
        return _LOSSES["both" if row.get("pseudo-labels") == "yes" else "labels"]
    return ""


def _number(value: object) -> float | None:
    """`8`, `0.5%` -> the number; None for anything else."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%?\s*", str(value))
    return float(found[1]) if found else None


def _x_of_ours(column: str, row: _Row) -> float | None:
    return _number(row.get(column))


def _setting(row: _Row) -> str:
    return "" if pd.isna(row.get("setting")) else str(row.get("setting"))


def _is_for(row: _Row, both: bool = True) -> bool:
    """Whether a row of the paper is FOR with labels, and, for `both`, with pseudo-labels as well."""
    return row.get("method") == "FOR" and row.get("labels") == "yes" and (row.get("pseudo-labels") == "yes" or not both)


def _paper_queries(row: _Row) -> float | None:
    return _number(row.get("embeddings an image")) if _is_for(row) and not _setting(row) else None


def _paper_layers(row: _Row) -> float | None:
    if not _is_for(row) or _number(row.get("embeddings an image")) != _PAPER_QUERIES:
        return None
    if not _setting(row):
        return float(_PAPER_LAYERS)
    found = re.fullmatch(r"(\d+) layers?", _setting(row))
    return float(found[1]) if found else None


def _paper_share(row: _Row) -> float | None:
    if not _is_for(row, both=False) or _number(row.get("embeddings an image")) != _PAPER_QUERIES:
        return None
    if not _setting(row):
        return 100.0
    found = re.fullmatch(r"(\d+(?:\.\d+)?)% labelled", _setting(row))
    return float(found[1]) if found else None


@dataclass(frozen=True)
class _Source:
    """Where an ablation comes from: its x in our CSV is a column, in the paper's a function of the row.

    Its title is that of the table of SUITES that has its name.
    """

    x_label: str
    logarithmic: bool
    column: str
    x_of_paper: Callable[[_Row], float | None]


_ABLATIONS = {
    "queries": _Source("queries", True, "queries", _paper_queries),
    "layers": _Source("decoder layers", False, "decoder layers", _paper_layers),
    "labelled": _Source("labelled images (%)", True, "labelled", _paper_share),
}


def read_ablations(folder: Path = FOLDER, dataset: str = "miniscenes") -> tuple[Ablation, ...]:
    """The curves of a leaderboards folder; an ablation without any is left out. Raises DataError for a damaged CSV."""
    paper = read_csv_table(folder / PAPER_FILE) if (folder / PAPER_FILE).is_file() else pd.DataFrame()
    found = []
    for name, source in _ABLATIONS.items():
        path = folder / f"{dataset}-{name}.csv"
        ours = read_csv_table(path) if path.is_file() else pd.DataFrame()
        curves = _curves(ours, partial(_x_of_ours, source.column), "{} mAP@50")
        theirs = _curves(paper, source.x_of_paper, f"{PAPER_DATASET} {{}}")
        if curves or theirs:
            found.append(
                Ablation(SUITES[dataset].tables[name].title, source.x_label, source.logarithmic, curves, theirs)
            )
    return tuple(found)


def _curves(frame: pd.DataFrame, x_of: Callable[[_Row], float | None], score: str) -> tuple[Curve, ...]:
    """The curves of a table: a point a row that has an x, by group and losses. score: the scores' columns."""
    points: dict[tuple[str, str], dict[float, float]] = {}
    for _, row in frame.iterrows():
        x = x_of(row)
        if x is None:
            continue
        for group in _GROUPS:
            y = row.get(score.format(group))
            if y is not None and pd.notna(y):
                points.setdefault((group, _losses(row)), {})[x] = float(y)
    return tuple(
        Curve(group, of, tuple(sorted(values)), tuple(values[x] for x in sorted(values)))
        for (group, of), values in sorted(points.items(), key=lambda item: (item[0][1], _GROUPS.index(item[0][0])))
    )
