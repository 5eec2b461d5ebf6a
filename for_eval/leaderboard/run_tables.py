"""The paper's tables, made: every comparison and ablation trained, scored and compared with what is committed.

What was trained and scored is kept in FOR's cache, so a run that was stopped goes on, and what two tables share is made
once. `OUT/results/tables/DATASET/*.json` are the source of truth, each with its rankings beside it; the CSVs are made
from them alone.
"""

import csv
import io
import json
import logging
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from for_eval.leaderboard.evaluate import run_method
from for_eval.leaderboard.paper_tables import SUITES, Row, Suite, Table
from for_eval.leaderboard.results import Ranked, read_ranked, read_result, write_result
from for_eval.metrics.retrieval import GROUPS
from for_model.data.dataset import Dataset
from for_model.data.registry import load_dataset
from for_model.errors import DataError, UsageError
from for_model.files import cache_dir, write_bytes
from for_model.methods.build import build_method
from for_model.methods.clip_method import ClipMethod
from for_model.training import train
from for_model.training.features import Kept, open_features

log = logging.getLogger(__name__)

# How far a row may move, of mAP@50. Another machine decodes and multiplies a little differently, and so trains another
# head from the same seed: twice what two seeds differ by.
UNTRAINED_TOLERANCE = dict.fromkeys(GROUPS, 0.005)
TRAINED_TOLERANCE = {"base": 0.04, "novel": 0.12, "all": 0.06}
_HEAD = "head.safetensors"

Results = dict[str, dict[str, Any]]  # protocol -> result


@dataclass(frozen=True)
class RowOutcome:
    """What became of one row and seed. ok: None where nothing was committed to compare with."""

    dataset: str
    table: str
    row: Row
    seed: int
    ok: bool | None
    line: str


def parse_tables(suites: Sequence[Suite], names: str) -> list[str]:
    """`main,queries` -> the names; an empty string for all of some suites. Raises UsageError listing them."""
    known = list(dict.fromkeys(name for suite in suites for name in suite.tables))
    chosen = [name.strip() for name in names.split(",") if name.strip()] or known
    for name in chosen:
        if name not in known:
            raise UsageError(f"unknown table {name!r}; expected some of {', '.join(known)}")
    return chosen


def find_data(suite: Suite, data: Path | None) -> tuple[Path | None, Dataset]:
    """Where a suite's dataset lies, and its scored split.

    data: the folder that holds one folder a dataset, named as it is; MiniScenes needs none.
    Raises DataError when it isn't there, or not whole.
    """
    root = None
    if suite.dataset != "miniscenes":
        if data is None:
            raise DataError(f"no folder of datasets was given: --data DIR, with {suite.dataset} in DIR/{suite.dataset}")
        root = data.expanduser() / suite.dataset
        if not root.is_dir() and suite.folder and (root.parent / suite.folder).is_dir():
            root = root.parent / suite.folder
        if not root.is_dir():
            how = f"`{_fetch_command(suite, root)}`" if suite.fetched else "put it there, see docs/datasets.md"
            raise DataError(f"{root} doesn't exist: {how}")
    dataset = load_dataset(suite.dataset, root, suite.split)
    dataset.check_files(
        f"`{_fetch_command(suite, root)}` goes on with them" if suite.fetched else "see docs/datasets.md"
    )
    return root, dataset


def _fetch_command(suite: Suite, root: Path | None) -> str:
    return f"python -m for_eval fetch {suite.dataset} --root {root}"


