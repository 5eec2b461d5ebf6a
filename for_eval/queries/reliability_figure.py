"""The reliability diagram: what came true of the probabilities that were said, a panel a result."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from for_eval.leaderboard.comparison_report import figure_format
from for_eval.queries.calibration_study import CHOSEN_RULE, HITS
from for_model.files import write_bytes
from for_model.methods.registry import method_title


def write_reliability_figure(path: Path, results: Sequence[dict[str, Any]]) -> None:
    """Draw the reliability of the last rule that a result has fitted to its own split, over the best hits of each text.

    path: a .png, .svg or .pdf; UsageError for another ending.
    results: as `calibration_study.study_calibration` gives them, at least one.
    """
    from matplotlib.figure import Figure

    ending = figure_format(path)
    figure = Figure(figsize=(3 * len(results), 3.4), layout="constrained")
    for panel, result in zip(figure.subplots(1, len(results), squeeze=False)[0], results, strict=True):
        scores = drawn_rule(result)
        bins = scores["reliability_hits"]
        filled = [i for i, count in enumerate(bins["count"]) if count]
        most = max(bins["count"])
        panel.plot([0, 1], [0, 1], color="0.6", linewidth=1)
        panel.plot([bins["said"][i] for i in filled], [bins["true"][i] for i in filled], color="C0", linewidth=1)
        sizes = [8 + 90 * bins["count"][i] / most for i in filled]
        panel.scatter([bins["said"][i] for i in filled], [bins["true"][i] for i in filled], s=sizes, color="C0")
        panel.axvline(scores["cutoff"], color="C1", linewidth=1, linestyle="--")
        method = result["method"]
        panel.set_title(
            f"{method_title(method['method'], method['n_embeddings'])}, ECE {100 * scores['ece_hits']:.1f}%"
        )
        panel.set_xlabel("probability that was said")
        panel.set_ylabel(f"share that came true, best {HITS}")
        panel.set_xlim(0, 1)
        panel.set_ylim(0, 1)
    data = io.BytesIO()
    figure.savefig(data, format=ending, dpi=110)
    write_bytes(path, data.getvalue())


def drawn_rule(result: dict[str, Any]) -> dict[str, Any]:
    """The scores of the chosen rule, fitted to the result's split or, if it has none, as it comes with FOR."""
    rules = result["rules"]
    return next(scores for rule, scores in rules.items() if rule.startswith(CHOSEN_RULE))
