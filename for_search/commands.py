"""What each command of `python -m for_search` does with its arguments: calls the package, prints the outcome.

Imports stay within the functions, so that --help and a slip in the arguments don't wait for torch.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from for_model.data.registry import datasets_help
from for_model.errors import UsageError

if TYPE_CHECKING:
    from for_model.methods.protocol import Method
    from for_search.query.searcher import Query, Searcher


def add_method_options(parser: argparse.ArgumentParser) -> None:
    """The options that choose data and model, the same for every command that embeds."""
    parser.add_argument(
        "--dataset",
        required=True,
        help=f"one of {datasets_help()}",
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


def method_of(arguments: argparse.Namespace, name: str) -> "Method":
    """The method of a name, with the options that every command that embeds has."""
    from for_model.methods.build import build_method

    return build_method(
        name,
        arguments.backbone,
        arguments.weights,
        image_size=arguments.image_size,
        device=arguments.device,
        cluster_engine=arguments.cluster_engine,
    )


def run_embed(arguments: argparse.Namespace) -> None:
    from for_model.data.registry import load_dataset
    from for_model.methods.registry import parse_method
    from for_search.store.embed import embed

    parse_method(arguments.method)
    dataset = load_dataset(arguments.dataset, arguments.root, arguments.split)
    method = method_of(arguments, arguments.method)
    report = embed(dataset, method, arguments.out, batch_size=arguments.batch_size, workers=arguments.workers)
    print(
        f"{report.store}: {report.n_images} images, {report.n_skipped} skipped, "
        f"{report.images_per_second:.1f} images a second"
    )
    if report.n_skipped:
        print(f"the reasons are in {report.store / 'manifest.json'} under skipped")


def run_index(arguments: argparse.Namespace) -> None:
    from for_search.index.index_files import build_index

    index = build_index(arguments.store, arguments.out, arguments.kind)
    print(f"{arguments.out}: {len(index.images)} images, {index.info.n_embeddings} embeddings each")


def run_search(arguments: argparse.Namespace) -> None:
    from for_search.query.combination import Combination, find_combination, format_combined_text
    from for_search.query.searcher import format_hits_text, load_searcher

    several = (arguments.all_of, arguments.any_of, arguments.none_of)
    if any(several) and (arguments.like is not None or arguments.text):
        raise UsageError("--all, --any and --none stand in place of a text and of --like: give either")
    if not any(several) and arguments.like is None and not arguments.text:
        raise UsageError("nothing to search for: give a text, --like an image, or --all, --any and --none")
    combination = Combination(*several) if any(several) else None
    searcher = load_searcher(
        arguments.index, arguments.device, weights=arguments.weights, image_root=arguments.image_root
    )
    if combination is not None:
        found = find_combination(searcher, combination, arguments.k)
        _print_found(found.to_json() if arguments.json else format_combined_text(found))
        return
    query = _query(searcher, arguments)
    result = searcher.judged(query, searcher.find(query, arguments.k))
    _print_found(result.to_json() if arguments.json else format_hits_text(result))


def _query(searcher: "Searcher", arguments: argparse.Namespace) -> "Query":
    """The text, the image of --like, or the one moved towards the other."""
    if arguments.like is None:
        return searcher.text_query(arguments.text)
    path = Path(arguments.like)
    if path.is_file():
        from for_model.data.images import load_image

        picture = load_image(path, target=2 * searcher.index.info.image_size)
        image = searcher.image_query(picture, f"like {path.name}")
    else:
        image = searcher.like_query(arguments.like)
    return searcher.mixed_query(image, arguments.text, arguments.weight) if arguments.text else image


def _print_found(found: dict[str, Any] | str) -> None:
    print(found if isinstance(found, str) else json.dumps(found, indent=1, ensure_ascii=False))
