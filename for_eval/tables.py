"""The paper's tables, on MiniScenes: every comparison and ablation trained, scored and compared with what is committed.

A row is a method as it is, or a training with some settings of `for-miniscenes.toml` changed, for one or more seeds.
What was trained and scored is kept in FOR's cache, so a run that was stopped goes on, and what two tables share is made
once. `OUT/results/tables/*.json` are the source of truth; the CSVs are made from them alone.
"""

import csv
import io
import json
import logging
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from for_eval.leaderboard import GROUPS, run_method
from for_model import train
from for_model.clip_method import build_method
from for_model.data.registry import load_dataset
from for_model.errors import DataError, UsageError
from for_model.files import cache_dir, sha256_json, write_bytes, write_json
from for_model.train_config import TrainConfig, load_config

log = logging.getLogger(__name__)

CONFIG = Path(train.__file__).parent / "configs" / "for-miniscenes.toml"
DATASET = "miniscenes"
# How far a row may move, of mAP@50. Another machine decodes and multiplies a little differently, and so trains another
# head from the same seed: twice what two seeds differ by.
UNTRAINED_TOLERANCE = dict.fromkeys(GROUPS, 0.005)
TRAINED_TOLERANCE = {"base": 0.04, "novel": 0.12, "all": 0.06}
_HEAD = "head.safetensors"


@dataclass(frozen=True)
class Row:
    """label: what the first columns say.  method: one that isn't trained; None for a training with these settings
    changed."""

    label: tuple[str, ...]
    method: str | None = None
    settings: tuple[str, ...] = ()

    def config(self, seed: int) -> TrainConfig:
        return load_config(CONFIG, [*self.settings, f"seed={seed}", f"data.fold={seed}"])

    def key(self, seed: int) -> str:
        """The name of its result, the same for all rows that are made in the same way."""
        if self.method is not None:
            return self.method.replace(":", "-")
        changes = self.config(0).changes()  # seed and fold 0 are the default
        return f"{self.config(seed).method}_{sha256_json([changes, train.VERSION])[:10]}_seed{seed}"


