"""`python -m for_eval`: images on disk -> embeddings -> index -> search and leaderboard.

Every command teaches itself with --help. Bad arguments and missing data end with one line and exit code 2.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from for_model.cli import run_command
from for_model.errors import DataError, ForError, UsageError

_EPILOG = """the way from a folder of photos to a search:
  python -m for_eval embed --dataset folder --root ~/Pictures --backbone RN50 --method cluster-clip --out store
  python -m for_eval index store --out index
  python -m for_eval search index "a red umbrella"
"""


def _embed(arguments: argparse.Namespace) -> None:
    from for_eval.embed import embed
    from for_model.clip_method import build_method, parse_method
    from for_model.data.registry import load_dataset

    parse_method(arguments.method)
    dataset = load_dataset(arguments.dataset, arguments.root, arguments.split)
    method = build_method(
        arguments.method,
        arguments.backbone,
        arguments.weights,
        image_size=arguments.image_size,
        device=arguments.device,
        cluster_engine=arguments.cluster_engine,
    )
    report = embed(dataset, method, arguments.out, batch_size=arguments.batch_size, workers=arguments.workers)
    print(
        f"{report.store}: {report.n_images} images, {report.n_skipped} skipped, "
        f"{report.images_per_second:.1f} images a second"
    )
    if report.n_skipped:
        print(f"the reasons are in {report.store / 'manifest.json'} under skipped")


def _index(arguments: argparse.Namespace) -> None:
    from for_eval.index import build_index

    index = build_index(arguments.store, arguments.out, arguments.kind)
    print(f"{arguments.out}: {len(index.images)} images, {index.info.n_embeddings} embeddings each")


def _search(arguments: argparse.Namespace) -> None:
    from for_eval.search import format_hits_text, load_searcher

    searcher = load_searcher(
        arguments.index, arguments.device, weights=arguments.weights, image_root=arguments.image_root
    )
    result = searcher.search(arguments.text, arguments.k)
    if arguments.json:
        print(json.dumps(result.to_json(), indent=1, ensure_ascii=False))
    else:
        print(format_hits_text(result))


def _leaderboard(arguments: argparse.Namespace) -> None:
    from for_eval.leaderboard import run_method, summary, write_result, write_tables
    from for_model.clip_method import build_method, parse_method
    from for_model.data.registry import load_dataset

    methods = [name.strip() for name in arguments.methods.split(",") if name.strip()]
    if not methods:
        raise UsageError("--methods is empty: give clip, dense-clip, cluster-clip, for, coca or several with commas")
    for name in methods:
        parse_method(name)
    dataset = load_dataset(arguments.dataset, arguments.root, arguments.split)
    if not arguments.allow_missing:
        dataset.check_files("--allow-missing goes on without them, and counts them as skipped")
    results = []
    for name in methods:
        method = build_method(
            name,
            arguments.backbone,
            arguments.weights,
            image_size=arguments.image_size,
            device=arguments.device,
            cluster_engine=arguments.cluster_engine,
        )
        for result, rankings in run_method(dataset, method, str(method.device), arguments.stores):
            write_result(arguments.out, result, rankings)
            results.append(result)
    write_tables(arguments.out)
    print(summary(results))


def _tables(arguments: argparse.Namespace) -> None:
    from for_eval.suites import SUITES
    from for_eval.tables import find_data, parse_tables, run_tables

    chosen = [name.strip() for name in arguments.dataset.split(",") if name.strip()]
    for name in chosen:
        if name not in SUITES:
            raise UsageError(f"no tables are made of {name!r}; expected some of {', '.join(SUITES)}")
    suites = [SUITES[name] for name in chosen or SUITES]
    names = parse_tables(suites, arguments.only)
    failed = 0
    for suite in suites:
        if not chosen:  # all that there is data of
            try:
                find_data(suite, arguments.data)
            except DataError as error:
                print(f"{suite.dataset:<10} left out: {error}", flush=True)
                continue
        for verdict in run_tables(
            suite,
            names,
            arguments.out,
            data=arguments.data,
            seeds=arguments.seeds,
            device=arguments.device,
            accept=arguments.accept,
        ):
            print(f"{verdict.dataset:<10} {verdict.table:<10} seed {verdict.seed}  {verdict.line}", flush=True)
            failed += verdict.ok is False
    if failed and not arguments.accept:
        raise ForError(
            f"{failed} rows differ from the committed ones by more than the tolerance; --accept lets the new ones stay"
        )


def _table(arguments: argparse.Namespace) -> None:
    from for_eval.leaderboard import write_tables
    from for_eval.tables import write_table_csvs

    paths = [*write_tables(arguments.out), *write_table_csvs(arguments.out)]
    if arguments.with_paper:
        from for_eval.paper import read_paper, with_paper

        print(with_paper(paths, read_paper()))
    else:
        print(*paths, sep="\n")


def _classes(arguments: argparse.Namespace) -> None:
    from for_model.data.classes import CLASSES_FILE, write_classes
    from for_model.data.nuimages import read_split

    out = arguments.out or arguments.root.expanduser() / CLASSES_FILE
    settings = {"--root": arguments.root, "--split": arguments.split, "--novel-below": arguments.novel_below}
    words = [str(word) for pair in {**settings, "--out": out}.items() for word in pair]
    command = shlex.join(["python", "-m", "for_eval", "classes", *words])
    dataset = read_split(arguments.root, arguments.split)
    groups = list(write_classes(out, dataset, command, arguments.novel_below).values())
    print(f"{out}: " + ", ".join(f"{groups.count(group)} {group}" for group in ("base", "novel", "other")))


def _fetch(arguments: argparse.Namespace) -> None:
    from for_eval.dataset_check import check
    from for_eval.dataset_sources import PARTS, SOURCES
    from for_eval.fetch import choose_splits, describe, fetch

    source = SOURCES.get(arguments.name)
    if source is None:
        raise UsageError(f"unknown dataset {arguments.name!r}: choose one of {', '.join(SOURCES)}")
    root, splits = arguments.root.expanduser(), choose_splits(source, arguments.splits)
    parts = (arguments.only,) if arguments.only else PARTS
    if not arguments.check:
        print("\n".join(describe(source, root, splits, parts)), flush=True)
        if arguments.dry_run:
            return
        fetch(source, root, splits, parts, arguments.keep)
    failed = 0
    for verdict in check(source, root, splits, parts):
        print(verdict.line, flush=True)
        failed += not verdict.ok
    if failed:
        raise DataError(f"{source.title} in {root} is not as published, see the lines with FAIL: {failed}")


def _compare(arguments: argparse.Namespace) -> None:
    from for_eval.compare import compare, load_ranked
    from for_eval.compare_report import figure_format, name_of, to_text, write_figure

    if arguments.out is not None:
        figure_format(arguments.out)
    (result_a, a), (result_b, b) = load_ranked(arguments.a), load_ranked(arguments.b)
    comparison = compare(a, b, arguments.resamples, arguments.seed, arguments.level)
    names = name_of(result_a), name_of(result_b)
    if arguments.out is not None:
        write_figure(arguments.out, comparison, *names)
    if arguments.json:
        print(json.dumps({"a": names[0], "b": names[1], **comparison.to_json()}, indent=1, ensure_ascii=False))
    else:
        print(to_text(comparison, *names))


def _method_options(parser: argparse.ArgumentParser) -> None:
    """The options that choose data and model, the same for every command that embeds."""
    parser.add_argument(
        "--dataset",
        required=True,
        help="coco, coco2014, lvis, nuimages, folder, or miniscenes (built in, needs no --root)",
    )
    parser.add_argument("--root", type=Path, help="the dataset's folder; for coco, the one with annotations/")
    parser.add_argument("--split", help="val2017, train2017, ... (default: the dataset's validation split)")
    parser.add_argument(
        "--backbone",
        help="RN-mini (built in), photo-lite, RN50, ViT-B-32, ...; of coca one of open_clip's CoCas, of owlvit, owlv2 "
        "and blip2 a repository of the model hub (default: a head's or dual encoder's own, else RN-mini)",
    )
    parser.add_argument(
        "--weights",
        help="openai, random, another pretrained tag, or a file; for owlvit, owlv2 and blip2 a folder (default: the "
        "backbone's)",
    )
    parser.add_argument(
        "--image-size",
        type=int,
        metavar="PX",
        help="pixels a side, a multiple of 32, or a ViT's patch (default: own)",
    )
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument(
        "--cluster-engine",
        choices=("batched", "reference"),
        default="batched",
        help="K-means of cluster-clip: all images of a batch at once, or image by image on the CPU as published",
    )


def _fetch_options(parser: argparse.ArgumentParser) -> None:
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
    parser.set_defaults(run=_fetch)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m for_eval",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)

    embed = commands.add_parser(
        "embed",
        help="images -> embedding store",
        description="Embed every image of a dataset. Killed at any moment and started again, it goes on. "
        "Images that can't be read are skipped, counted and listed with the reason.",
    )
    _method_options(embed)
    embed.add_argument(
        "--method",
        default="cluster-clip",
        help="clip, dense-clip, cluster-clip, cluster-clip:N, for, coca, owlvit, owlv2, blip2, or the path of a "
        "trained head.safetensors",
    )
    embed.add_argument("--out", type=Path, required=True, metavar="STORE", help="folder of the store")
    embed.add_argument("--batch-size", type=int, default=32, help="images a forward pass (default 32)")
    embed.add_argument("--workers", type=int, help="threads that decode images (default: one a core, at most 8)")
    embed.set_defaults(run=_embed)

    index = commands.add_parser("index", help="embedding store -> search index")
    index.add_argument("store", type=Path, help="a folder that embed wrote")
    index.add_argument("--out", type=Path, required=True, metavar="INDEX", help="folder of the index")
    index.add_argument("--kind", default="flat", help="flat: exact (default)")
    index.set_defaults(run=_index)

    search = commands.add_parser("search", help="text -> the images that contain it")
    search.add_argument("index", type=Path, help="a folder that index wrote")
    search.add_argument("text", help='a name ("dog") or a sentence')
    search.add_argument("-k", type=int, default=10, help="how many images (default 10)")
    search.add_argument("--json", action="store_true", help="print JSON instead of a table")
    search.add_argument("--weights", help="the weights' file, for an index that was made from one")
    search.add_argument("--image-root", type=Path, help="where the images are now, if they have moved")
    search.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    search.set_defaults(run=_search)

    leaderboard = commands.add_parser(
        "leaderboard",
        help="score methods on a labelled dataset",
        description="Embed, rank and score; one JSON result a method under OUT/results, OUT/DATASET.csv made from "
        "them. Stores are kept in the cache, so a run that was stopped goes on.",
        epilog="example: python -m for_eval leaderboard --dataset miniscenes --methods clip,dense-clip,cluster-clip",
    )
    _method_options(leaderboard)
    leaderboard.add_argument(
        "--methods",
        required=True,
        help="with commas: clip,cluster-clip:4,for,coca,owlvit,owlv2,blip2,runs/mine/head.safetensors",
    )
    leaderboard.add_argument("--out", type=Path, default=Path("leaderboards"), help="default: leaderboards")
    leaderboard.add_argument(
        "--allow-missing", action="store_true", help="score without the images whose files are missing"
    )
    leaderboard.add_argument("--stores", type=Path, help="where embedding stores are kept (default: in the cache)")
    leaderboard.set_defaults(run=_leaderboard)

    tables = commands.add_parser(
        "tables",
        help="train and score the paper's tables",
        description="Make the rows of the paper's tables on every dataset that is there (the built-in scenes always "
        "are), each trained, scored and compared with the committed result (OK or FAIL). Datasets without data are "
        "left out, which a line says. Stopped at any moment and started again, it goes on.",
        epilog="examples: python -m for_eval tables --dataset miniscenes --only main --seeds 1; "
        "python -m for_eval tables --data ~/datasets",
    )
    tables.add_argument(
        "--dataset",
        default="",
        metavar="NAMES",
        help="some of miniscenes,coco,coco2014,lvis,nuimages (all)",
    )
    tables.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="the folder of the datasets: DIR/coco, DIR/lvis, ...",
    )
    tables.add_argument(
        "--only",
        default="",
        metavar="NAMES",
        help="some of main,vocabulary,freezing,labelled,queries,layers,baselines,labelling",
    )
    tables.add_argument("--seeds", type=int, help="trainings a row (default: the table's own)")
    tables.add_argument("--out", type=Path, default=Path("leaderboards"), help="default: leaderboards")
    tables.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    tables.add_argument("--accept", action="store_true", help="new results replace committed ones that differ")
    tables.set_defaults(run=_tables)

    _fetch_options(commands.add_parser("fetch", help="download COCO or LVIS, or check a dataset that you have"))

    classes = commands.add_parser(
        "classes",
        help="which of nuImages's categories are base and which novel",
        description="Count in how many images each of nuImages's categories is, and write that and its group, base or "
        "novel, to a TOML file, which its reader takes the groups from. Edit the file to choose them yourself.",
        epilog="example: python -m for_eval classes --root ~/nuimages",
    )
    classes.add_argument("--dataset", choices=("nuimages",), default="nuimages", help="nuimages, the default")
    classes.add_argument("--root", type=Path, required=True, help="the dataset's folder")
    classes.add_argument("--split", default="train", help="whose images are counted (default: train)")
    classes.add_argument(
        "--novel-below", type=float, default=0.05, metavar="SHARE", help="of the images (default 0.05, the paper's)"
    )
    classes.add_argument("--out", type=Path, metavar="FILE", help="default: ROOT/classes.toml, where it is looked for")
    classes.set_defaults(run=_classes)

    table = commands.add_parser("table", help="make every CSV again from the JSON results alone")
    table.add_argument("--out", type=Path, default=Path("leaderboards"), help="default: leaderboards")
    table.add_argument("--with-paper", action="store_true", help="print every table with the paper's rows below ours")
    table.set_defaults(run=_table)

    compare = commands.add_parser(
        "compare",
        help="whether one result is better than another, and where",
        description="Compare two results of one dataset on the same resamples of its images, of its categories and of "
        "both: the difference of mAP@50, its interval, and the categories that gain and lose most. A positive "
        "difference is in favour of B.",
        epilog="example: python -m for_eval compare leaderboards/results/..._clip-1.json "
        "leaderboards/results/..._cluster-clip-8.json --out gain.png",
    )
    compare.add_argument("a", type=Path, metavar="A.json", help="a result that leaderboard wrote")
    compare.add_argument("b", type=Path, metavar="B.json", help="another, of the same dataset, split and protocol")
    compare.add_argument("--out", type=Path, metavar="FIGURE", help="draw a figure too: a .png, .svg or .pdf")
    compare.add_argument("--json", action="store_true", help="print JSON, with every category, instead of tables")
    compare.add_argument("--resamples", type=int, default=1000, help="default: 1000")
    compare.add_argument("--seed", type=int, default=0, help="of the resamples (default 0)")
    compare.add_argument("--level", type=float, default=0.95, help="coverage of the intervals (default 0.95)")
    compare.set_defaults(run=_compare)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code: 0, or 2 with one line on stderr for what the user can mend."""
    arguments = _parser().parse_args(argv)
    return run_command(lambda: arguments.run(arguments))


if __name__ == "__main__":
    sys.exit(main())
