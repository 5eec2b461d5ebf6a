import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.cluster import KMeans

from for_model.data.dataset import Category, Dataset, ImageRecord
from for_model.data.miniscenes.concepts import CONCEPTS
from for_model.errors import UsageError
from for_model.heads.kmeans import seed_clusters
from for_model.methods.build import build_method
from for_model.methods.clip_method import ClipMethod
from for_model.text import embed_categories
from for_search.query.image_labels import (
    MAX_LABELS,
    MAX_NAME_CHARACTERS,
    MAX_NAMES,
    ImageLabel,
    ImageLabels,
    find_labels,
    judged,
    labelling_method,
    own_names,
    vocabulary_names,
)

NAMES = ["dog", "cat", "clock", "car", "umbrella"]
DATASET = Dataset(
    "world",
    "val",
    Path("/nowhere"),
    (ImageRecord(1, "1.jpg"), ImageRecord(2, "2.jpg")),
    tuple(Category(name, "base") for name in ("Cat", "clock", "boat")),
    {1: frozenset({0, 2})},
)


@pytest.fixture(scope="module")
def method() -> ClipMethod:
    return labelling_method(build_method("clip", "RN-mini", device="cpu"))


@pytest.fixture(scope="module")
def texts(method: ClipMethod) -> torch.Tensor:
    return embed_categories(method, NAMES)


def noise(seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((160, 160), Image.Resampling.BICUBIC)


def test_labels_are_eq_4_on_the_clusters_of_scikit_learn(method: ClipMethod, texts: torch.Tensor) -> None:
    found = find_labels(method, noise(), NAMES, texts, 0.0)
    X = method.backbone.features(method.preprocess(noise())[None])
    dense = F.normalize(method.backbone.pool.project(X)[0], dim=-1).double()
    start = dense[seed_clusters((dense @ dense.T)[None], 8)[0]].numpy()
    engine = KMeans(8, init=start, n_init=1, max_iter=50, tol=0).fit(dense.numpy())
    assert found.cells.shape == (5, 5)
    assert found.cells.ravel().tolist() == engine.labels_.tolist()
    best: dict[str, tuple[float, int]] = {}
    for cluster in range(8):
        y = dense[torch.from_numpy(engine.labels_ == cluster)].mean(0)
        exponents = [math.exp(method.backbone.logit_scale * float(y @ t.double() / y.norm())) for t in texts]
        for name, exponent in zip(NAMES, exponents, strict=True):
            best[name] = max(best.get(name, (0.0, -1)), (exponent / sum(exponents), cluster))
    expected = sorted(((p, name, cluster) for name, (p, cluster) in best.items()), reverse=True)
    assert [(label.name, label.cluster) for label in found.labels] == [(name, c) for _, name, c in expected]
    assert [label.probability for label in found.labels] == pytest.approx([p for p, _, _ in expected], rel=1e-3)
    assert found.missed is None
    assert {label.verdict for label in found.labels} == {None}


def test_threshold_and_limit(method: ClipMethod, texts: torch.Tensor) -> None:
    every = find_labels(method, noise(), NAMES, texts, 0.0)
    middle = every.labels[2].probability
    some = find_labels(method, noise(), NAMES, texts, middle)
    assert some.labels == every.labels[:2]
    assert some.n_found == 2
    many = [f"name {number}" for number in range(MAX_LABELS + 9)]
    crowd = find_labels(method, noise(), many, F.normalize(torch.randn(len(many), 256), dim=-1), 0.0)
    assert (len(crowd.labels), crowd.n_found) == (MAX_LABELS, MAX_LABELS + 9)
    for wrong in (-0.1, 1.1, math.nan, "much", None):
        with pytest.raises(UsageError, match="threshold"):
            find_labels(method, noise(), NAMES, texts, wrong)  # type: ignore[arg-type]


def test_every_label_has_cells_even_in_an_image_of_one_colour(method: ClipMethod, texts: torch.Tensor) -> None:
    for image in (Image.new("RGB", (160, 160), "teal"), noise(1)):
        found = find_labels(method, image, NAMES, texts, 0.0)
        assert {label.cluster for label in found.labels} <= set(found.cells.ravel().tolist())


def test_what_is_right_wrong_and_unknown() -> None:
    cells = np.zeros((2, 2), np.int64)
    found = ImageLabels(tuple(ImageLabel(name, 0.5, 0) for name in ("cat", "CLOCK", "wolf")), 3, 0.1, cells)
    first = judged(found, DATASET, 1)
    assert [label.verdict for label in first.labels] == ["right", "wrong", "unknown"]
    assert first.missed == ("boat",)
    federated = judged(found, replace(DATASET, negatives={1: frozenset()}), 1)  # nothing is known about clocks
    assert [label.verdict for label in federated.labels] == ["right", "unknown", "unknown"]
    second = judged(found, DATASET, 2)  # nothing is annotated in it
    assert [label.verdict for label in second.labels] == ["wrong", "wrong", "unknown"]
    assert second.missed == ()


def test_json() -> None:
    found = ImageLabels((ImageLabel("cat", 0.12345678, 3),), 1, 0.1, np.array([[3, 0], [0, 0]]))
    assert found.to_json() == {
        "labels": [{"name": "cat", "probability": 0.123457, "cluster": 3, "verdict": None}],
        "found": 1,
        "threshold": 0.1,
        "cells": [[3, 0], [0, 0]],
        "missed": None,
    }


def test_vocabularies() -> None:
    assert vocabulary_names("miniscenes") == [concept.name for concept in CONCEPTS]
    assert vocabulary_names("dataset", DATASET) == ["Cat", "clock", "boat"]
    assert vocabulary_names("own", DATASET, " dog, cat\n\ncat\nred\tumbrella\n") == ["dog", "cat", "red\tumbrella"]
    with pytest.raises(UsageError, match="no labelled categories"):
        vocabulary_names("dataset", None)
    for path in ("/etc/passwd", "README.md", "../x", ""):  # a name of a file is no vocabulary here
        with pytest.raises(UsageError, match="unknown vocabulary"):
            vocabulary_names(path, DATASET)


def test_a_list_of_ones_own_has_limits() -> None:
    assert own_names("a\ud800,b") == own_names(["a\ud800", " b ", "b", ""]) == ["a?", "b"]
    assert own_names(["salt, pepper", "dog"]) == ["salt, pepper", "dog"]
    assert len(own_names("\n".join(f"n{i}" for i in range(MAX_NAMES)))) == MAX_NAMES
    for text, said in (
        ("", "got 0 names"),
        ("dog, dog,", "got 1 names"),
        ("\n".join(f"n{i}" for i in range(MAX_NAMES + 1)), "got 1,001 names"),
        ("a," + "b" * (MAX_NAME_CHARACTERS + 1), "has 101 characters"),
        ("a," * 10**6, "2,000,000 characters"),
    ):
        with pytest.raises(UsageError, match=said):
            own_names(text)


def test_another_kind_of_method_is_refused(method: ClipMethod) -> None:
    class Other:
        info = method.info

    with pytest.raises(UsageError, match="no feature map"):
        labelling_method(Other())  # type: ignore[arg-type]
