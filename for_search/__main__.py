"""`python -m for_search`: images on disk -> embeddings -> index -> search.

Every command teaches itself with --help. Bad arguments and missing data end with one line and exit code 2.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from for_model.cli import Parsers, package_parser, run_package
from for_model.methods.registry import methods_help
from for_model.remote import location
from for_search import commands
from for_search.commands import add_method_options
from for_search.embed_command import run_embed

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
    add_method_options(parser, location)
    parser.add_argument(
        "--method",
        default="cluster-clip",
        help=methods_help(),
    )
    parser.add_argument(
        "--out", type=location, required=True, metavar="STORE", help="folder of the store, or a URL such as s3://..."
    )
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
    parser.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="spread the embedding over a Ray cluster, see docs/cluster.md (without ADDRESS: the one that this machine "
        "belongs to, else all cores of this machine)",
    )
    parser.add_argument("--ray-workers", type=int, metavar="N", help="workers (default: as many as fit)")
    parser.add_argument(
        "--ray-cpus",
        type=float,
        metavar="N",
        help="CPUs, and threads, of a worker (default: as many as here; 1 beside a GPU)",
    )
    parser.add_argument(
        "--ray-gpus", type=float, metavar="N", help="GPUs a worker takes, 0.5 for two a GPU (1 with --device cuda)"
    )
    parser.set_defaults(run=run_embed)


def _add_index(parsers: Parsers) -> None:
    parser = parsers.add_parser(
        "index",
        help="embedding store -> search index",
        description="Build the search index of an embedding store, or bring the one that is there up to date with it: "
        "only the difference is written, in one step, while others search it. Killed and started again, the build of "
        "a compact index goes on.",
    )
    parser.add_argument("store", type=location, help="a folder that embed wrote, or the URL of one")
    parser.add_argument("--out", type=Path, required=True, metavar="INDEX", help="folder of the index")
    parser.add_argument(
        "--engine",
        help="flat: exact, reads every embedding; compact: reads codes of them, up to 110 bytes each in memory, and "
        "finds nearly all of the best in a fraction of the time; gpu: as flat, on a GPU; qdrant: keeps the "
        "embeddings on a server or cluster (default: that of the index that is there, else flat)",
    )
    parser.add_argument(
        "--url",
        help="with qdrant, the server, such as http://localhost:6333; its key comes from the environment variable "
        "QDRANT_API_KEY (default: the server of the index that is there, whose images stay there without --rebuild)",
    )
    parser.add_argument(
        "--quantise",
        action=argparse.BooleanOptionalAction,
        help="with qdrant, find images by copies of a byte a number and a graph, and score them again: finds --recall "
        "of the best, and looks at few (default: as the index that is there, else not: exact)",
    )
    parser.add_argument(
        "--recall",
        type=float,
        default=0.99,
        metavar="SHARE",
        help="of the best 50 images, how many a compact index is to find (default 0.99); the build measures it and "
        "keeps what it has measured. Of an index that is there, only with --rebuild",
    )
    parser.add_argument("--rebuild", action="store_true", help="write all of it again, into one segment")
    parser.add_argument(
        "--answers",
        nargs="?",
        const="",
        metavar="ENCODER",
        help="add sketches, 32 bytes an embedding, with which decision branches answer of the whole index: by a file "
        "of sketch-encoder, else the principal axes of the embeddings. Once there, they are kept up to date",
    )
    parser.set_defaults(run=commands.run_index)


def _add_search(parsers: Parsers) -> None:
    parser = parsers.add_parser(
        "search",
        help="text -> the images that contain it",
        description="The images that match a text best, with how probable it is that each holds what it names; a line "
        "parts good matches from those that are less sure.",
        epilog='examples: search index "a red umbrella"; search index --all dog umbrella --none person; '
        "search index red --like trips/bus.jpg --weight 0.3; "
        'search "" "a red umbrella" --server http://127.0.0.1:7860',
    )
    parser.add_argument("index", help="a folder that index wrote; with --server the name of an index there")
    parser.add_argument("text", nargs="?", default="", help='a name ("dog"), a sentence, or concept:NAME')
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
    parser.add_argument("--concepts", type=Path, default=Path("concepts"), metavar="DIR", help="default: concepts")
    parser.add_argument("-k", type=int, default=10, help="how many images (default 10)")
    parser.add_argument(
        "--where",
        default="",
        metavar="CONDITION",
        help="search only the images that meet a condition over their columns, as in SQL: "
        "\"taken >= '2024-01-01' and folder like 'trips/%%'\", \"has(labels, 'dog') and width > 1000\"",
    )
    parser.add_argument("--exact", action="store_true", help="look at every embedding, in a compact index too")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    commands.add_searcher_options(parser)
    parser.add_argument(
        "--server",
        metavar="URL",
        help="let a running page answer, such as http://127.0.0.1:7860; INDEX is then a name that the page shows, "
        'or "" for its first index',
    )
    parser.add_argument("--auth", metavar="USER:PASSWORD", help="for a page that asks for them (default: $FOR_AUTH)")
    parser.set_defaults(run=commands.run_search)


def _add_sketch_encoder(parsers: Parsers) -> None:
    parser = parsers.add_parser(
        "sketch-encoder",
        help="train what makes sketches, 32 bytes an embedding, for index --answers",
        description="Train a sketch encoder on the embeddings of an index and texts of its images. It serves every "
        "index of the same backbone.",
        epilog="example: python -m for_search sketch-encoder train-index --root ~/flickr8k --texts captions "
        "--out sketches.safetensors",
    )
    parser.add_argument("index", type=Path, help="a folder that index wrote, of images to learn from")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="a .safetensors file")
    parser.add_argument(
        "--texts",
        default="labels",
        help="captions (COCO's format, beside the images), labels (default; the names of the base categories), or a "
        "file of a name or sentence a line, of which nothing is known",
    )
    parser.add_argument("--root", type=Path, help="the dataset's folder, as embed takes it")
    parser.add_argument("--steps", type=int, default=600, help="batches (default 600)")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn (default 0)")
    commands.add_searcher_options(parser)
    parser.set_defaults(run=commands.run_sketch_encoder)


def _add_verify(parsers: Parsers) -> None:
    parser = parsers.add_parser(
        "verify",
        help="check every byte of a store, an index or a trained head",
        description="Check every byte of an embedding store, a search index or a head.safetensors against the hashes "
        "that were written with it, and tell each file's state in a line. Exit code 2 when something is damaged.",
    )
    parser.add_argument(
        "path", type=location, help="a folder that embed or index wrote, a store's URL, or a head that train wrote"
    )
    parser.set_defaults(run=commands.run_verify)


def _add_concept(parsers: Parsers) -> None:
    parser = parsers.add_parser(
        "concept",
        help="keep what marks on results taught, and get all images of it",
        description="A concept is a text and marks on results of an index, kept in CONCEPTS/NAME.json. It is searched "
        "for wherever a text is: python -m for_search search INDEX concept:NAME.",
        epilog='a file of marks: [{"image": 139, "right": true, "embedding": 3}, {"image": 285, "right": false}, ...]; '
        "embedding, the part that is meant, may be left out",
    )
    actions = parser.add_subparsers(dest="action", required=True)
    create = actions.add_parser("create", help="marks -> CONCEPTS/NAME.json")
    create.add_argument("name", help="letters, digits, spaces and _ . + -")
    create.add_argument("index", type=Path, help="the index whose results were marked")
    create.add_argument("--text", help="what was searched for (default: a concept file's own, else none)")
    create.add_argument(
        "--marks", type=Path, required=True, metavar="FILE", help="JSON; another concept's file will do"
    )
    create.add_argument(
        "--refiner", default="similarity", help="similarity (default), linear, rocchio, marks-only or branches"
    )
    create.add_argument("--threshold", type=float, default=0.5, help="least probability in the whole answer (0.5)")
    create.add_argument("--replace", action="store_true", help="a concept of that name gives way")
    create.set_defaults(run=commands.run_concept_create)
    listing = actions.add_parser("list", help="all concepts, with what is wrong with those that can't be read")
    listing.set_defaults(run=commands.run_concept_list)
    show = actions.add_parser("show", help="a concept as JSON; with an index, how many images of it there are")
    show.add_argument("name")
    show.add_argument("index", type=Path, nargs="?", help="an index of the concept's space")
    show.add_argument("--first", type=int, default=0, metavar="N", help="leave out so many images of the whole answer")
    show.add_argument("--count", type=int, default=0, metavar="N", help="list so many of them (default: none)")
    show.set_defaults(run=commands.run_concept_show)
    export = actions.add_parser("export", help="all images of a concept, as a table, links, or labels to train on")
    export.add_argument("name")
    export.add_argument("index", type=Path, help="an index of the concept's space")
    export.add_argument("--out", type=Path, required=True, help="a file for csv and json, a folder for links and coco")
    export.add_argument("--form", default="csv", help="csv (default), json, links or coco")
    export.add_argument(
        "--also",
        nargs="+",
        action="append",
        default=[],
        metavar="NAME",
        help="with --form coco: more concepts, a category each",
    )
    export.set_defaults(run=commands.run_concept_export)
    delete = actions.add_parser("delete", help="delete a concept's file")
    delete.add_argument("name")
    delete.set_defaults(run=commands.run_concept_delete)
    for action in (create, listing, show, export, delete):
        action.add_argument("--concepts", type=Path, default=Path("concepts"), metavar="DIR", help="default: concepts")
    for action in (show, export):
        action.add_argument("--exact", action="store_true", help="look at every embedding, in a large index too")
        commands.add_searcher_options(action)


def _parser() -> argparse.ArgumentParser:
    commands = (_add_embed, _add_index, _add_search, _add_verify, _add_concept, _add_sketch_encoder)
    return package_parser("for_search", __doc__, _EPILOG, commands)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code, see `for_model.cli`."""
    return run_package(_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
