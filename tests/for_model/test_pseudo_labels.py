import math

import pytest
import torch
import torch.nn.functional as F

from for_model.errors import UsageError
from for_model.pseudo_labels import PseudoLabel, imagenet21k_names, pseudo_labels, without


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
    names = imagenet21k_names()
    assert len(names) == 21_841
    assert {"umbrella", "dalmatian", "knothole"} <= set(names)
    assert all(name and name == name.strip() and "," not in name for name in names)
    fewer = without(names, ["Umbrella ", "not a class"])
    assert "umbrella" not in fewer
    assert len(fewer) == len(names) - names.count("umbrella")
