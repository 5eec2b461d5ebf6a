"""`python -m for_search`: images on disk -> embeddings -> index -> search.

Every command teaches itself with --help. Bad arguments and missing data end with one line and exit code 2.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from for_model.cli import Parsers, package_parser, run_package
from for_model.methods.registry import methods_help
from for_search import commands
from for_search.commands import add_method_options

_EPILOG = """the way from a folder of photos to a search:
  python -m for_search embed --dataset folder --root ~/Pictures --backbone RN50 --method cluster-clip --out store
  python -m for_search index store --out index
  python -m for_search search index "a red umbrella"
"""


def _add_embed(parsers: Parsers) -> None:
    parser = parsers.add_parser(
        "embed",
        help="images -> embedding store",
        description="Embed every image of a dataset. Killed at any moment and started again, it goes on. "
        "Images that can't be read are skipped, counted and listed with the reason. Into a store that is there already "
        "only what is new or has changed is embedded, and what is gone is dropped.",
    )
    add_method_options(parser)
    parser.add_argument(
        "--method",
        default="cluster-clip",
        help=methods_help(),
    )
    parser.add_argument("--out", type=Path, required=True, metavar="STORE", help="folder of the store")
    parser.add_argument("--batch-size", type=int, default=32, help="images a forward pass (default 32)")
    parser.add_argument("--workers", type=int, help="threads that decode images (default: one a core, at most 8)")
    parser.add_argument(
        "--metadata",
        type=Path,
        metavar="FILE",
        help="CSV or Parquet file of more columns about the images, for search --where; its column path or id says "
        "whose a row is (default: the columns that the store has already)",
    )
    parser.add_argument(
        "--watch",
        action="store_true",
        help="of a folder: stay, and bring the store up to date whenever its images change, until Ctrl-C",
    )
    parser.add_argument("--index", type=Path, metavar="INDEX", help="build this index of the store, and keep it so too")
    parser.set_defaults(run=commands.run_embed)


def _add_index(parsers: Parsers) -> None:
    parser = parsers.add_parser(
        "index",
        help="embedding store -> search index",
        description="Build the search index of an embedding store, or bring the one that is there up to date with it: "
        "only the difference is written, in one step, while others search it.",
    )
    parser.add_argument("store", type=Path, help="a folder that embed wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="INDEX", help="folder of the index")
    parser.add_argument("--kind", help="flat: exact (default: that of the index that is there, else flat)")
    parser.add_argument("--rebuild", action="store_true", help="write all of it again, into one segment")
    parser.set_defaults(run=commands.run_index)


def _add_search(parsers: Parsers) -> None:
    parser = parsers.add_parser("search", help="text -> the images that contain it")
    parser.add_argument("index", type=Path, help="a folder that index wrote")
    parser.add_argument("text", help='a name ("dog") or a sentence')
    parser.add_argument("-k", type=int, default=10, help="how many images (default 10)")
    parser.add_argument(
        "--where",
        default="",
        metavar="CONDITION",
        help="search only the images that meet a condition over their columns, as in SQL: "
        "\"taken >= '2024-01-01' and folder like 'trips/%%'\", \"has(labels, 'dog') and width > 1000\"",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--weights", help="the weights' file, for an index that was made from one")
    parser.add_argument("--image-root", type=Path, help="where the images are now, if they have moved")
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.set_defaults(run=commands.run_search)


def _add_verify(parsers: Parsers) -> None:
    parser = parsers.add_parser(
        "verify",
        help="check every byte of a store, an index or a trained head",
        description="Check every byte of an embedding store, a search index or a head.safetensors against the hashes "
        "that were written with it, and tell each file's state in a line. Exit code 2 when something is damaged.",
    )
    parser.add_argument("path", type=Path, help="a folder that embed or index wrote, or a head that train wrote")
    parser.set_defaults(run=commands.run_verify)


def _parser() -> argparse.ArgumentParser:
    commands = (_add_embed, _add_index, _add_search, _add_verify)
    return package_parser("for_search", __doc__, _EPILOG, commands)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code: 0, or 2 with one line on stderr for what the user can mend."""
    return run_package(_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
