import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from for_model.data.coco import load_coco
from for_model.data.miniscenes.concepts import CONCEPTS
from for_model.data.miniscenes.scenes import write_scenes
from for_model.errors import UsageError
from for_model.heads.cluster import ClusterHead
from for_model.methods.build import build_method
from for_model.methods.clip_method import ClipMethod
from for_model.text import embed_categories
from for_model.training.features import Features, open_features
from for_model.training.pseudo_labels import (
    PseudoLabel,
    StoredLabels,
    imagenet21k_classes,
    pseudo_labels,
    stored_labels,
    vocabulary,
)


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_equals_eq_4_word_by_word() -> None:
    Y, texts, scale, threshold = unit(4, 3, 8), unit(20, 8, seed=1), 6.0, 0.2
    for image, labels in zip(Y, pseudo_labels(Y, texts, scale, threshold), strict=True):
        expected = []
        for j in range(len(texts)):
            of_embeddings = []
            for y in image:
                scores = [math.exp(scale * float(y @ text)) for text in texts]
                of_embeddings.append(scores[j] / sum(scores))
            p = max(of_embeddings)
            if p > threshold:
                expected.append((j, pytest.approx(p, rel=1e-4), of_embeddings.index(p)))
        expected.sort(key=lambda row: -row[1].expected)
        assert [(label.name, label.probability, label.embedding) for label in labels] == expected
        assert labels  # or the comparison would compare nothing


def test_limit_keeps_the_most_probable_and_ties_go_by_position() -> None:
    texts = torch.eye(4)
    Y = torch.stack([torch.eye(4)[[2, 1]], torch.eye(4)[[3, 3]]])
    assert [[label.name for label in labels] for labels in pseudo_labels(Y, texts, 10.0, 0.5)] == [[1, 2], [3]]
    first = pseudo_labels(Y, texts, 10.0, 0.0, limit=1)
    assert [(labels[0].name, labels[0].embedding, len(labels)) for labels in first] == [(1, 1, 1), (3, 0, 1)]
    assert pseudo_labels(Y, texts, 10.0, 1.0) == [[], []]
    assert pseudo_labels(Y[:0], texts, 10.0, 0.5) == []
    assert isinstance(first[0][0], PseudoLabel)


def test_what_makes_no_sense_is_said() -> None:
    for wrong in ({"threshold": 1.5}, {"limit": 0}, {"texts": torch.eye(3)}, {"texts": torch.zeros(0, 4)}):
        with pytest.raises(UsageError):
            pseudo_labels(**{"Y": torch.eye(4)[None], "texts": torch.eye(4), "scale": 1.0, "threshold": 0.1, **wrong})


def test_imagenet21k_and_its_vocabulary_without_the_novel_names() -> None:
    classes = imagenet21k_classes()
    assert len(classes) == 21_841
    assert {"umbrella", "dalmatian", "knothole"} <= {lemmas[0] for lemmas in classes}
    assert all(lemma and lemma == lemma.strip() and "," not in lemma for lemmas in classes for lemma in lemmas)
    names = vocabulary("imagenet21k")
    assert vocabulary("imagenet21k", ["not a class"]) == names
    assert set(names) - set(vocabulary("imagenet21k", ["Umbrella "])) == {"umbrella"}
    # "tie" is the second lemma of "necktie, tie", and of several other classes; "couch" that of "sofa, couch"
    fewer = vocabulary("imagenet21k", ["tie", "couch"])
    assert {"necktie", "sofa"} <= set(names) - set(fewer)
    unwanted = {lemmas[0] for lemmas in classes if {"tie", "couch"} & {lemma.casefold() for lemma in lemmas}}
    assert set(names) - set(fewer) == unwanted


def test_vocabularies(tmp_path: Path) -> None:
    names = vocabulary("imagenet21k")
    assert len(names) == len(set(names)) == len({lemmas[0] for lemmas in imagenet21k_classes()})
    assert vocabulary("miniscenes") == [concept.name for concept in CONCEPTS]
    (tmp_path / "mine.txt").write_text("crane\n\n  red umbrella \ncrane\n")
    assert vocabulary(str(tmp_path / "mine.txt")) == ["crane", "red umbrella"]
    (tmp_path / "empty.txt").write_text("\n")
    for wrong in ("missing.txt", "empty.txt"):
        with pytest.raises(UsageError, match="vocabulary"):
            vocabulary(str(tmp_path / wrong))


