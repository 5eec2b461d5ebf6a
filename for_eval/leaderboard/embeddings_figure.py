"""One figure for the question which head to train: mAP@50 against embeddings an image, in every world that has rows."""

import io
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from for_eval.leaderboard.comparison_report import figure_format
from for_eval.leaderboard.paper_tables import SUITES, Row, Suite
from for_eval.leaderboard.run_tables import results_of_row
from for_model.errors import UsageError
from for_model.files import write_bytes

_GROUPS = ("base", "novel")
_TABLES = ("main", "plus", "parts")
_MARKS = "osD^vP*X"


def points(out: Path, suite: Suite) -> dict[str, dict[int, tuple[float, float]]]:
    """What the tables of a suite say, for rows that learn from all there is to learn from.

    out: the leaderboards' folder.
    suite: of one dataset.
    Returns method -> embeddings an image -> mAP@50 of base and of novel names in percent, the mean over the seeds.
    """
    found: dict[str, dict[int, tuple[float, float]]] = {}
    for row in (row for name in _TABLES if name in suite.tables for row in suite.tables[name].rows):
        results = [each["all"] for each in results_of_row(out, suite, row)]
        if results and _learns_from_all(suite, row):
            scores = tuple(100 * mean(result["scores"][group]["map"] for result in results) for group in _GROUPS)
            n_embeddings = results[0]["method"]["n_embeddings"]
            found.setdefault(_name(suite, row), {}).setdefault(n_embeddings, (scores[0], scores[1]))
    return found


def _learns_from_all(suite: Suite, row: Row) -> bool:
    if row.method is not None:
        return True
    config = suite.training(row, 0)
    return config.loss.sup > 0 and config.loss.pse > 0 and not config.pseudo_labels.without_novel


def _name(suite: Suite, row: Row) -> str:
    ranks = row.method is None and suite.training(row, 0).loss.objective == "ranking"
    return row.label[0] + (", ranking" if ranks and not row.label[0].endswith("+") else "")


def write_embeddings_figure(path: Path, out: Path) -> None:
    """Draw the figure: a row of axes for each dataset that has results of trained heads, base and novel side by side.

    path: a .png, .svg or .pdf.
    out: the leaderboards' folder.
    Raises UsageError for another ending, and when there are no results.
    """
    from matplotlib.figure import Figure  # takes a second to import; without pyplot there is no window and no state

    ending = figure_format(path)
    worlds = {name: found for name, suite in SUITES.items() if len(found := points(out, suite)) > 3}
    if not worlds:
        raise UsageError(f"no results of tables in {out}: run `python -m for_eval tables` first")
    figure = Figure(figsize=(11, 4 * len(worlds)), layout="constrained")
    grid = figure.subplots(len(worlds), 2, squeeze=False)
    methods = list(dict.fromkeys(method for found in worlds.values() for method in found))
    for axes, (name, found) in zip(grid, worlds.items(), strict=True):
        _draw(axes, name, found, methods)
    data = io.BytesIO()
    figure.savefig(data, format=ending, dpi=130)
    write_bytes(path, data.getvalue())


def _draw(
    axes: Sequence[Any], name: str, found: dict[str, dict[int, tuple[float, float]]], methods: Sequence[str]
) -> None:
    """One dataset's axes. methods: of all datasets, which have the same colour and mark everywhere."""
    for which, (panel, group) in enumerate(zip(axes, _GROUPS, strict=True)):
        for method, values in found.items():
            number = methods.index(method)
            counts = sorted(values)
            scores = [values[n][which] for n in counts]
            panel.plot(
                counts, scores, marker=_MARKS[number % len(_MARKS)], color=f"C{number}", linewidth=1.5, label=method
            )
        panel.set_xscale("log", base=2)
        ticks = sorted({n for values in found.values() for n in values})
        panel.set_xticks(ticks, [str(n) for n in ticks])
        panel.set_title(f"{name}, {group} names")
        panel.set_xlabel("embeddings an image")
        panel.set_ylabel("mAP@50 (%)")
        panel.grid(alpha=0.3)
    axes[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