def run_tables(
    suite: Suite,
    names: Sequence[str],
    out: Path,
    root: Path | None,
    dataset: Dataset,
    *,
    seeds: int | None = None,
    device: str | None = None,
    accept: bool = False,
) -> Iterator[RowOutcome]:
    """Make the rows of some tables of a suite, and compare each with its committed result under `out`.

    names: those that the suite doesn't have are left out.  root, dataset: as `find_data` gives them.
    seeds: trainings a row; None for each table's own number.  accept: let new results take the place of committed ones
    that differ; without it those stay, and a result that was never committed is added.
    All first seeds come before all second ones. The tables' CSVs are written after every row.
    Raises UsageError for a wrong number of seeds, and what training and scoring raise.
    """
    if seeds is not None and seeds < 1:
        raise UsageError(f"--seeds {seeds}: expected at least 1")
    tables = {name: table for name, table in suite.tables.items() if name in names}
    if not tables:
        return
    todo = [(name, row) for name, table in tables.items() for row in table.rows]
    for seed in range(max(seeds or table.seeds for table in tables.values())):
        for number, (name, row) in enumerate(todo, start=1):
            if seed >= (seeds or tables[name].seeds) or (row.method is not None and seed):
                continue
            what = f"{suite.dataset} {name}, row {number} of {len(todo)}, seed {seed}"
            log.info("%s: %s", what, ", ".join(row.label))
            measured = measure(suite, row, seed, dataset, root, device)
            committed = _read_results(_folder(out, suite), suite, row, seed)
            ok, line = _compare(row, {protocol: result for protocol, (result, _) in measured.items()}, committed)
            if committed is None or accept:
                _write_measured(_folder(out, suite), suite, row, seed, measured)
            write_table_csvs(out, [suite])
            yield RowOutcome(suite.dataset, name, row, seed, ok, line)


def measure(
    suite: Suite, row: Row, seed: int, dataset: Dataset, root: Path | None = None, device: str | None = None
) -> dict[str, Ranked]:
    """Train (or go on, or find it done) and score one row; kept in the cache, with its rankings.

    dataset: the scored split.  root: where its training split lies.
    Returns protocol -> result and rankings.
    """
    folder = cache_dir() / "tables" / suite.dataset
    config = suite.training(row, seed, root)
    training: dict[str, Any] = {}
    if row.method is None:
        out = cache_dir() / "runs" / suite.dataset / suite.key(row, seed)
        for line in train.train(config, out, device):
            log.info("%s", json.dumps(line))
        training = {"config": {**config.to_json(), "data": {**config.to_json()["data"], "root": ""}}}
        training["seconds"] = _training_seconds(out)
        method = build_method(str(out / _HEAD), device=device)
    elif row.backbone is not None:
        method = build_method(row.method, row.backbone, device=device)
    else:
        size = config.image_size or None
        method = build_method(row.method, config.backbone, config.weights or None, image_size=size, device=device)
    earlier = _read_measured(folder, suite, row, seed)
    identity = json.loads(json.dumps(method.info.to_json()))
    if earlier is not None and all(result["method"] == identity for result, _ in earlier.values()):
        return earlier
    kept = None
    if isinstance(method, ClipMethod):  # the trunk, which is most of the work, runs once for all rows
        features = open_features(dataset, method.backbone, config.features.cache_gib, exact=True)
        kept = features if isinstance(features, Kept) else None
    scored = run_method(dataset, method, str(method.device), features=kept)
    measured = {
        result["protocol"]: ({**result, "seed": seed, "training": training}, rankings) for result, rankings in scored
    }
    _write_measured(folder, suite, row, seed, measured)
    return measured


def _training_seconds(out: Path) -> float:
    return sum(json.loads(line)["seconds"] for line in (out / "log.jsonl").read_text().splitlines())


def _folder(out: Path, suite: Suite) -> Path:
    return out / "results" / "tables" / suite.dataset


def _path(folder: Path, suite: Suite, row: Row, seed: int, protocol: str) -> Path:
    return folder / f"{suite.result_name(row, seed, protocol)}.json"


def _write_measured(folder: Path, suite: Suite, row: Row, seed: int, measured: dict[str, Ranked]) -> None:
    for protocol, (result, rankings) in measured.items():
        write_result(_path(folder, suite, row, seed, protocol), result, rankings)


def _read_measured(folder: Path, suite: Suite, row: Row, seed: int) -> dict[str, Ranked] | None:
    """What was measured earlier; None where that isn't all there and sound, rankings included, and is made again."""
    paths = {protocol: _path(folder, suite, row, seed, protocol) for protocol in suite.protocols}
    if not all(path.exists() for path in paths.values()):
        return None
    try:
        return {protocol: read_ranked(path) for protocol, path in paths.items()}
    except DataError as error:
        log.info("scored again: %s", error)
        return None


