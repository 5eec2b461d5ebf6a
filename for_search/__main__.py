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
        "Images that can't be read are skipped, counted and listed with the reason.",
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
    parser.set_defaults(run=commands.run_embed)


def _add_index(parsers: Parsers) -> None:
    parser = parsers.add_parser("index", help="embedding store -> search index")
    parser.add_argument("store", type=Path, help="a folder that embed wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="INDEX", help="folder of the index")
    parser.add_argument("--kind", default="flat", help="flat: exact (default)")
    parser.set_defaults(run=commands.run_index)


def _add_search(parsers: Parsers) -> None:
    parser = parsers.add_parser(
        "search",
        help="text -> the images that contain it",
        description="The images that match a text best, with how probable it is that each holds what it names; a line "
        "parts good matches from those that are less sure.",
        epilog='examples: search index "a red umbrella"; search index --all dog umbrella --none person; '
        "search index red --like trips/bus.jpg --weight 0.3",
    )
    parser.add_argument("index", type=Path, help="a folder that index wrote")
    parser.add_argument("text", nargs="?", default="", help='a name ("dog") or a sentence')
    for role, what in (("all", "all of"), ("any", "one at least of"), ("none", "none of")):
        parser.add_argument(
            f"--{role}",
            dest=f"{role}_of",
            nargs="+",
            default=[],
            metavar="TEXT",
            help=f"{what} these must be in an image, instead of a text",
        )
    parser.add_argument("--like", metavar="IMAGE", help="search with an image: a file, or the id of one of the index")
    parser.add_argument(
        "--weight", type=float, default=0.5, help="with --like and a text, the text's share, 0 to 1 (default 0.5)"
    )
    parser.add_argument("-k", type=int, default=10, help="how many images (default 10)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--weights", help="the weights' file, for an index that was made from one")
    parser.add_argument("--image-root", type=Path, help="where the images are now, if they have moved")
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.set_defaults(run=commands.run_search)


def _parser() -> argparse.ArgumentParser:
    commands = (_add_embed, _add_index, _add_search)
    return package_parser("for_search", __doc__, _EPILOG, commands)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code: 0, or 2 with one line on stderr for what the user can mend."""
    return run_package(_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