@pytest.fixture(scope="module")
def method() -> ClipMethod:
    backbone = build_method("clip", "RN-mini", image_size=96, device="cpu").backbone
    return ClipMethod(backbone, ClusterHead(3))


@pytest.fixture(scope="module")
def features(method: ClipMethod, tmp_path_factory: pytest.TempPathFactory) -> Features:
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root, {"dev": 6}, size=96)
    (root / "dev" / "000000000002.jpg").write_bytes(b"")
    return open_features(load_coco(root, "dev"), method.backbone, 1.0, root / "features")


NAMES = ["dog", "cat", "clock", "car", "umbrella"]


def test_stored_labels_are_those_of_eq_4(method: ClipMethod, features: Features, tmp_path: Path) -> None:
    stored = stored_labels(features, method, NAMES, 0.25, tmp_path)
    texts = embed_categories(method, NAMES)
    for row in range(6):
        start, end = stored.starts[row : row + 2]
        kept = list(
            zip(stored.name[start:end], stored.probability[start:end], stored.embedding[start:end], strict=True)
        )
        if row == 1:
            assert not kept  # it can't be decoded
            continue
        ((_, X),) = features.batches([np.array([row])])
        (expected,) = pseudo_labels(method.encode_features(X), texts, method.backbone.logit_scale, 0.25)
        assert [(int(n), int(e)) for n, _, e in kept] == [(label.name, label.embedding) for label in expected]
        assert [float(p) for _, p, _ in kept] == pytest.approx([label.probability for label in expected], abs=1e-4)
        assert stored.of(row).tolist() == [label.name for label in expected]
        assert stored.of(row, 1).tolist() == [label.name for label in expected][:1]
    assert len(stored.name) > 3


def test_stored_labels_are_made_once_and_again_when_anything_differs(
    method: ClipMethod, features: Features, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = stored_labels(features, method, NAMES, 0.25, tmp_path)
    (path,) = tmp_path.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(features, "batches", lambda order: pytest.fail("computed again"))
        again = stored_labels(features, method, NAMES, 0.25, tmp_path)
    for key in ("starts", "name", "probability", "embedding"):
        assert np.array_equal(getattr(first, key), getattr(again, key))
    stored_labels(features, method, NAMES, 0.3, tmp_path)
    stored_labels(features, method, NAMES[::-1], 0.25, tmp_path)
    stored_labels(features, ClipMethod(method.backbone, ClusterHead(4)), NAMES, 0.25, tmp_path)
    assert len(list(tmp_path.iterdir())) == 4
    path.write_bytes(path.read_bytes()[:-20])
    assert np.array_equal(stored_labels(features, method, NAMES, 0.25, tmp_path).name, first.name)


def test_the_scale_of_eq_4_is_a_setting(method: ClipMethod, features: Features, tmp_path: Path) -> None:
    own = stored_labels(features, method, NAMES, 0.25, tmp_path)
    sharper = stored_labels(features, method, NAMES, 0.25, tmp_path, scale=4.0)
    assert sharper.probability.max() > own.probability.max()
    texts = embed_categories(method, NAMES)
    ((_, X),) = features.batches([np.array([0])])
    (expected,) = pseudo_labels(method.encode_features(X), texts, 4 * method.backbone.logit_scale, 0.25)
    assert sharper.of(0).tolist() == [label.name for label in expected]


def test_how_many_labels_there_are_and_how_many_a_limit_cuts() -> None:
    name, starts = np.zeros(8, np.int32), np.array([0, 6, 6, 8])
    stored = StoredLabels(["dog"], starts, name, np.zeros(8, np.float32), np.zeros(8, np.int16))
    assert stored.described(4) == "2.7 pseudo-labels an image, of which 25% are cut: no more than 4 can be matched"
