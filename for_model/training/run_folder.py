"""The folder of a training run: which training it belongs to, its lock, and its log."""

import contextlib
import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from for_model.backbones.protocol import ImageTextBackbone
from for_model.errors import UsageError
from for_model.files import locked, temporaries_of, write_bytes, write_json
from for_model.training.config import VERSION, TrainConfig
from for_model.training.distributed import World

# What a training that was killed while it wrote a file leaves beside it: ours, and what safetensors writes first.
_LEFTOVER = temporaries_of(r"checkpoint\.safetensors|head\.safetensors|config\.json|log\.jsonl|log\.csv")
_OF_SAFETENSORS = re.compile(r"\.tmp\w{6}")


@contextlib.contextmanager
def hold_lock(out: Path, world: World) -> Iterator[None]:
    """Hold the run folder's lock, in the first process, and clear away what killed trainings have left over.

    out: the run folder.
    world: the training's processes.

    Raises UsageError when another training holds it.
    """
    busy = UsageError(f"another training is writing to {out}: wait for it, or choose another --out")
    with locked(out / "lock", busy) if world.first else contextlib.nullcontext():
        if world.first:
            for path in filter(_is_left_over, out.iterdir()):
                path.unlink(missing_ok=True)
        yield


def _is_left_over(path: Path) -> bool:
    return bool(_LEFTOVER.fullmatch(path.name) or _OF_SAFETENSORS.fullmatch(path.name))


def claim_folder(config: TrainConfig, out: Path, backbone: ImageTextBackbone, world: World) -> None:
    """Write this training's settings into the run folder, or check that the folder was made with the same ones.

    config: the settings.
    out: the run folder.
    backbone: whose weights' hash is written as well.
    world: the training's processes; the first one writes.

    Raises UsageError when the folder holds a training with other settings, or files that aren't a training's.
    """
    settings = {**config.to_json(), "features": None}  # where feature maps come from changes no result
    plan = {"version": VERSION, "config": settings, "weights_sha256": backbone.weights_sha256}
    path = out / "config.json"
    try:
        earlier = json.loads(path.read_bytes())
    except FileNotFoundError:
        earlier = None
    except ValueError as error:
        raise UsageError(f"{path} is damaged ({error}): choose another --out, or delete {out}") from error
    if earlier is not None and earlier != json.loads(json.dumps(plan)):
        raise UsageError(f"{out} holds a training with other settings: choose another --out, or delete it")
    if earlier is None and out.exists() and not all(map(_is_left_over, out.iterdir())):
        raise UsageError(f"{out} holds files that are not a training's: choose another --out")
    world.wait()  # until all have looked
    if earlier is None and world.first:
        write_json(path, plan)


def write_log(out: Path, line: dict[str, Any]) -> None:
    """Add an epoch to `log.jsonl`, and make `log.csv` of it; an epoch that is run again replaces its line."""
    path = out / "log.jsonl"
    old = [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []
    lines = [each for each in old if each["epoch"] < line["epoch"]] + [line]
    write_bytes(path, "".join(json.dumps(each) + "\n" for each in lines).encode())
    text = io.StringIO()
    writer = csv.DictWriter(text, list(line), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_bytes(out / "log.csv", text.getvalue().encode())