@dataclass(frozen=True)
class Table:
    """title: with the paper's number.  columns: headings of the labels.  seeds: trainings a row, if not told."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    seeds: int = 1


_SUP, _PL = "loss.pse=0.0", "loss.sup=0.0"
_CLUSTER = "cluster-clip:8"

TABLES: dict[str, Table] = {
    "main": Table(
        "Tables 1 and 2: FOR beside what it is compared with",
        ("method", "embeddings an image", "labels", "pseudo-labels"),
        (
            Row(("CLIP", "1", "no", "no"), "clip"),
            Row(("Dense-CLIP", "25", "no", "no"), "dense-clip"),
            Row(("Cluster-CLIP", "4", "no", "no"), "cluster-clip:4"),
            Row(("Cluster-CLIP", "8", "no", "no"), _CLUSTER),
            Row(("FT-CLIP", "1", "yes", "yes"), settings=("head.kind=ft-clip",)),
            Row(("FT-Dense-CLIP", "25", "yes", "yes"), settings=("head.kind=ft-dense-clip",)),
            Row(("FOR", "8", "yes", "no"), settings=(_SUP,)),
            Row(("FOR", "8", "no", "yes"), settings=(_PL,)),
            Row(("FOR", "4", "yes", "yes"), settings=("head.queries=4",)),
            Row(("FOR", "8", "yes", "yes")),
        ),
        seeds=3,
    ),
    "vocabulary": Table(
        "Table 3: the vocabulary of the pseudo-labels",
        ("method", "pseudo-labels from"),
        (
            Row(("Cluster-CLIP", ""), _CLUSTER),
            Row(("FOR", "none"), settings=(_SUP,)),
            Row(("FOR", "236 nouns but the novel 17"), settings=("pseudo_labels.without_novel=true",)),
            Row(("FOR", "236 nouns")),
        ),
    ),
    "freezing": Table(
        "Table 4: the projections that stay CLIP's",
        ("frozen", "losses", "decoder layers"),
        tuple(
            Row((frozen, losses, str(layers)), settings=(f"head.freeze={freeze}", f"head.layers={layers}", *more))
            for losses, layers, more in (("labels", 0, (_SUP,)), ("both", 0, ()), ("both", 2, ()))
            for frozen, freeze in (("none", "none"), ("v, c", "vo"), ("q, k, v, c", "qkvo"))
        ),
    ),
    "labelled": Table(
        "Table 5: the share of the images that is labelled",
        ("losses", "labelled"),
        tuple(
            Row((losses, f"{100 * share:g}%"), settings=(f"data.labelled={share}", *more))
            for losses, more in (("labels", (_SUP,)), ("both", ()))
            for share in (0.005, 0.01, 0.02, 0.05, 0.1, 1.0)
        ),
    ),
    "queries": Table(
        "Table 6: the number of queries",
        ("queries",),
        tuple(Row((str(n),), settings=(f"head.queries={n}",)) for n in (2, 4, 8, 16)),
    ),
    "layers": Table(
        "Table 7: the number of decoder layers",
        ("decoder layers",),
        tuple(Row((str(n),), settings=(f"head.layers={n}",)) for n in (0, 1, 2, 3)),
    ),
}


@dataclass(frozen=True)
class Verdict:
    """What became of one row and seed. ok: None where nothing was committed to compare with."""

    table: str
    row: Row
    seed: int
    ok: bool | None
    line: str


def parse_tables(names: str) -> list[str]:
    """`main,queries` -> the names; an empty string for all. Raises UsageError listing them."""
    chosen = [name.strip() for name in names.split(",") if name.strip()] or list(TABLES)
    for name in chosen:
        if name not in TABLES:
            raise UsageError(f"unknown table {name!r}; expected some of {', '.join(TABLES)}")
    return chosen


def run_tables(
    names: Sequence[str], out: Path, seeds: int | None = None, device: str | None = None, accept: bool = False
) -> Iterator[Verdict]:
    """Make the rows of some tables, and compare each with its committed result under `out`.

    seeds: trainings a row; None for each table's own number.  accept: let new results take the place of committed ones
    that differ; without it those stay, and a result that was never committed is added.
    All first seeds come before all second ones. The tables' CSVs are written after every row.
    Raises UsageError for a wrong number of seeds, and what training and scoring raise.
    """
    if seeds is not None and seeds < 1:
        raise UsageError(f"--seeds {seeds}: expected at least 1")
    todo = [(name, row) for name in names for row in TABLES[name].rows]
    for seed in range(max(seeds or TABLES[name].seeds for name in names)):
        for number, (name, row) in enumerate(todo, start=1):
            if seed >= (seeds or TABLES[name].seeds) or (row.method is not None and seed):
                continue
            log.info("%s, row %d of %d, seed %d: %s", name, number, len(todo), seed, ", ".join(row.label))
            result = measure(row, seed, device)
            path = _result_path(out, row, seed)
            committed = read_result(path)
            ok, line = _compare(row, result, committed)
            if committed is None or accept:
                write_json(path, result)
            write_table_csvs(out)
            yield Verdict(name, row, seed, ok, line)


def measure(row: Row, seed: int, device: str | None = None) -> dict[str, Any]:
    """Train (or go on, or find it done) and score one row on the validation split; kept in the cache."""
    path = cache_dir() / "tables" / f"{row.key(seed)}.json"
    dataset = load_dataset(DATASET)
    training: dict[str, Any] = {}
    if row.method is None:
        config = row.config(seed)
        out = cache_dir() / "runs" / row.key(seed)
        for line in train.train(config, out, device):
            log.info("%s", json.dumps(line))
        training = {"config": config.to_json(), "seconds": _training_seconds(out)}
    method = build_method(row.method or str(out / _HEAD), device=device)
    earlier = read_result(path)
    if earlier is not None and earlier["method"] == json.loads(json.dumps(method.info.to_json())):
        return earlier
    ((scored, _),) = run_method(dataset, method, str(method.device))
    result = {**scored, "seed": seed, "training": training}
    write_json(path, result)
    return result


def _training_seconds(out: Path) -> float:
    return sum(json.loads(line)["seconds"] for line in (out / "log.jsonl").read_text().splitlines())


def _result_path(out: Path, row: Row, seed: int) -> Path:
    return out / "results" / "tables" / f"{row.key(seed)}.json"


def read_result(path: Path) -> dict[str, Any] | None:
    """A result, or None when there is none. Raises DataError for a damaged one."""
    try:
        result = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}): delete it and run the tables again") from error
    if not isinstance(result, dict) or not {"scores", "method"} <= result.keys():
        raise DataError(f"{path} is no result: delete it and run the tables again")
    return result


def _compare(row: Row, result: dict[str, Any], committed: dict[str, Any] | None) -> tuple[bool | None, str]:
    found = " ".join(f"{group} {100 * result['scores'][group]['map']:.1f}" for group in GROUPS)
    what = f"{', '.join(filter(None, row.label))}: {found}"
    if committed is None:
        return None, f"new   {what}"
    tolerance = UNTRAINED_TOLERANCE if row.method is not None else TRAINED_TOLERANCE
    moved = {group: abs(result["scores"][group]["map"] - committed["scores"][group]["map"]) for group in GROUPS}
    ok = all(moved[group] <= tolerance[group] for group in GROUPS)
    details = ", ".join(f"{group} {100 * moved[group]:.1f} of {100 * tolerance[group]:g}" for group in GROUPS)
    return ok, f"{'OK' if ok else 'FAIL':<5} {what} (moved: {details} allowed)"


def write_table_csvs(out: Path) -> list[Path]:
    """Write `OUT/DATASET-TABLE.csv` of every table that has a result; a row without one is left empty.

    A row is the mean over the seeds that all trained rows of its table have (those without any left aside), as seeds
    differ more than many settings do.
    """
    paths = []
    for name, table in TABLES.items():
        found = [_results(out, row) for row in table.rows]
        if not any(found):
            continue
        shared = min(
            (len(results) for row, results in zip(table.rows, found, strict=True) if results and row.method is None),
            default=1,
        )
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*table.columns, *_means([])])
        for row, results in zip(table.rows, found, strict=True):
            writer.writerow([*row.label, *_means(results[:shared]).values()])
        paths.append(out / f"{DATASET}-{name}.csv")
        write_bytes(paths[-1], text.getvalue().encode())
    return paths


def _results(out: Path, row: Row) -> list[dict[str, Any]]:
    """A row's results from seed 0 up to the first that is missing."""
    results = []
    for seed in range(1 if row.method is not None else 1000):
        result = read_result(_result_path(out, row, seed))
        if result is None:
            break
        results.append(result)
    return results


def _means(results: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Means and standard deviations; what wasn't measured is empty."""
    values = {"seeds": str(len(results)) if results else ""}
    for group in GROUPS:
        scores = [100 * result["scores"][group]["map"] for result in results]
        values[f"{group} mAP@50"] = f"{statistics.mean(scores):.2f}" if scores else ""
        values[f"{group} std"] = f"{statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
    return values
