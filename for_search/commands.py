"""What each command of `python -m for_search` does with its arguments: calls the package, prints the outcome.

Imports stay within the functions, so that --help and a slip in the arguments don't wait for torch.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from for_model.data.registry import datasets_help
from for_model.errors import StoreError, UsageError

if TYPE_CHECKING:
    from for_model.data.dataset import Dataset
    from for_model.methods.protocol import Method


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

    parse_method(arguments.method)
    dataset = load_dataset(arguments.dataset, arguments.root, arguments.split)
    if arguments.watch and dataset.name != "folder":
        raise UsageError(f"--watch follows a folder of images, got --dataset {arguments.dataset}: leave it out")
    method = method_of(arguments, arguments.method)
    _embed_and_index(arguments, dataset, method)
    if arguments.watch:
        from for_search.library.folder_watch import follow

        print(f"following {dataset.image_root} (Ctrl-C ends it)", flush=True)
        follow(
            dataset.image_root,
            lambda: _embed_and_index(arguments, load_dataset("folder", arguments.root), method, quiet=True),
        )


def _embed_and_index(arguments: argparse.Namespace, dataset: "Dataset", method: "Method", quiet: bool = False) -> None:
    """Bring the store, and the index if one was named, up to date, and tell it; `quiet` doesn't tell of nothing."""
    from for_search.index.index_files import build_index
    from for_search.store.embed import embed
    from for_search.store.metadata import read_metadata

    joined = None if arguments.metadata is None else read_metadata(arguments.metadata, dataset)
    report = embed(
        dataset,
        method,
        arguments.out,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        metadata=None if joined is None else joined.metadata,
    )
    new = report.n_images + report.n_skipped - report.resumed_images
    if new or report.n_removed or not quiet:
        print(
            f"{report.store}: {report.n_images} images, {report.n_skipped} skipped, "
            f"{report.images_per_second:.1f} images a second; "
            f"{new} embedded now, {report.resumed_images} kept, {report.n_removed} removed"
        )
        if report.n_skipped:
            print(f"the reasons are in {report.store / 'manifest.json'} under skipped", flush=True)
        if joined is not None:
            print(
                f"{arguments.metadata}: {len(joined.metadata.types)} columns for {len(joined.metadata.cells)} of "
                f"{len(dataset.images)} images; rows of no image: {joined.n_unknown}, "
                f"second rows of one: {joined.n_repeated}"
            )
    if arguments.index is not None:
        build_index(report.store, arguments.index)


def run_index(arguments: argparse.Namespace) -> None:
    from for_search.index.index_files import build_index

    index = build_index(arguments.store, arguments.out, arguments.kind, rebuild=arguments.rebuild)
    print(
        f"{arguments.out}: {len(index.images)} images, {index.info.n_embeddings} embeddings each, "
        f"in {len(index.segments)} segment{'' if len(index.segments) == 1 else 's'}"
    )


def run_verify(arguments: argparse.Namespace) -> None:
    from for_search.index.verify import verify

    damaged = 0
    for file, error in verify(arguments.path):
        print(f"{file}: {error or 'sound'}", flush=True)
        damaged += error is not None
    if damaged:
        raise StoreError(f"{arguments.path}: {damaged} of its files not as written")


def run_search(arguments: argparse.Namespace) -> None:
    from for_search.query.searcher import format_hits_text, load_searcher

    searcher = load_searcher(
        arguments.index, arguments.device, weights=arguments.weights, image_root=arguments.image_root
    )
    allowed = searcher.index.where(arguments.where)
    result = searcher.find(searcher.text_query(arguments.text), arguments.k, allowed)
    if arguments.json:
        print(json.dumps(result.to_json(), indent=1, ensure_ascii=False))
    else:
        print(format_hits_text(result))
