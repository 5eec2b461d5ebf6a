"""`python -m for_model`: draw MiniScenes, pretrain RN-mini. `--help` on any command tells more."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from for_model.cli import print_json, run_command
from for_model.files import cache_dir, check_writable

if TYPE_CHECKING:
    from for_model.data.miniscenes.concepts import Split


def _scenes(arguments: argparse.Namespace) -> None:
    from for_model.data.miniscenes.scenes import write_scenes

    counts: dict[Split, int] = {"train": arguments.train, "dev": arguments.dev, "val": arguments.val}
    write_scenes(arguments.out, counts, arguments.seed, arguments.size)
    print(f"wrote {', '.join(f'{n} {s}' for s, n in counts.items() if n)} scenes to {arguments.out}")


def _pretrain_mini(arguments: argparse.Namespace) -> None:
    check_writable(arguments.work)
    check_writable(arguments.out.absolute().parent)
    from for_model.training.pretrain import run_recipe  # torch and open_clip take seconds to import

    for line in run_recipe(arguments.config, arguments.settings, arguments.work, arguments.out, arguments.device):
        print(line, flush=True)


def _train(arguments: argparse.Namespace) -> None:
    from for_model.training.config import load_config
    from for_model.training.train import train

    config = load_config(arguments.config, arguments.settings)
    if arguments.smoke:
        config = config.smoke()
    name = arguments.config.stem + ("-smoke" if arguments.smoke else "")
    out = arguments.out or cache_dir() / "runs" / name
    check_writable(out)
    for line in train(config, out, arguments.device):
        print_json(line)
    if (out / "head.safetensors").exists():
        head = out / "head.safetensors"
        print(
            f"wrote {head}; score it: python -m for_eval leaderboard --dataset NAME --methods {head}", file=sys.stderr
        )


def _parser() -> argparse.ArgumentParser:
    from for_model.data.miniscenes.scenes import DEFAULT_SIZE

    parser = argparse.ArgumentParser(prog="python -m for_model", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    scenes = commands.add_parser(
        "scenes",
        help="draw MiniScenes in COCO's layout",
        description="Draw MiniScenes in COCO's layout; the same arguments give the same bytes.",
        epilog="example: python -m for_model scenes --out scenes --train 5000 --dev 1000 --val 2000",
    )
    scenes.add_argument("--out", type=Path, required=True, help="folder to write to")
    for split, count, what in (
        ("train", 5000, "training"),
        ("dev", 1000, "tuning"),
        ("val", 2000, "leaderboards only"),
    ):
        scenes.add_argument(f"--{split}", type=int, default=count, help=f"scenes for {what} (default {count})")
    scenes.add_argument("--seed", type=int, default=0, help="other seeds draw other scenes (default 0)")
    scenes.add_argument("--size", type=int, default=DEFAULT_SIZE, help="pixels a side (default %(default)s)")
    scenes.set_defaults(run=_scenes)

    train = commands.add_parser(
        "train",
        help="train FOR's head, or fine-tune CLIP's or Dense-CLIP's, on a labelled dataset",
        description="Train a head on a frozen CLIP: with labels, pseudo-labels or both. Prints one JSON line an epoch. "
        "Killed at any moment and started again, it goes on. Start it with torchrun to use several GPUs.",
        epilog="example: python -m for_model train for_model/configs/for-coco.toml data.root=~/coco head.queries=25",
    )
    train.add_argument("config", type=Path, help="a TOML file; those of the paper are in for_model/configs")
    train.add_argument("--out", type=Path, help="folder of the run (default: runs/CONFIG in the cache)")
    train.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    train.add_argument("--smoke", action="store_true", help="all of the code on 16 images, in minutes; a useless head")
    train.add_argument(
        "settings", nargs="*", metavar="KEY=VALUE", help="change a setting: loss.pse=0 head.queries=25 weights=openai"
    )
    train.set_defaults(run=_train)

    package = Path(__file__).parent
    pretrain = commands.add_parser(
        "pretrain-mini",
        help="pretrain RN-mini, the built-in CLIP",
        description="Pretrain RN-mini on drawn scenes. Killed at any moment and started again, it goes on.",
        epilog="example: python -m for_model pretrain-mini --device cuda scenes.epochs=20",
    )
    pretrain.add_argument("--config", type=Path, default=package / "configs" / "rn-mini.toml", help="the recipe")
    pretrain.add_argument("--work", type=Path, help="folder for drawings and the checkpoint (default: in the cache)")
    pretrain.add_argument("--out", type=Path, default=Path("rn-mini.safetensors"), help="weights file to write")
    pretrain.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    pretrain.add_argument("settings", nargs="*", metavar="STAGE.KEY=VALUE", help="change a setting of the recipe")
    pretrain.set_defaults(run=_pretrain_mini)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code, see `for_model.cli`."""
    return run_command(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> None:
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and (not hasattr(arguments, "settings") or any(text.startswith("-") for text in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.settings += rest  # argparse leaves over those that come after an option
    if getattr(arguments, "work", False) is None:
        arguments.work = cache_dir() / "pretrain-mini"
    arguments.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
