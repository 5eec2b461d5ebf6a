import threading
from pathlib import Path

import pytest
import torch

from for_model.errors import UsageError
from for_model.files import cache_dir
from for_model.methods.build import build_method
from for_model.methods.clip_method import ClipMethod
from for_model.text import embed_categories
from for_search.query.vocabulary_texts import KEPT, MAX_WAITING, VocabularyTexts
from tests.helpers.patience import PATIENCE_S


@pytest.fixture(scope="module")
def method() -> ClipMethod:
    return build_method("clip", "RN-mini", device="cpu")


def test_embeddings_are_made_once(method: ClipMethod, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"thing {i}" for i in range(40)]
    texts = VocabularyTexts()
    first = texts.embedding(method, names)
    assert torch.equal(first.texts.result(PATIENCE_S), embed_categories(method, names))
    assert (first.done, first.total) == (40, 40)
    assert texts.embedding(method, names) is first
    monkeypatch.setattr("for_model.text.embed_categories", lambda *_, **__: torch.zeros(0))
    assert texts.embedding(method, names[::-1]) is not first


def test_progress_is_told_while_it_goes_on(method: ClipMethod, monkeypatch: pytest.MonkeyPatch) -> None:
    told, go_on = threading.Event(), threading.Event()
    real = embed_categories

    def slow(encoder: ClipMethod, names: list[str], report) -> torch.Tensor:
        def tell(done: int) -> None:
            report(done)
            told.set()
            assert go_on.wait(PATIENCE_S)

        return real(encoder, names, report=tell)

    monkeypatch.setattr("for_model.text.embed_categories", slow)
    embedding = VocabularyTexts().embedding(method, [f"thing {i}" for i in range(50)])
    assert told.wait(PATIENCE_S)
    assert (embedding.done, embedding.texts.done()) == (32, False)
    go_on.set()
    assert len(embedding.texts.result(PATIENCE_S)) == 50
    assert embedding.done == 50


def test_what_is_kept_lies_on_disk_and_nothing_else_does(method: ClipMethod) -> None:
    def files() -> set[Path]:
        return set((cache_dir() / "text").glob("*.safetensors"))

    before = files()
    VocabularyTexts().embedding(method, ["typed", "by someone"]).texts.result(PATIENCE_S)
    assert files() == before
    VocabularyTexts().embedding(method, ["shipped", "with FOR"], keep=True).texts.result(PATIENCE_S)
    assert len(files() - before) == 1


def test_a_failure_is_told_and_tried_again(method: ClipMethod, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = VocabularyTexts()
    with monkeypatch.context() as patch:
        patch.setattr("for_model.text.embed_categories", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            texts.embedding(method, ["dog", "cat"]).texts.result(PATIENCE_S)
    assert texts.embedding(method, ["dog", "cat"]).texts.result(PATIENCE_S).shape == (2, 256)


def test_few_are_made_at_once_and_few_are_kept(method: ClipMethod, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()

    def blocked(*_: object, **__: object) -> torch.Tensor:
        assert go_on.wait(PATIENCE_S)
        return torch.zeros(2, 256)

    monkeypatch.setattr("for_model.text.embed_categories", blocked)
    texts = VocabularyTexts()
    begun = [texts.embedding(method, ["a", str(i)]) for i in range(MAX_WAITING)]
    with pytest.raises(UsageError, match="too many"):
        texts.embedding(method, ["one", "more"])
    assert texts.embedding(method, ["a", "0"]) is begun[0]  # who asks for the same may wait
    go_on.set()
    for embedding in begun:
        embedding.texts.result(PATIENCE_S)
    for i in range(2 * KEPT):
        texts.embedding(method, ["b", str(i)]).texts.result(PATIENCE_S)
    assert len(texts._known) <= KEPT
