"""A comparison as text for a terminal, and as a figure."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from for_eval.metrics.paired_comparison import CategoryDifference, Over, PairedComparison, Spread
from for_eval.metrics.retrieval import GROUPS
from for_model.errors import UsageError
from for_model.files import write_bytes

FORMATS = ("png", "svg", "pdf")
_MOST = 10  # categories listed at each end
_MOST_NAMED = 120  # bars that still have room for their names
_OVERS: tuple[Over, ...] = ("images", "categories", "both")
_COLOURS = {"base": "#0072B2", "novel": "#E69F00", "all": "#555555"}  # told apart by the colour-blind, too
_LINES: dict[Over, str] = {"images": "-", "categories": "--", "both": ":"}


def name_of(result: dict[str, Any]) -> str:
    """What a result is of, in a few words."""
    method = result["method"]
    head = method["settings"].get("head_sha256", "")[:8]
    embeddings = f"{method['n_embeddings']} embedding{'s' if method['n_embeddings'] != 1 else ''}"
    model = f"({embeddings}; {method['backbone']}, {method['weights']})"
    return " ".join(filter(None, [method["method"], head, model]))


def to_text(comparison: PairedComparison, name_a: str, name_b: str) -> str:
    """A comparison as a few tables in plain text."""
    c = comparison
    lines = [
        f"A  {name_a}",
        f"B  {name_b}",
        f"{c.dataset} {c.split}, protocol {c.protocol}: {c.n_images:,} images, {len(c.categories):,} categories with "
        f"relevant ones; {c.n_resamples:,} resamples, seed {c.seed}",
    ]
    if c.only_a or c.only_b:
        lines.append(f"left out, as only one of them ranks it: {c.only_a:,} images of A, {c.only_b:,} of B")
    percent = f"{100 * c.level:g}%"
    heading = ["group", f"A mAP@{c.k}", f"B mAP@{c.k}", "B - A"]
    for over in _OVERS:
        heading += [f"{percent} over {over}", "B better"]
    lines += ["", *_aligned([heading, *(_group_cells(c, group) for group in GROUPS)], numbers_from=1), ""]
    better = sum(category.difference > 0 for category in c.categories)
    equal = sum(category.difference == 0 for category in c.categories)
    lines.append(f"B is better in {better:,} of {len(c.categories):,} categories, equal in {equal:,}")
    best, worst = c.categories[:_MOST], c.categories[_MOST:][-_MOST:]
    heading = ["category", "group", "images", f"A AP@{c.k}", f"B AP@{c.k}", "B - A", f"{percent} over images"]
    rows = [_category_cells(category) for category in (*best, *worst)]
    table = _aligned([heading, *rows], numbers_from=2)
    if len(c.categories) > 2 * _MOST:
        table.insert(1 + _MOST, "...")
    return "\n".join([*lines, *table])


def _group_cells(comparison: PairedComparison, name: str) -> list[str]:
    group = comparison.groups[name]
    if group is None:
        return [name] + [""] * (3 + 2 * len(_OVERS))
    cells = [f"{name} ({group.n_categories})", f"{100 * group.a:.2f}", f"{100 * group.b:.2f}"]
    cells.append(f"{100 * group.difference:+.2f}")
    for over in _OVERS:
        spread = group.spreads[over]
        cells += [_interval(spread), f"{100 * spread.share_better:.1f}%" if spread else ""]
    return cells


def _category_cells(category: CategoryDifference) -> list[str]:
    scores = [f"{100 * category.a:.2f}", f"{100 * category.b:.2f}", f"{100 * category.difference:+.2f}"]
    return [category.name, category.group, str(category.n_relevant), *scores, _interval(category.spread)]


def _interval(spread: Spread | None) -> str:
    return f"{100 * spread.low:+.2f} to {100 * spread.high:+.2f}" if spread else ""


def _aligned(rows: Sequence[Sequence[str]], numbers_from: int) -> list[str]:
    """Rows of cells as lines; columns from `numbers_from` on are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i < numbers_from else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def figure_format(path: Path) -> str:
    """The format that a figure's name asks for. Raises UsageError listing those there are."""
    ending = path.suffix.lower().removeprefix(".")
    if ending not in FORMATS:
        raise UsageError(f"{path}: expected a figure's name that ends in .{', .'.join(FORMATS)}")
    return ending


def write_figure(path: Path, comparison: PairedComparison, name_a: str, name_b: str) -> None:
    """Draw every category's difference, sorted, and the groups' intervals.

    Raises UsageError as `figure_format` does.
    """
    from matplotlib.figure import Figure  # takes a second to import; without pyplot there is no window and no state

    ending = figure_format(path)
    figure = Figure(figsize=(13, 6.5), layout="constrained")
    bars, groups = figure.subplots(1, 2, width_ratios=(4, 1))
    _draw_categories(bars, comparison)
    _draw_groups(groups, comparison)
    figure.suptitle(
        f"A: {name_a}   B: {name_b}\n{comparison.dataset} {comparison.split}, protocol {comparison.protocol}, "
        f"{comparison.n_images:,} images",
        fontsize=10,
    )
    data = io.BytesIO()
    figure.savefig(data, format=ending, dpi=150)
    write_bytes(path, data.getvalue())


def _draw_categories(axes: Any, comparison: PairedComparison) -> None:
    categories = comparison.categories
    places = range(len(categories))
    for group in ("base", "novel"):
        mine = [i for i in places if categories[i].group == group]
        heights = [100 * categories[i].difference for i in mine]
        axes.bar(mine, heights, width=0.8, color=_COLOURS[group], label=f"{group} ({len(mine)})")
    axes.axhline(0, color="black", linewidth=0.8)
    if len(categories) <= _MOST_NAMED:
        axes.set_xticks(places, [c.name for c in categories], rotation=90, fontsize=7)
    else:
        axes.set_xticks([])
        axes.set_xlabel(f"{len(categories):,} categories, best for B first")
    axes.margins(x=0.01)
    axes.set_ylabel(f"AP@{comparison.k} of B minus A, points")
    axes.legend()


def _draw_groups(axes: Any, comparison: PairedComparison) -> None:
    for place, group in enumerate(GROUPS):
        scores = comparison.groups[group]
        if scores is None:
            continue
        for step, over in enumerate(_OVERS):
            spread = scores.spreads[over]
            if spread is not None:
                x = place + 0.22 * (step - 1)
                ends = [100 * spread.low, 100 * spread.high]
                axes.plot([x, x], ends, _LINES[over], color=_COLOURS[group], linewidth=2.5)
                axes.plot([x], [100 * scores.difference], "o", color=_COLOURS[group], markersize=5)
    for over in _OVERS:
        axes.plot([], [], _LINES[over], color="black", linewidth=2, label=f"over {over}")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(GROUPS)), GROUPS)
    axes.set_xlim(-0.6, len(GROUPS) - 0.4)
    axes.set_title(f"mAP@{comparison.k}, B minus A, {100 * comparison.level:g}%", fontsize=9)
    axes.legend(fontsize=7)
