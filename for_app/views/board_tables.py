"""The leaderboards' tables as HTML: scores with bars, the best marked, headings to sort by."""

import functools
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from for_app.views.charts import ablations_html, marks_html
from for_app.views.curves import curves_of_marks, read_ablations
from for_app.views.leaderboard import FOLDER, MEASURED, main_columns, read_boards
from for_app.views.templates import render
from for_model.errors import DataError
from for_model.methods.registry import METHODS

_OF_PAPER = "The paper's own numbers, not measured here: other images, another model"
_MARKS = (
    "A simulated user sees ten images a round and marks each as the labels say. In percent: average precision over "
    "the images not shown yet, beside the text's over the same images; names that marks cost more than 5 points; "
    "the right images found so far; how right and how complete the whole answer is. AP falls as right images are shown."
)
_MARKS_SCORES = frozenset(
    ("gain", "AP unseen", "AP unseen, text", "found", "names worse by 5", "AP list", "precision", "recall")
)
_UNIT = " mAP@50"
_ROWS = (
    *("source", "method", "losses", "labelled", "queries", "decoder layers", "frozen", "pseudo-labels from"),
    *("refiner", "rounds", "gain", "AP unseen", "AP unseen, text", "found"),
)
_SPREAD = re.compile(r"^(base|novel|all) (low|high|std)$")
_SCORE = re.compile(r"^(base|novel|all) mAP@50$|^(COCO|LVIS|nuImages) (base|novel|all)$")


def leaderboard_html(title: str, folder: Path = FOLDER) -> str:
    """A table with the choice of the others above it, its curves or else the ablations' below, as HTML.

    title: of a Board; the first for one that isn't there. Where no tables can be read, the page says how to make them.
    """
    try:
        boards = read_boards(folder)
        board = next((each for each in boards if each.title == title), boards[0])
        drawn = _marks_html(folder, board.title) if board.marks else _curves_html(folder)
    except DataError as error:
        return render("no_leaderboard", error=type(error).__name__)
    captions = {f"Measured with FOR on {board.dataset}": board.ours, _OF_PAPER: board.paper}
    return render(
        "leaderboard",
        titles=[each.title for each in boards],
        chosen=board.title,
        tables=[_table(caption, frame) for caption, frame in captions.items() if not frame.empty],
        curves=Markup(drawn),
        hint=_MARKS if board.marks else "",
    )


@functools.lru_cache(maxsize=1)  # they take seconds to draw
def _curves_html(folder: Path) -> str:
    return ablations_html(read_ablations(folder))


@functools.lru_cache(maxsize=4)
def _marks_html(folder: Path, title: str) -> str:
    board = next(each for each in read_boards(folder) if each.title == title)
    return marks_html(curves_of_marks(board.ours))


def _table(caption: str, frame: pd.DataFrame) -> dict[str, Any]:
    """What the template shows of a table: its columns, and of each row the cells."""
    main = set(main_columns(frame).columns)
    names = [name for name in frame.columns if not _SPREAD.search(name)]
    names = [name for name in names if name != "source" or (frame[name] != MEASURED).any()]
    # what the rows are of, then the scores, then what else is known: a phone shows the scores too
    names.sort(key=lambda name: (1, 0) if _SCORE.search(name) else (0, _place(name)) if name in _ROWS else (2, 0))
    best = {name: frame[name].max() for name in names if _SCORE.search(name)}
    columns = [
        {
            "name": name.removesuffix(_UNIT),
            "score": name in best,
            "number": pd.api.types.is_numeric_dtype(frame[name]),
            "detail": name not in main,
        }
        for name in names
    ]
    rows = [[_cell_of(row, name, best.get(name)) for name in names] for _, row in frame.iterrows()]
    return {"caption": caption, "columns": columns, "rows": rows, "spread": _spread_words(frame)}


def _place(name: str) -> int:
    """Where a column stands among those of marks; the others keep their order."""
    return _ROWS.index(name) if name in _ROWS[_ROWS.index("refiner") :] else 0


@dataclass(frozen=True)
class _Cell:
    """What the template shows of a cell.

    text: what it says; empty for what wasn't measured.
    value: what it is sorted by, if not by its text.
    width_percent: of a score's bar; None for no bar.
    low_percent, span_percent: where the bar's interval begins, and how wide it is.
    told: the interval in words.
    best: whether this is the best score of its column.
    """

    text: str = ""
    value: str = ""
    width_percent: str | None = None
    low_percent: str | None = None
    span_percent: str | None = None
    told: str | None = None
    best: bool = False


def _cell_of(row: "pd.Series[Any]", name: str, best: float | None) -> _Cell:
    """A row's cell in the column `name`.

    best: the column's largest score; None for a column that holds no scores.
    """
    value = row[name]
    if pd.isna(value):
        return _Cell()
    if name == "method":
        return _Cell(_method(row))
    if best is None and name in _MARKS_SCORES:
        return _Cell(f"{round(value, 1) + 0.0:.1f}", str(value))  # never -0.0
    if best is None:
        return _Cell(f"{value:g}" if isinstance(value, float) else str(value))
    cell = _Cell(f"{value:.2f}", str(value), f"{value:.1f}", best=value == best)
    low, high = _interval(row, name.removesuffix(_UNIT), value)
    if low is None or high is None:
        return cell
    told = f"{low:.2f} to {high:.2f}"
    return replace(cell, low_percent=f"{low:.1f}", span_percent=f"{high - low:.1f}", told=told)


def _method(row: "pd.Series[Any]") -> str:
    """A method's name as the page writes it, `FOR 8`, whether the table has its name or its title."""
    text = str(row["method"])
    entry = next((each for name, each in METHODS.items() if text in (name, each.title)), None)
    count = row.get("embeddings an image")
    if entry is None:
        return text
    return f"{entry.title} {count:g}" if entry.counted and count is not None and pd.notna(count) else entry.title


def _interval(row: "pd.Series[Any]", group: str, value: float) -> tuple[float | None, float | None]:
    """How far a score reaches down and up: its interval, or a standard deviation over seeds; None where it has none."""
    low, high, std = (row.get(f"{group} {end}") for end in ("low", "high", "std"))
    if low is not None and high is not None and pd.notna(low) and pd.notna(high):
        return float(low), float(high)
    return (None, None) if std is None or pd.isna(std) else (value - float(std), value + float(std))


def _spread_words(frame: pd.DataFrame) -> str:
    if "base low" in frame.columns:
        return "The stripe on a bar is the 95% interval."
    std = [name for name in frame.columns if name.endswith(" std")]
    known = bool(std) and bool(frame[std].notna().any(axis=None))
    return "The stripe on a bar is the standard deviation over seeds." if known else ""
