"""Texts of many threads, encoded together."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from for_model.errors import UsageError
from for_model.methods.protocol import LazyMethod, MethodInfo
from for_search.query import text_batches
from for_search.query.text_batches import TextBatches
from tests.helpers.patience import PATIENCE_S


class Blocking:
    """A method that begins to encode when it is told to, and gives each text the direction of its number."""

    prompts = ("{}",)

    def __init__(self) -> None:
        self.info = MethodInfo("clip", "fake", "random", "abc", 1, 128, 32, {})
        self.device = torch.device("cpu")
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.batches: list[int] = []

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        raise NotImplementedError

    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def encode_texts(self, texts: Sequence[str]) -> torch.Tensor:
        if texts:
            self.begun.set()
            assert self.go_on.wait(PATIENCE_S)
            self.batches.append(len(texts))
        if "damaged" in texts:
            raise UsageError("this text can't be encoded")
        return torch.eye(128)[[int(text) for text in texts]] if texts else torch.zeros(0, 128)


def _ask(texts: TextBatches, method: Blocking, asked: Sequence[str]) -> list[object]:
    """What each of some texts gets, asked for while the encoder is busy with text 0."""

    def answer(text: str) -> object:
        try:
            return int(texts.embed(text).argmax())
        except UsageError as error:
            return str(error)

    with ThreadPoolExecutor(len(asked) + 1) as pool:
        first = pool.submit(answer, "0")
        assert method.begun.wait(PATIENCE_S)
        others = [pool.submit(answer, text) for text in asked]
        while len(texts._waiting) < len(asked):
            pass
        method.go_on.set()
        return [first.result(PATIENCE_S), *(other.result(PATIENCE_S) for other in others)]


def test_what_waits_is_encoded_together() -> None:
    method = Blocking()
    texts = TextBatches(LazyMethod.of(method))
    assert _ask(texts, method, [str(number) for number in range(1, 8)]) == list(range(8))
    assert method.batches == [1, 7]


def test_a_batch_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_batches, "MAX_TEXTS", 3)
    method = Blocking()
    texts = TextBatches(LazyMethod.of(method))
    assert _ask(texts, method, [str(number) for number in range(1, 8)]) == list(range(8))
    assert method.batches == [1, 3, 3, 1]


def test_a_text_that_cannot_be_encoded_leaves_the_others_alone() -> None:
    method = Blocking()
    texts = TextBatches(LazyMethod.of(method))
    answers = _ask(texts, method, ["1", "damaged", "2"])
    assert answers == [0, 1, "this text can't be encoded", 2]
    assert np.isclose(np.linalg.norm(texts.embed("5")), 1)  # and goes on


def test_a_method_that_cannot_be_loaded_is_told() -> None:
    def load() -> Blocking:
        raise UsageError("not here")

    with pytest.raises(UsageError, match="not here"):
        TextBatches(LazyMethod(Blocking().info, load)).embed("1")