def _read_results(folder: Path, suite: Suite, row: Row, seed: int) -> Results | None:
    """A row's results, or None when one of its protocols has none. Raises DataError for a damaged one."""
    results = {}
    for protocol in suite.protocols:
        path = _path(folder, suite, row, seed, protocol)
        if not path.exists():
            return None
        results[protocol] = read_result(path)
    return results


def _compare(row: Row, results: Results, committed: Results | None) -> tuple[bool | None, str]:
    tolerance = UNTRAINED_TOLERANCE if row.method is not None else TRAINED_TOLERANCE
    ok, parts = True, []
    for protocol, result in results.items():
        what = "" if len(results) == 1 else f"{protocol}: "
        what += " ".join(f"{group} {_percent(result['scores'][group]['map'])}" for group in GROUPS)
        if committed is not None:
            moved = {group: _moved(result, committed[protocol], group) for group in GROUPS}
            ok &= all(moved[group] <= tolerance[group] for group in GROUPS)
            details = ", ".join(f"{group} {100 * moved[group]:.1f} of {100 * tolerance[group]:g}" for group in GROUPS)
            what += f" (moved: {details} allowed)"
        parts.append(what)
    line = f"{', '.join(filter(None, row.label))}: {'; '.join(parts)}"
    return (None, f"new   {line}") if committed is None else (ok, f"{'OK' if ok else 'FAIL':<5} {line}")


def _percent(score: float | None) -> str:
    return "none" if score is None else f"{100 * score:.1f}"


def _moved(result: dict[str, Any], committed: dict[str, Any], group: str) -> float:
    """How far a group's score is from the committed one; infinite where only one of them has a score."""
    found, expected = (each["scores"][group]["map"] for each in (result, committed))
    if found is None or expected is None:
        return 0.0 if found is expected else float("inf")
    return abs(found - expected)


def write_table_csvs(out: Path, suites: Iterable[Suite] | None = None) -> list[Path]:
    """Write `OUT/DATASET-TABLE.csv` of every table that has a result; a row without one is left empty.

    suites: whose tables; None for those of all.
    A row is the mean over the seeds that all trained rows of its table have (those without any left aside), as seeds
    differ more than many settings do.
    """
    paths = []
    for suite in SUITES.values() if suites is None else suites:
        for name, table in suite.tables.items():
            found = [results_of_row(out, suite, row) for row in table.rows]
            if not any(found):
                continue
            shared = min(
                (
                    len(results)
                    for row, results in zip(table.rows, found, strict=True)
                    if results and row.method is None
                ),
                default=1,
            )
            protocol = ["protocol"] if len(suite.protocols) > 1 else []
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow([*table.columns, *protocol, *_means(table, [])])
            for row, seeds in zip(table.rows, found, strict=True):
                for each in suite.protocols:
                    means = _means(table, [results[each] for results in seeds[:shared]])
                    writer.writerow([*row.label, *([each] if protocol else []), *means.values()])
            paths.append(out / f"{suite.dataset}-{name}.csv")
            write_bytes(paths[-1], text.getvalue().encode())
    return paths


def results_of_row(out: Path, suite: Suite, row: Row) -> list[Results]:
    """A row's results from seed 0 up to the first that is missing."""
    found = []
    for seed in range(1 if row.method is not None else 1000):
        results = _read_results(_folder(out, suite), suite, row, seed)
        if results is None:
            break
        found.append(results)
    return found


def _means(table: Table, results: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Means and standard deviations; what wasn't measured is empty."""
    values = {"seeds": str(len(results)) if results else ""}
    for heading, keys in table.scores.items():
        found = [_value(result, keys) for result in results]
        scores = [100 * score for score in found if score is not None] if None not in found else []
        values[heading] = f"{statistics.mean(scores):.2f}" if scores else ""
        values[std_of(heading)] = f"{statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
    return values


def std_of(heading: str) -> str:
    """The heading of a score's standard deviation: `base mAP@50` -> `base std`."""
    return f"{heading.removesuffix(' mAP@50')} std"


def _value(result: dict[str, Any], keys: Sequence[str]) -> float | None:
    value: Any = result
    for key in keys:
        value = value[key]
    return None if value is None else float(value)
