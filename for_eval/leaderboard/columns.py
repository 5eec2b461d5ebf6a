"""The columns of the leaderboards' tables, and results as CSV."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from for_eval.metrics.retrieval import GROUPS

RECALL_KS = (1, 5, 10, 50)
LABELS = 3  # an image, for F1


@dataclass(frozen=True)
class Column:
    """One column of a table.

    heading: its first line.
    keys: where a result has its value, from the outermost key to the innermost.
    decimals: how many are written; None for a value that is written as it is.
    percent: whether the value, in 0..1, is written in percent.
    """

    heading: str
    keys: tuple[str, ...]
    decimals: int | None = None
    percent: bool = False


def _score_columns() -> list[Column]:
    columns = []
    for group in GROUPS:
        columns.append(Column(f"{group} mAP@50", ("scores", group, "map"), 2, True))
        columns += [Column(f"{group} {end}", ("scores", group, f"map_{end}"), 2, True) for end in ("low", "high")]
    for group in GROUPS:
        for heading, key in (
            ("mAP@50 over P", "map_over_p"),
            ("mAP@50 over hits", "map_over_hits"),
            ("precision@50", "precision"),
            *((f"recall@{k}", f"recall@{k}") for k in RECALL_KS),
        ):
            columns.append(Column(f"{group} {heading}", ("scores", group, key), 2, True))
    return columns


COLUMNS: tuple[Column, ...] = (
    Column("dataset", ("dataset",)),
    Column("split", ("split",)),
    Column("protocol", ("protocol",)),
    Column("backbone", ("method", "backbone")),
    Column("weights", ("method", "weights")),
    Column("image size", ("method", "image_size")),
    Column("method", ("method", "method")),
    Column("embeddings an image", ("method", "n_embeddings")),
    Column("bytes an image", ("bytes_per_image",)),
    Column("images a second", ("images_per_second",), 1),
    Column("device", ("device",)),
    Column("images", ("n_images",)),
    Column("skipped", ("n_skipped",)),
    *_score_columns(),
)


_SAME_COLUMNS = ("dataset", "split", "backbone", "weights", "image size", "method", "embeddings an image", "skipped")
MULTILABEL_COLUMNS: tuple[Column, ...] = (
    *(column for column in COLUMNS if column.heading in _SAME_COLUMNS),
    *(
        Column(f"{setting.upper()} {heading}", ("multilabel", setting, key), 2 if percent else None, percent)
        for setting in ("gzsl", "zsl")
        for heading, key, percent in (
            (f"F1@{LABELS}", "f1", True),
            (f"precision@{LABELS}", "precision", True),
            (f"recall@{LABELS}", "recall", True),
            ("mAP", "map", True),
            ("images", "n_images", False),
        )
    ),
)


def cell(result: dict[str, Any], column: Column) -> str:
    """What a result says in a column; empty where it says nothing."""
    value: Any = result
    for key in column.keys:
        value = value.get(key) if isinstance(value, dict) else None
    if value is None:
        return ""
    if column.decimals is None:
        return str(value)
    return f"{value * (100 if column.percent else 1):.{column.decimals}f}"


def to_csv(results: Iterable[dict[str, Any]], columns: Sequence[Column] = COLUMNS) -> str:
    """Results as CSV, a line each, in the order given."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([column.heading for column in columns])
    writer.writerows([cell(result, column) for column in columns] for result in results)
    return text.getvalue()
