"""What `python -m for_search embed` does with its arguments: fetches, embeds, mirrors, indexes and follows.

Imports stay within the functions, as in `for_search.commands`.
"""

import argparse
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from for_model.errors import UsageError
from for_search.commands import build_with_sketches, method_of

if TYPE_CHECKING:
    from for_model.data.dataset import Dataset
    from for_model.methods.protocol import Method
    from for_search.store.embedding.ray_workers import RayCluster


def run_embed(arguments: argparse.Namespace) -> None:
    from for_model.data.registry import load_dataset
    from for_model.methods.registry import parse_method

    parse_method(arguments.method)
    if arguments.watch and arguments.dataset != "folder":
        raise UsageError(f"--watch follows a folder of images, got --dataset {arguments.dataset}: leave it out")
    if isinstance(arguments.root, str):
        arguments.root = _fetched_root(arguments)
    dataset = load_dataset(arguments.dataset, arguments.root, arguments.split)
    cluster = None if arguments.ray is None else _ray_cluster(arguments)
    if cluster is not None:
        arguments.device = "cpu"  # this process encodes nothing
    method = method_of(arguments, arguments.method)
    _embed_and_index(arguments, dataset, method, cluster)
    if arguments.watch:
        from for_search.library.folder_watch import follow

        print(f"following {dataset.image_root} (Ctrl-C ends it)", flush=True)
        follow(
            dataset.image_root,
            lambda: _embed_and_index(arguments, load_dataset("folder", arguments.root), method, cluster, quiet=True),
        )


def _fetched_root(arguments: argparse.Namespace) -> Path:
    """A folder in FOR's cache that holds the images under the URL of --root."""
    from for_model.data.images import IMAGE_SUFFIXES
    from for_model.remote import RemoteFolder, fetch_images

    remote = RemoteFolder(arguments.root)
    if arguments.dataset != "folder" or arguments.watch:
        what = "--watch" if arguments.watch else f"--dataset {arguments.dataset}"
        raise UsageError(
            f"--root {remote.url} with {what}: a URL is for --dataset folder alone; copy it to a folder first"
        )
    folder = remote.cache_folder("remote-images")
    fetch_images(remote.url, folder, IMAGE_SUFFIXES)
    return folder


def _ray_cluster(arguments: argparse.Namespace) -> "RayCluster":
    """The cluster of --ray, whose workers build the method of the arguments. Raises UsageError without Ray."""
    import torch

    from for_search.store.embedding.ray_workers import INSTALL, RayCluster

    if find_spec("ray") is None:
        raise UsageError(f"--ray needs the package ray: {INSTALL}")
    gpus = arguments.ray_gpus
    if gpus is None:
        gpus = 1 if (arguments.device or "").startswith("cuda") else 0
    there = argparse.Namespace(**vars(arguments))
    there.device = "cuda" if gpus else "cpu"
    if there.weights and Path(there.weights).exists():  # workers have other working directories
        there.weights = str(Path(there.weights).absolute())
    name = arguments.method
    name = str(Path(name).absolute()) if Path(name).is_file() else name
    build = partial(method_of, there, name)
    # A CPU's float sums depend on how many threads share them: as many there as here give the same bytes.
    cpus = arguments.ray_cpus if arguments.ray_cpus is not None else 1 if gpus else torch.get_num_threads()
    return RayCluster(build, arguments.ray or None, arguments.ray_workers, cpus, gpus)


def _embed_and_index(
    arguments: argparse.Namespace,
    dataset: "Dataset",
    method: "Method",
    cluster: "RayCluster | None" = None,
    quiet: bool = False,
) -> None:
    """Bring the store, and the index if one was named, up to date, and tell it; `quiet` doesn't tell of nothing."""
    from for_search.index.index_files import build_index
    from for_search.library.vocabulary_sample import texts_for
    from for_search.store.embed import embed
    from for_search.store.metadata import read_metadata
    from for_search.store.mirror import StoreMirror

    mirror = StoreMirror(arguments.out) if isinstance(arguments.out, str) else None
    joined = None if arguments.metadata is None else read_metadata(arguments.metadata, dataset)
    report = embed(
        dataset,
        method,
        mirror.pull() if mirror else arguments.out,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        metadata=None if joined is None else joined.metadata,
        cluster=cluster,
        wrote=mirror.push if mirror else None,
    )
    if mirror:
        mirror.finish()
    new = report.n_images + report.n_skipped - report.resumed_images
    if new or report.n_removed or not quiet:
        print(
            f"{arguments.out}: {report.n_images} images, {report.n_skipped} skipped, "
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
        build_with_sketches(
            arguments.index,
            lambda: build_index(report.store, arguments.index, texts=lambda: texts_for(report.store)),
        )
