"""Results on disk: one JSON file a row with its rankings beside it, and the tables that are made from them.

The JSON files under `results/` are the source of truth; every CSV is made from them alone, sorted, with fixed
decimals, so that the same results always give the same bytes. What wasn't measured is empty, never 0.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from for_eval.leaderboard.columns import COLUMNS, MULTILABEL_COLUMNS, Column, cell, to_csv
from for_eval.leaderboard.paper_tables import tables_command
from for_eval.metrics.kept_rankings import Rankings, read_rankings, write_rankings
from for_eval.metrics.retrieval import GROUPS
from for_model.errors import DataError, UsageError
from for_model.files import sha256_file, slug, write_bytes, write_json
from for_model.methods.registry import METHODS

FORMAT = "for-result/1"


Ranked: TypeAlias = tuple[dict[str, Any], Rankings]  # a result as JSON values, and the rankings it was made from


def result_path(out: Path, result: dict[str, Any]) -> Path:
    """Where a leaderboard's result is kept under `out`; a later one of the same row has the same place."""
    method = result["method"]
    head = f"{method['method']}-{method['n_embeddings']}"
    if "head_sha256" in method["settings"]:  # heads trained in several ways, or from several seeds, are several rows
        head += f"-{method['settings']['head_sha256'][:8]}"
    weights = f"{method['backbone']}-{method['weights']}-{method['image_size']}px"
    protocol = [] if result["protocol"] == "all" else [result["protocol"]]
    return out / "results" / f"{slug(result['dataset'], result['split'], *protocol, weights, head)}.json"


def write_result(path: Path, result: dict[str, Any], rankings: Rankings) -> None:
    """Write a result to `path`, and its rankings beside it: NAME.json and NAME.npz.

    The rankings are written first, and the JSON has their SHA-256: a write that was stopped between the two leaves a
    pair that `read_ranked` refuses.
    """
    sidecar = path.with_suffix(".npz")
    write_rankings(sidecar, rankings)
    write_json(path, {**result, "rankings": {"file": sidecar.name, "sha256": sha256_file(sidecar)}})


def read_ranked(path: Path) -> Ranked:
    """A result and the rankings beside it.

    Raises DataError where either is missing, damaged, or of another run, with the command that makes both again.
    """
    result = read_result(path)
    again = "run its leaderboard again"
    if "training" in result:
        again = f"`{tables_command(path.parent.name, path.stem)}` makes it again with them"
    named = result.get("rankings")
    if not isinstance(named, dict) or Path(str(named.get("file"))).name != named.get("file"):
        raise DataError(f"{path} has no rankings beside it: {again}")
    sidecar = path.parent / named["file"]
    rankings = read_rankings(sidecar)
    if sha256_file(sidecar) != named.get("sha256"):
        raise DataError(f"{sidecar} is not the file that {path} was written with: {again}")
    return result, rankings


def read_results(out: Path) -> list[dict[str, Any]]:
    """All results under `out/results`, in the order of the tables. Raises DataError for a damaged file."""
    return sorted((read_result(path) for path in sorted((out / "results").glob("*.json"))), key=_order)


def read_result(path: Path, format: str = FORMAT, command: str = "leaderboard") -> dict[str, Any]:
    """One result. Raises DataError, which names the command that makes it, when it can't be read or is of another
    format."""
    try:
        result = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no JSON result ({error}): delete it and run its {command} again") from error
    if not isinstance(result, dict) or result.get("format") != format:
        raise DataError(f"{path} is no result of the format {format}: delete it and run its {command} again")
    return result


def _order(result: dict[str, Any]) -> tuple[Any, ...]:
    method = result["method"]
    known = list(METHODS)
    rank = known.index(method["method"]) if method["method"] in known else len(known)
    names = (
        result["dataset"],
        result["split"],
        result["protocol"],
        method["backbone"],
        method["weights"],
        method["image_size"],
    )
    return (*names, rank, method["method"], method["n_embeddings"], method["settings"].get("head_sha256", ""))


def write_tables(out: Path) -> list[Path]:
    """Write `out/DATASET.csv` for every dataset that has results, and `out/DATASET-multilabel.csv` where it has those.

    Raises UsageError when there are none.
    """
    results = read_results(out)
    if not results:
        raise UsageError(f"no results in {out / 'results'}: run `python -m for_eval leaderboard` first")
    paths = []
    for name in sorted({result["dataset"] for result in results}):
        mine = [result for result in results if result["dataset"] == name]
        paths.append(out / f"{slug(name)}.csv")
        write_bytes(paths[-1], to_csv(mine).encode())
        if any("multilabel" in result for result in mine):
            paths.append(out / f"{slug(name)}-multilabel.csv")
            write_bytes(paths[-1], to_csv(mine, MULTILABEL_COLUMNS).encode())
    return paths


def summary(results: Sequence[dict[str, Any]]) -> str:
    """A short Markdown table of results, for a terminal or a README."""
    federated = any(result["protocol"] != "all" for result in results)
    chosen = [
        *(["protocol"] if federated else []),
        "backbone",
        "weights",
        "method",
        "embeddings an image",
        "bytes an image",
        "images a second",
        "skipped",
    ]
    columns = [next(c for c in COLUMNS if c.heading == heading) for heading in chosen]
    labelling = [
        c for c in MULTILABEL_COLUMNS if c.keys[-1] in ("f1", "map") and any("multilabel" in r for r in results)
    ]
    headings = [*chosen, *(f"{group} mAP@50" for group in GROUPS), *(column.heading for column in labelling)]
    lines = ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
    for result in results:
        cells = [cell(result, column) for column in columns]
        for group in GROUPS:
            point, low, high = (
                cell(result, Column("", ("scores", group, key), 1, True)) for key in ("map", "map_low", "map_high")
            )
            cells.append(f"{point} ({low} to {high})" if point else "")
        cells += [cell(result, column) for column in labelling]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
