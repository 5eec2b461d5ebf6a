"""`python -m for_app`: the web page of FOR. Type what you are looking for, see the images that contain it.

Without arguments it searches MiniScenes, a set of drawn scenes that FOR makes itself on the first start (some minutes,
once). To search your own photos, let it index a folder of them (needs `make install-photos`):

  python -m for_app --images ~/Pictures --watch

where --watch takes in what comes to the folder while the page is open; or choose backbone and method yourself, embed
and index them first:

  python -m for_search embed --dataset folder --root ~/Pictures --backbone RN50 --method cluster-clip --out store
  python -m for_search index store --out index
  python -m for_app --index index

Several indexes can be given, and are compared where they are of the same images:

  python -m for_app --index by-clip --index by-for --head runs/mine/head.safetensors
"""

import argparse
import ipaddress
import logging
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from for_app.serve import check_address, serve
from for_model.cli import run_command
from for_model.errors import UsageError

if TYPE_CHECKING:
    from for_app.server.users import Users
    from for_search.library.library import Library
    from for_search.query.searcher import Searcher

_log = logging.getLogger(__name__)
_HEAD_START_S = 2  # for the first visitor: loading an encoder keeps Python from doing anything else


def _is_private(host: str) -> bool:
    """Whether a server there can be reached from this machine only."""
    try:
        return ipaddress.ip_address(socket.gethostbyname(host)).is_loopback
    except OSError:
        return False


def _users(auth: str | None, file: Path | None) -> "Users | None":
    """Who may log in, None where nobody needs to. Raises UsageError for what is no `USER:PASSWORD`, or no such file."""
    from for_app.server.users import Users

    if file is not None:
        return Users.read(file)
    if auth is None:
        return None
    user, colon, password = auth.partition(":")
    if not (user and colon and password):
        raise UsageError("--auth: expected USER:PASSWORD, both with at least one character")
    return Users.only(user, password)


def _library(arguments: argparse.Namespace) -> "Library":
    """The indexes that the page will know; the first of them opened, so that what is wrong shows now."""
    _check_sources(arguments)
    from for_search.library.library import DEFAULT_DATASET, Library

    if arguments.images is not None:
        from for_model.backbones import photo_packages
        from for_model.methods.build import build_method
        from for_search.library.folder_index import PHOTO_METHOD, folder_index
        from for_search.query.searcher import load_searcher

        method = build_method(PHOTO_METHOD, photo_packages.NAME)
        library = Library(concepts=arguments.concepts)
        library.add_opened(load_searcher(folder_index(arguments.images, method), method=method))
        return library
    if arguments.index:
        library = Library(
            weights=arguments.weights,
            image_root=arguments.image_root,
            heads=arguments.head,
            concepts=arguments.concepts,
        )
        for index in arguments.index:
            library.add(index)
    else:
        from for_app.examples import EXAMPLES

        library = Library.built_in(arguments.weights, EXAMPLES[DEFAULT_DATASET])
        library.concepts = arguments.concepts
    library.searcher(library.default)
    return library


def _check_sources(arguments: argparse.Namespace) -> None:
    """Raise UsageError for arguments that don't go together, before anything heavy is loaded."""
    image_root: Path | None = arguments.image_root
    if image_root is not None and not image_root.is_dir():
        raise UsageError(f"--image-root {image_root} is not a folder: give the one that the images lie in")
    if arguments.watch and arguments.images is None:
        raise UsageError("--watch follows a folder of photographs: name it with --images")
    if arguments.images is not None and (arguments.index or image_root is not None or arguments.weights is not None):
        raise UsageError("--images makes its own index with photo-lite: leave --index, --image-root, --weights out")
    if not arguments.index and (image_root is not None or arguments.head):
        raise UsageError("--image-root and --head belong to an index of your own: give that with --index")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m for_app", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--index",
        type=Path,
        metavar="DIR",
        action="append",
        default=[],
        help="an index of your own, as often as you have some (default: the built-in scenes)",
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="a folder of photographs, to index with photo-lite")
    parser.add_argument("--watch", action="store_true", help="with --images: follow the folder while the page is open")
    parser.add_argument("--image-root", type=Path, metavar="DIR", help="where the images are now, if they have moved")
    parser.add_argument("--weights", metavar="FILE", help="the weights' file, for an index that was made from one")
    parser.add_argument(
        "--head",
        type=Path,
        metavar="FILE",
        action="append",
        default=[],
        help="the head.safetensors of an index by a trained method, to see where its embeddings look",
    )
    parser.add_argument(
        "--concepts",
        type=Path,
        metavar="DIR",
        default=Path("concepts"),
        help="kept concepts, which every visitor may search for, and only you can add to (default: concepts)",
    )
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets your network in (default: this machine only)")
    parser.add_argument("--port", type=int, default=7860, help="default 7860")
    parser.add_argument(
        "--share",
        action="store_true",
        help="make a public link through gradio's servers: whoever has it can search and see your images",
    )
    parser.add_argument(
        "--allow-build",
        action="store_true",
        help="let whoever sees the page index any folder of this machine; without it only you can, on 127.0.0.1",
    )
    login = parser.add_mutually_exclusive_group()
    login.add_argument("--auth", metavar="USER:PASSWORD", help="ask every visitor for these")
    login.add_argument(
        "--auth-file",
        type=Path,
        metavar="FILE",
        help="several users, a line each, which `python -m for_app.server.users USER >> FILE` makes",
    )
    parser.add_argument(
        "--allow-host",
        metavar="NAME",
        action="append",
        default=[],
        help="answer to this name too, as often as there are some: that of a reverse proxy, or of this machine",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the page until Ctrl-C. Returns the exit code, see `for_model.cli`."""
    return run_command(lambda: _run(_parser().parse_args(argv)))


def _run(arguments: argparse.Namespace) -> None:
    auth = _users(arguments.auth, arguments.auth_file)
    check_address(arguments.host, arguments.port)
    if arguments.share and auth is None:
        print(
            "--share without a login (--auth, --auth-file): whoever has the link can search and see your images",
            file=sys.stderr,
        )
    library = _library(arguments)
    searcher = library.searcher(library.default)
    if not searcher.image_root.is_dir():
        print(f"the images are no longer at {searcher.image_root}: give --image-root to see them", file=sys.stderr)
    from for_app.page import build_app

    own = _is_private(arguments.host) and not arguments.share
    allow_build = arguments.allow_build or own
    if allow_build:  # whoever may not index folders here may not see those that somebody else has indexed either
        library.add_remembered()
    app = build_app(library, allow_build, own)
    url = serve(app, arguments.host, arguments.port, arguments.share, auth, arguments.allow_host)
    print(f"{len(searcher.index.images):,} images to search at {url} (Ctrl-C ends it)", flush=True)
    threading.Thread(target=_warm_up, args=(searcher,), daemon=True).start()
    if arguments.watch:
        from for_search.library.folder_watch import follow_index

        threading.Thread(target=follow_index, args=(library, library.default), name="follow", daemon=True).start()
    try:
        threading.Event().wait()  # until Ctrl-C, which `run_command` tells
    finally:
        app.close(verbose=False)


def _warm_up(searcher: "Searcher") -> None:
    """Load the encoder while the first visitor looks at the first examples, which are answered without."""
    time.sleep(_HEAD_START_S)
    try:
        _ = searcher.method, searcher.scale
    except Exception:  # whoever types a query tries again, and is told
        _log.exception("the encoder can't be loaded")


if __name__ == "__main__":
    sys.exit(main())
