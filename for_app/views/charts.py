"""The leaderboards as drawings: bars with intervals, and the ablations' curves, as SVG that takes the page's colours.

Text and axes have the colour of the text around them (`currentColor`), so one drawing serves light and dark. Base and
novel differ in colour, and in the marks or the lines too.
"""

import io
import re
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from numpy.typing import NDArray

from for_app.views.curves import PAPER_DATASET, Ablation, Curve
from for_app.views.leaderboard import Board, method_labels
from for_app.views.templates import render

_TEXT = "#010203"  # stands for currentColor while matplotlib draws
_GROUPS = {"base": ("#1f8a9e", "o"), "novel": ("#d9772b", "s")}
_LINES = {"both losses": "-", "labels alone": "--"}
_lock = threading.Lock()  # matplotlib's settings are shared by all threads


def bars_html(board: Board) -> str:
    """The bars of a table as HTML: of what was measured first, and the paper's apart."""
    drawn = {
        "Measured with FOR": bars(board.ours, board.title, board.dataset),
        "The paper's own numbers": bars(board.paper, f"{board.title}, the paper"),
    }
    drawings = [(caption, Markup(svg)) for caption, svg in drawn.items() if svg is not None]
    return render("drawings", rows=[{"title": "", "drawings": drawings}])


def ablations_html(found: Sequence[Ablation]) -> str:
    """The curves of several ablations as HTML, each under its title, ours and the paper's on axes of their own."""
    rows = [
        {"title": ablation.title, "drawings": [("", Markup(svg)) for svg in curves(ablation)]} for ablation in found
    ]
    return render("drawings", rows=rows)


def bars(frame: pd.DataFrame, title: str, dataset: str = PAPER_DATASET) -> str | None:
    """mAP@50 of base and novel names for every row, with its interval or its standard deviation over seeds, as SVG.

    frame: of a Board, ours or the paper's.
    dataset: of the scores, the paper's if not told.
    Returns None when there is nothing to draw.
    """
    columns = {group: next((c for c in _score_columns(group) if c in frame.columns), None) for group in _GROUPS}
    drawn = {group: column for group, column in columns.items() if column is not None}
    frame = frame.dropna(subset=list(drawn.values()), how="all") if drawn else frame.iloc[:0]
    if frame.empty:
        return None
    labels = method_labels(frame)
    figure, axes = _figure(6.2, 0.9 + 0.42 * len(frame))
    height = 0.8 / len(drawn)
    for number, (group, column) in enumerate(drawn.items()):
        places = [row + (number - (len(drawn) - 1) / 2) * height for row in range(len(frame))]
        values = frame[column].to_numpy(float)
        axes.barh(places, values, height * 0.92, color=_GROUPS[group][0], label=group)
        below, above = _spread(frame, group, values)
        known = ~np.isnan(below) & ~np.isnan(above)
        if known.any():
            whiskers = np.stack([below[known], above[known]])  # [2, bars]
            axes.errorbar(
                values[known], np.array(places)[known], xerr=whiskers, fmt="none", ecolor=_TEXT, elinewidth=1, capsize=2
            )
    axes.set_yticks(range(len(frame)), labels)
    axes.set_ylim(len(frame) - 0.5, -0.5)
    axes.set_xlabel(f"mAP@50 on {dataset} (%){_whiskers(frame)}")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    return _svg(figure, title)


def curves(ablation: Ablation) -> tuple[str, ...]:
    """An ablation's drawings: ours, then the paper's, each on axes of its own: other images, another model."""
    drawings = []
    for found, where in ((ablation.ours, "measured with FOR"), (ablation.paper, f"the paper, {PAPER_DATASET}")):
        if found:
            drawings.append(_curve_chart(ablation, found, where))
    return tuple(drawings)


def _curve_chart(ablation: Ablation, found: Sequence[Curve], where: str) -> str:
    figure, axes = _figure(4.6, 3.4)
    for curve in found:
        colour, marker = _GROUPS[curve.group]
        label = f"{curve.group}, {curve.of}" if len({c.of for c in found}) > 1 else curve.group
        axes.plot(curve.x, curve.y, color=colour, marker=marker, linestyle=_LINES.get(curve.of, "-"), label=label)
    if ablation.logarithmic:
        axes.set_xscale("log")
    ticks = sorted({x for curve in found for x in curve.x})
    axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
    axes.minorticks_off()
    axes.set_xlabel(ablation.x_label)
    axes.set_ylabel("mAP@50 (%)")
    axes.set_title(where, color=_TEXT, fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    return _svg(figure, f"{ablation.title}, {where}")


def _score_columns(group: str) -> tuple[str, str]:
    return f"{group} mAP@50", f"{PAPER_DATASET} {group}"


def _spread(frame: pd.DataFrame, group: str, values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """How far each bar's whiskers reach below and above it; NaN for none."""
    if {f"{group} low", f"{group} high"} <= set(frame.columns):
        return values - frame[f"{group} low"].to_numpy(float), frame[f"{group} high"].to_numpy(float) - values
    std = frame.get(f"{group} std")
    spread = np.full(len(frame), np.nan) if std is None else std.to_numpy(float)
    return spread, spread


def _whiskers(frame: pd.DataFrame) -> str:
    """What the whiskers mean, for the axis."""
    if "base low" in frame.columns:
        return ", with 95% intervals"
    std = [c for c in frame.columns if c.endswith(" std")]
    return ", with standard deviations over seeds" if std and frame[std].notna().any(axis=None) else ""


def _figure(width_inch: float, height_inch: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # not pyplot, which keeps figures and isn't safe in threads

    figure = Figure(figsize=(width_inch, height_inch), layout="constrained")
    axes = figure.subplots()
    axes.tick_params(colors=_TEXT, labelsize=9)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_edgecolor(_TEXT)
    axes.xaxis.label.set_color(_TEXT)
    axes.yaxis.label.set_color(_TEXT)
    return figure, axes


def _svg(figure: Any, title: str) -> str:
    """The figure as an `<svg>` element as wide as there is room, named for screen readers."""
    import matplotlib as mpl

    written = io.StringIO()
    settings: Any = {
        "svg.fonttype": "none",  # letters stay letters
        "svg.hashsalt": title,  # the same drawing has the same bytes, and no two drawings of a page share an id
        "font.family": "sans-serif",
        "text.color": _TEXT,
    }
    with _lock, mpl.rc_context(settings):
        for axes in figure.axes:
            if axes.get_legend() is not None:
                for text in axes.get_legend().get_texts():
                    text.set_color(_TEXT)
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    svg = written.getvalue()
    svg = svg[svg.index("<svg") :].replace(_TEXT, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    width = re.search(r'width="([0-9.]+)pt"', svg)
    assert width is not None
    svg = re.sub(r' (?:width|height)="[0-9.]+pt"', "", svg, count=2)
    width_px = f"{float(width[1]) * 4 / 3:.0f}"
    return render("svg", title=title, width_px=width_px, rest=Markup(svg.removeprefix("<svg ")))  # matplotlib escapes
