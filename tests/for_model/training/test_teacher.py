"""The soft teacher against its formula, image by image, on feature maps that are made up."""

from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from for_model.backbones.clip_resnet import ClipResnet, load_clip_resnet
from for_model.data.dataset import Category
from for_model.heads.clip import ClipHead
from for_model.heads.dense import DenseHead
from for_model.training import teacher as teacher_module
from for_model.training.config import PseudoLabelConfig
from for_model.training.features import Features, Rows
from for_model.training.losses.ranking import teacher_logits
from for_model.training.pseudo_labels import vocabulary
from for_model.training.targets import _names
from for_model.training.teacher import Teacher, soft_teacher, survey

IMAGES, NAMES, BROKEN = 7, 5, 3


class SomeFeatures(Features):
    """Feature maps in memory; the image BROKEN can't be decoded."""

    def __init__(self, X: Tensor) -> None:
        self.X = X
        self.usable = np.arange(len(X)) != BROKEN

    def batches(self, order: Iterable[Rows]) -> Iterator[tuple[Rows, Tensor]]:
        for rows in order:
            rows = rows[self.usable[rows]]
            yield rows, self.X[torch.from_numpy(rows)]


@pytest.fixture(scope="module")
def small() -> ClipResnet:
    return load_clip_resnet("RN-mini", "random", 64)


def test_says_what_clip_and_dense_clip_say_together(small: ClipResnet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_module, "_BATCH", 3)
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(IMAGES, small.n_cells, small.width, generator=generator).relu() * 3
    texts = F.normalize(torch.randn(NAMES, small.dim, generator=generator), dim=-1)
    made = soft_teacher([(SomeFeatures(X), None)], small, texts, 1.5)
    kept = [image for image in range(IMAGES) if image != BROKEN]
    parts = []
    for head in (ClipHead(), DenseHead()):
        Y = [head(X[image : image + 1], small.pool)[0] for image in kept]
        parts.append(torch.stack([(y @ texts.T).amax(0) for y in Y]))
    expected = torch.zeros(IMAGES, NAMES)
    expected[kept] = teacher_logits(parts, 1.5)  # the broken image has no part in the mean and the spread
    torch.testing.assert_close(made.logits.float(), expected, atol=2e-3, rtol=0)
    assert made.logits.dtype == torch.float16
    found = survey(SomeFeatures(X), small)
    torch.testing.assert_close(found.means, X[kept].mean(dim=1))
    again = soft_teacher([(SomeFeatures(X), found.frozen)], small, texts, 1.5)
    torch.testing.assert_close(again.logits.float(), expected, atol=2e-2, rtol=0)  # it is kept in float16
    assert not made.logits[BROKEN].any()
    assert float(made.logits[kept].float().std(0, correction=0).mean()) == pytest.approx(1.5, abs=1e-2)


def test_two_views_count_alike(small: ClipResnet) -> None:
    generator = torch.Generator().manual_seed(1)
    views = [SomeFeatures(torch.randn(IMAGES, small.n_cells, small.width, generator=generator)) for _ in range(2)]
    texts = F.normalize(torch.randn(NAMES, small.dim, generator=generator), dim=-1)
    alone = [soft_teacher([(view, None)], small, texts, 1.5).logits.float() for view in views]
    both = soft_teacher([(view, None) for view in views], small, texts, 1.5).logits.float()
    assert not torch.allclose(both, alone[0], atol=0.1)
    again = soft_teacher([(view, None) for view in reversed(views)], small, texts, 1.5).logits.float()
    torch.testing.assert_close(both, again, atol=2e-3, rtol=0)
    twice = soft_teacher([(views[0], None)] * 2, small, texts, 1.5).logits.float()
    torch.testing.assert_close(twice, alone[0], atol=2e-3, rtol=0)


def test_gives_the_rows_of_a_batch() -> None:
    logits = torch.arange(6.0).reshape(3, 2).half()
    rows = Teacher(logits).of(np.array([2, 0]), torch.device("cpu"))
    assert rows.tolist() == [[4.0, 5.0], [0.0, 1.0]]
    assert rows.dtype == torch.float32


def test_the_names_are_those_of_the_vocabulary_less_what_is_left_out() -> None:
    categories = (Category("dog", "base"), Category("cat", "novel"), Category("tree", "other"))
    dataset: Any = SimpleNamespace(categories=categories)

    def names(**settings: Any) -> list[str]:
        return _names(PseudoLabelConfig(vocabulary="miniscenes", **settings), dataset)

    every = vocabulary("miniscenes")
    assert {"dog", "cat", "tree"} <= set(every)
    assert names() == every
    assert names(without_base=True) == [name for name in every if name != "dog"]
    assert names(without_novel=True) == [name for name in every if name != "cat"]
    both = [name for name in every if name not in ("dog", "cat")]
    assert names(without_novel=True, without_base=True, every=10) == both[::10]
    assert names(every=10, names=3) == every[:30:10]
