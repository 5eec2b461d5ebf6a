"""`python -m for_eval`: labelled datasets -> leaderboards, and the paper's tables.

Every command teaches itself with --help. Bad arguments and missing data end with one line and exit code 2.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from for_eval import commands
from for_model.cli import Parsers, package_parser, run_package
from for_model.methods.registry import methods_help
from for_search.commands import add_method_options

_EPILOG = """from photographs to a search, see python -m for_search --help; to a leaderboard:
  python -m for_eval fetch coco --root ~/coco --splits val
  python -m for_eval leaderboard --dataset coco --root ~/coco --backbone RN50 --methods clip,dense-clip,cluster-clip
"""


def _add_leaderboard(parsers: Parsers) -> None:
    parser = parsers.add_parser(
        "leaderboard",
        help="score methods on a labelled dataset",
        description="Embed, rank and score; one JSON result a method under OUT/results, OUT/DATASET.csv made from "
        "them. Stores are kept in the cache, so a run that was stopped goes on.",
        epilog="example: python -m for_eval leaderboard --dataset miniscenes --methods clip,dense-clip,cluster-clip",
    )
    add_method_options(parser)
    parser.add_argument(
        "--methods",
        required=True,
        help=f"one or several with commas: {methods_help()}",
    )
    parser.add_argument("--out", type=Path, default=Path("leaderboards"), help="default: leaderboards")
    parser.add_argument("--allow-missing", action="store_true", help="score without the images whose files are missing")
    parser.add_argument("--stores", type=Path, help="where embedding stores are kept (default: in the cache)")
    parser.set_defaults(run=commands.run_leaderboard)


def _add_tables(parsers: Parsers) -> None:
    parser = parsers.add_parser(
        "tables",
        help="train and score the paper's tables",
        description="Make the rows of the paper's tables on every dataset that is there (the built-in scenes always "
        "are), each trained, scored and compared with the committed result (OK or FAIL). Datasets without data are "
        "left out, which a line says. Stopped at any moment and started again, it goes on.",
        epilog="examples: python -m for_eval tables --dataset miniscenes --only main --seeds 1; "
        "python -m for_eval tables --data ~/datasets",
    )
    parser.add_argument(
        "--dataset",
        default="",
        metavar="NAMES",
        help="some of miniscenes,flickr8k,coco,coco2014,lvis,nuimages (all)",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="the folder of the datasets: DIR/coco, DIR/lvis, ...",
    )
    parser.add_argument(
        "--only",
        default="",
        metavar="NAMES",
        help="some of main,vocabulary,freezing,labelled,queries,layers,plus,parts,literal,captions,baselines,labelling "
        "(all)",
    )
    parser.add_argument("--seeds", type=int, help="trainings a row (default: the table's own)")
    parser.add_argument("--out", type=Path, default=Path("leaderboards"), help="default: leaderboards")
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--accept", action="store_true", help="new results replace committed ones that differ")
    parser.set_defaults(run=commands.run_tables)


def _add_classes(parsers: Parsers) -> None:
    parser = parsers.add_parser(
        "classes",
        help="which of nuImages's categories are base and which novel",
        description="Count in how many images each of nuImages's categories is, and write that and its group, base or "
        "novel, to a TOML file, which its reader takes the groups from. Edit the file to choose them yourself.",
        epilog="example: python -m for_eval classes --root ~/nuimages",
    )
    parser.add_argument("--dataset", choices=("nuimages",), default="nuimages", help="nuimages, the default")
    parser.add_argument("--root", type=Path, required=True, help="the dataset's folder")
    parser.add_argument("--split", default="train", help="whose images are counted (default: train)")
    parser.add_argument(
        "--novel-below", type=float, default=0.05, metavar="SHARE", help="of the images (default 0.05, the paper's)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: ROOT/classes.toml, where it is looked for")
    parser.set_defaults(run=commands.run_classes)


def _add_table(parsers: Parsers) -> None:
    parser = parsers.add_parser("table", help="make every CSV again from the JSON results alone")
    parser.add_argument("--out", type=Path, default=Path("leaderboards"), help="default: leaderboards")
    parser.add_argument("--with-paper", action="store_true", help="print every table with the paper's rows below ours")
    parser.set_defaults(run=commands.run_table)


_STUDIED = "clip,dense-clip,cluster-clip,for,for+"


def _add_calibration(parsers: Parsers) -> None:
    parser = parsers.add_parser(
        "calibration",
        help="is it there at all: fit and measure the probability of a hit",
        description="Fit the rules that turn a score into a probability to one split, measure them on another: one "
        "JSON result a method under OUT/results/calibration, OUT/calibration.csv made from them. Without --fit-split, "
        "measure the numbers that come with FOR.",
        epilog="example: python -m for_eval calibration --dataset miniscenes --fit-split dev --figure reliability.png",
    )
    add_method_options(parser)
    parser.add_argument("--methods", default=_STUDIED, help=f"with commas (default {_STUDIED})")
    parser.add_argument("--fit-split", metavar="SPLIT", help="the split that the rules are fitted to")
    parser.add_argument(
        "--there",
        nargs=3,
        metavar=("DATASET", "SPLIT", "ROOT"),
        help="another labelled split, of more images, that whether a thing is anywhere at all is fitted to: few words "
        "find something by chance among few images",
    )
    parser.add_argument(
        "--package", action="store_true", help="put the chosen rule's numbers among those that come with FOR"
    )
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw a reliability diagram: a .png, .svg or .pdf")
    parser.add_argument("--out", type=Path, default=Path("leaderboards"), help="default: leaderboards")
    parser.set_defaults(run=commands.run_calibration)


def _add_sketches(parsers: Parsers) -> None:
    parser = parsers.add_parser(
        "sketches",
        help="what 32 bytes an embedding keep of mAP@50",
        description="Train a sketch encoder on one split, and score another by its full embeddings, by their sketches "
        "of 32 bytes, trained and of principal axes, and by product quantisation of that size: one JSON result a "
        "method under OUT/results/sketches, OUT/sketches.csv made from them.",
        epilog="example: python -m for_eval sketches --dataset miniscenes --fit-split train --texts labels",
    )
    add_method_options(parser)
    parser.add_argument("--methods", default=_STUDIED, help=f"with commas (default {_STUDIED})")
    parser.add_argument("--fit-split", required=True, metavar="SPLIT", help="the split that the encoder is trained on")
    parser.add_argument(
        "--texts", default="labels", help="labels (default), captions, or a file, as for_search sketch-encoder takes it"
    )
    parser.add_argument("--stores", type=Path, help="keep and reuse embeddings here (default: FOR's cache)")
    parser.add_argument("--out", type=Path, default=Path("leaderboards"), help="default: leaderboards")
    parser.set_defaults(run=commands.run_sketches)


def _add_combinations(parsers: Parsers) -> None:
    parser = parsers.add_parser(
        "combinations",
        help="several things at once: measure the rules that combine them",
        description="Score pairs of names that are to be found together, and one without the other, by each rule and "
        "by the one embedding of a sentence: one JSON result a method under OUT/results/combinations, "
        "OUT/combinations.csv made from them.",
        epilog="example: python -m for_eval combinations --dataset miniscenes --split dev",
    )
    add_method_options(parser)
    parser.add_argument("--methods", default=_STUDIED, help=f"with commas (default {_STUDIED})")
    parser.add_argument("--out", type=Path, default=Path("leaderboards"), help="default: leaderboards")
    parser.set_defaults(run=commands.run_combinations)


def _add_figure(parsers: Parsers) -> None:
    parser = parsers.add_parser(
        "figure",
        help="draw mAP@50 against embeddings an image",
        description="Draw what the tables say of every method: mAP@50 of base and of novel names against the number of "
        "embeddings an image, for each dataset that has results.",
        epilog="example: python -m for_eval figure docs/embeddings.png",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="a .png, .svg or .pdf")
    parser.add_argument(
        "--out", type=Path, default=Path("leaderboards"), help="the leaderboards (default: leaderboards)"
    )
    parser.set_defaults(run=commands.run_figure)


def _add_compare(parsers: Parsers) -> None:
    parser = parsers.add_parser(
        "compare",
        help="whether one result is better than another, and where",
        description="Compare two results of one dataset on the same resamples of its images, of its categories and of "
        "both: the difference of mAP@50, its interval, and the categories that gain and lose most. A positive "
        "difference is in favour of B.",
        epilog="example: python -m for_eval compare leaderboards/results/..._clip-1.json "
        "leaderboards/results/..._cluster-clip-8.json --out gain.png",
    )
    parser.add_argument("a", type=Path, metavar="A.json", help="a result that leaderboard or tables wrote")
    parser.add_argument("b", type=Path, metavar="B.json", help="another, of the same dataset, split and protocol")
    parser.add_argument("--out", type=Path, metavar="FIGURE", help="draw a figure too: a .png, .svg or .pdf")
    parser.add_argument("--json", action="store_true", help="print JSON, with every category, instead of tables")
    parser.add_argument("--resamples", type=int, default=1000, help="default: 1000")
    parser.add_argument("--seed", type=int, default=0, help="of the resamples (default 0)")
    parser.add_argument("--level", type=float, default=0.95, help="coverage of the intervals (default 0.95)")
    parser.set_defaults(run=commands.run_compare)


def _add_refine(parsers: Parsers) -> None:
    parser = parsers.add_parser(
        "refine",
        help="what marking results right and wrong is worth",
        description="Simulate a user who looks for every base and novel name of a labelled dataset, sees ten images a "
        "round and marks each as the labels say; score the answer after 0, 1, 2, 4 and 8 rounds. One JSON result a "
        "method and refiner under OUT/results/refine, OUT/refine.csv made from them. Rows that are there stay.",
        epilog="example: python -m for_eval refine --dataset miniscenes --methods for,cluster-clip --refiners linear",
    )
    add_method_options(parser)
    parser.add_argument("--methods", required=True, help=f"one or several with commas: {methods_help()}")
    parser.add_argument(
        "--marks-needed",
        action="store_true",
        help="instead: how many right images it takes until marks alone find more than the text",
    )
    parser.add_argument(
        "--ceiling", action="store_true", help="instead: what the labels of half of the images bring for the other half"
    )
    parser.add_argument(
        "--concept",
        type=Path,
        metavar="FILE",
        help="instead: score a kept concept, CONCEPTS/NAME.json, against --label",
    )
    parser.add_argument("--label", default="", metavar="NAME", help="a category of the dataset, for --concept")
    parser.add_argument(
        "--refiners",
        default="",
        metavar="NAMES",
        help="some of text,linear,rocchio,... (default: all); "
        "linear+telling: three of each ten images shown are those whose marks would tell most",
    )
    parser.add_argument("--out", type=Path, default=Path("leaderboards"), help="default: leaderboards")
    parser.add_argument("--stores", type=Path, help="where embedding stores are kept (default: in the cache)")
    parser.set_defaults(run=commands.run_refine)


def _add_loop(parsers: Parsers) -> None:
    parser = parsers.add_parser(
        "loop",
        help="marks -> whole answers -> labels -> a trained head, against the head before it",
        description="A simulated user marks results for some names in one split; the whole answers become labels, a "
        "head is trained on them, and scored on another split beside the head that was searched with, and beside one "
        "trained on the same images without labels. One JSON result under OUT/results/loop, OUT/loop.csv made from "
        "them.",
        epilog="example: python -m for_eval loop for_model/configs/for-plus-miniscenes.toml --dataset miniscenes "
        "--split dev --unseen val --method cluster-clip:8 optimizer.epochs=8",
    )
    parser.add_argument("config", type=Path, help="the training's TOML file; what it is trained on is replaced")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings of the training that differ")
    add_method_options(parser)
    parser.add_argument("--method", required=True, help="the head before, which is searched with: cluster-clip:8, say")
    parser.add_argument("--unseen", default="val", metavar="SPLIT", help="scored on, never marked (default: val)")
    parser.add_argument("--names", default="", help="categories with commas (default: all base and novel ones)")
    parser.add_argument("--rounds", type=int, default=8, help="of ten marks each (default 8)")
    parser.add_argument(
        "--all-judged", action="store_true", help="images that a concept says nothing of count as without it"
    )
    parser.add_argument("--out", type=Path, default=Path("leaderboards"), help="default: leaderboards")
    parser.set_defaults(run=commands.run_loop)


def _add_fetch(parsers: Parsers) -> None:
    parser = parsers.add_parser("fetch", help="download COCO or LVIS, or check a dataset that you have")
    parser.description = (
        "Say where a dataset is published and under which licence, download and unpack what isn't there yet, and "
        "compare it with the published counts. Stopped at any moment and started again, it goes on. nuImages needs an "
        "account: for it the command says what to download where, and checks it."
    )
    parser.epilog = "example: python -m for_eval fetch coco --root ~/coco --splits val"
    parser.add_argument("name", help="coco (2017), coco2014, lvis or nuimages")
    parser.add_argument("--root", type=Path, required=True, help="the dataset's folder, made if need be")
    parser.add_argument("--splits", default="", metavar="NAMES", help="with commas, such as val (default: train,val)")
    parser.add_argument("--only", choices=("annotations", "images"), help="default: both")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be downloaded")
    parser.add_argument("--check", action="store_true", help="download nothing, only check what is there")
    parser.add_argument("--keep", action="store_true", help="leave the archives in ROOT/downloads")
    parser.set_defaults(run=commands.run_fetch)


def _parser() -> argparse.ArgumentParser:
    commands = (
        *(_add_fetch, _add_classes, _add_leaderboard, _add_tables, _add_table, _add_figure, _add_compare),
        *(_add_calibration, _add_combinations, _add_refine, _add_loop, _add_sketches),
    )
    return package_parser("for_eval", __doc__, _EPILOG, commands)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code, see `for_model.cli`."""
    return run_package(_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
