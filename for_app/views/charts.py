"""The ablations' curves as drawings: SVG that takes the page's colours.

Text and axes have the colour of the text around them (`currentColor`), so one drawing serves light and dark. Base and
novel differ in colour, and in the marks or the lines too.
"""

import io
import re
import threading
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from for_app.views.curves import PAPER_DATASET, Ablation, Curve, MarksCurves
from for_app.views.templates import render

_TEXT = "#010203"  # stands for currentColor while matplotlib draws
_GROUPS = {"base": ("#1f8a9e", "o"), "novel": ("#d9772b", "s")}
# Okabe and Ito's colours that show on white and on black; marks and lines tell them apart without colour
_REFINER_STYLES = (
    ("#0072B2", "o", "-"),
    ("#D55E00", "s", "--"),
    ("#009E73", "^", "-."),
    ("#CC79A7", "D", ":"),
    ("#E69F00", "v", "-"),
    ("#56B4E9", "P", "--"),
)
_LINES = {"both losses": "-", "labels alone": "--"}
_lock = threading.Lock()  # matplotlib's settings are shared by all threads


def ablations_html(found: Sequence[Ablation]) -> str:
    """The curves of several ablations as HTML, each under its title, ours and the paper's on axes of their own."""
    rows = [
        {"title": ablation.title, "drawings": [Markup(svg) for svg in drawn]}
        for ablation in found
        if (drawn := curves(ablation))
    ]
    return render("drawings", rows=rows)


def marks_html(found: Sequence[MarksCurves]) -> str:
    """Searches with rounds of marks as HTML, under each method's name: images not seen yet, and images found."""
    rows = [
        {
            "title": f"{curves_of.method}, over rounds of ten marks",
            "drawings": [
                Markup(_rounds_chart(curves_of.unseen, "AP of images not seen yet (%)", curves_of.method)),
                Markup(_rounds_chart(curves_of.found, "right images found (%)", curves_of.method)),
            ],
        }
        for curves_of in found
    ]
    return render("drawings", rows=rows)


def _rounds_chart(of_refiners: dict[str, tuple[tuple[float, float], ...]], y_label: str, method: str) -> str:
    figure, axes = _figure(4.6, 3.4)
    for number, (refiner, points) in enumerate(of_refiners.items()):
        colour, marker, line = _REFINER_STYLES[number % len(_REFINER_STYLES)]
        x, y = zip(*points, strict=True)
        axes.plot(x, y, color=colour, marker=marker, linestyle=line, label=refiner)
    axes.set_xticks(sorted({x for points in of_refiners.values() for x, _ in points}))
    axes.set_xlabel("rounds")
    axes.set_ylabel(y_label)
    axes.legend(frameon=False, fontsize=8)
    return _svg(figure, f"{y_label}, {method}: a line a refiner")


def curves(ablation: Ablation) -> tuple[str, ...]:
    """An ablation's drawings: ours, then the paper's, each on axes of its own: other images, another model."""
    drawings = []
    for found, where in ((ablation.ours, "measured with FOR"), (ablation.paper, f"the paper, {PAPER_DATASET}")):
        if len({x for curve in found for x in curve.x}) > 1:  # a single point is no curve
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
