"""What each of photo-lite's choices is worth: mAP@50 on labelled photographs, one choice changed at a time.

  python -m for_eval.photo_study --dataset coco --root ~/coco --split train2017

The choices were made on photographs that no reported score counts; use another split than the one you report.
"""

import argparse
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from for_eval.leaderboard.evaluate import K
from for_eval.metrics.retrieval import retrieval_scores
from for_model.backbones.imagenet_names import class_descriptions, wordnet_descriptions
from for_model.backbones.photo_lite import PhotoBackbone, PhotoPool, PhotoSettings, in_context, load_photo_lite
from for_model.backbones.photo_packages import NAME
from for_model.data.dataset import Dataset
from for_model.data.images import load_image
from for_model.data.registry import load_dataset
from for_model.errors import DataError, ForError
from for_model.methods.build import build_method
from for_model.methods.clip_method import ClipMethod
from for_model.prompts import PROMPTS
from for_model.text import embed_categories

_BATCH = 16


@dataclass(frozen=True)
class Variant:
    """One row: what is changed, the settings, and what the 1,000 classes are called."""

    label: str
    settings: PhotoSettings
    names: Callable[[], list[str]] = class_descriptions


def variants(chosen: PhotoSettings) -> Iterator[Variant]:
    """The chosen settings, then each setting at other values."""
    yield Variant("as chosen", chosen)
    for label, field, values in (
        ("temperature", "temperature", (1.0, 1.5, 2.0, 3.0)),
        ("classes that count", "n_classes", (1, 5, 10, 20, 1000)),
        ("neighbourhood", "neighbourhood", (1, 3, 5, 7)),
        ("context", "context", (0.0, 0.2, 0.4, 0.6)),
        ("doubt", "doubt", (0.0, 0.25, 0.5)),
    ):
        for value in values:
            if value != getattr(chosen, field):
                yield Variant(f"{label} {value:g}", replace(chosen, **{field: value}))  # type: ignore[arg-type]
    for label, prompts in (
        ("the bare name", ("{}",)),
        ("a photo of a ...", ("a photo of a {}.",)),
        ("CLIP's seven prompts", PROMPTS),
    ):
        yield Variant(label, replace(chosen, prompts=prompts))
    yield Variant("classes: WordNet as it is", chosen, wordnet_descriptions)
    yield Variant("classes: names, no definition", chosen, lambda: [t.split(": ")[0] for t in class_descriptions()])
    yield Variant(
        "classes: first name only", chosen, lambda: [t.split(",")[0].split(": ")[0] for t in class_descriptions()]
    )
    yield Variant(
        "plain ConSE on first names, cell by cell",
        PhotoSettings(temperature=2, n_classes=10, neighbourhood=1, context=0, doubt=0, prompts=("{}",)),
        lambda: [t.split(",")[0].split(": ")[0] for t in wordnet_descriptions()],
    )


def feature_maps(dataset: Dataset, backbone: PhotoBackbone) -> Tensor:
    """X of all images, before `in_context`: [M, K, Ce] float32 on the CPU. Raises ImageError for a broken one."""
    parts = []
    for start in tqdm(range(0, len(dataset.images), _BATCH), desc="feature maps", unit="batch", disable=None):
        records = dataset.images[start : start + _BATCH]
        images = [load_image(dataset.image_root / r.path, 2 * backbone.image_size) for r in records]
        parts.append(backbone.features(torch.stack([backbone.preprocess(image) for image in images])).cpu())
    return torch.cat(parts)


@functools.cache
def class_embeddings(backbone: PhotoBackbone, descriptions: tuple[str, ...]) -> Tensor:
    """[C, Co - 1], the text embeddings of what the classes are called; most variants share them."""
    return backbone.encode_texts(descriptions)[:, :-1]


def scores_of(
    variant: Variant, X: Tensor, dataset: Dataset, backbone: PhotoBackbone, methods: Sequence[str]
) -> list[float]:
    """mAP@50 in percent, of each method on base, then on novel categories."""
    scored = [i for i, category in enumerate(dataset.categories) if category.group != "other"]
    novel = np.array([dataset.categories[i].group == "novel" for i in scored])
    relevance = dataset.relevance([image.id for image in dataset.images])[scored]
    backbone.prompts = variant.settings.prompts
    texts = embed_categories(backbone, [dataset.categories[i].name for i in scored])  # [C, Co]
    grid = backbone.pool.grid
    names = class_embeddings(backbone, tuple(variant.names()))
    pool = PhotoPool(backbone.pool.v_proj, names, grid, variant.settings)
    x = in_context(X.transpose(1, 2).unflatten(-1, (grid, grid)), variant.settings)
    X = x.flatten(2).transpose(1, 2)
    row = []
    for method in methods:
        built = build_method(method, loaded=backbone)
        assert isinstance(built, ClipMethod)
        Y = torch.cat([built.head(part, pool) for part in X.split(_BATCH)])  # [M, N, Co]
        similarities = (F.normalize(texts, dim=-1) @ Y.transpose(1, 2)).amax(dim=-1).T  # [C, M]
        result = retrieval_scores(similarities.numpy(), relevance, K)
        row += [
            100 * float(ap) if (ap := result.mean(mask).ap) is not None else float("nan") for mask in (~novel, novel)
        ]
    return row


def main(argv: Sequence[str] | None = None) -> int:
    """Print a Markdown table. Returns 0, or 2 with one line on stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="coco")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--split", default="train2017")
    arguments = parser.parse_args(argv)
    methods = ("clip", "dense-clip", "cluster-clip")
    try:
        dataset = load_dataset(arguments.dataset, arguments.root, arguments.split)
        if not dataset.labels:
            raise DataError(f"{dataset.name} {dataset.split} has no labels to score: use a labelled dataset")
        backbone = load_photo_lite(NAME, None, None, torch.device("cpu"), PhotoSettings(neighbourhood=1, context=0))
        X = feature_maps(dataset, backbone)
        print("| changed | " + " | ".join(f"{m} base | {m} novel" for m in methods) + " |")
        print("|---" * (1 + 2 * len(methods)) + "|")
        with torch.inference_mode():
            for variant in variants(PhotoSettings()):
                row = scores_of(variant, X, dataset, backbone, methods)
                print(f"| {variant.label} | " + " | ".join(f"{score:.1f}" for score in row) + " |", flush=True)
    except ForError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
