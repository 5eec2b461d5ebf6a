"""The JSON results of the studies: one file a method and split, in a folder of its own for each study."""

import json
from pathlib import Path
from typing import Any

from for_model.errors import DataError
from for_model.files import slug, write_json


def write_study(out: Path, folder: str, result: dict[str, Any]) -> Path:
    """Write a result under `out/results/FOLDER`; a later one of the same dataset, split and method takes its place."""
    method = result["method"]
    name = slug(result["dataset"], result["split"], method["backbone"], method["method"], str(method["n_embeddings"]))
    path = out / "results" / folder / f"{name}.json"
    write_json(path, result)
    return path


def read_studies(out: Path, folder: str, format: str) -> list[dict[str, Any]]:
    """All results of a study, by the names of their files. Raises DataError for a damaged or foreign one."""
    results = []
    for path in sorted((out / "results" / folder).glob("*.json")):
        try:
            result = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is no JSON result ({error}): delete it and run its study again") from error
        if not isinstance(result, dict) or result.get("format") != format:
            raise DataError(f"{path} is not of the format {format}: delete it and run its study again")
        results.append(result)
    return results
