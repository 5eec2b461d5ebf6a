import threading
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from for_app.views.labels import labels_html
from for_model.data.coco import load_coco
from for_model.data.images import load_image
from for_model.data.miniscenes.concepts import CONCEPTS
from for_model.errors import UsageError
from for_model.text import embed_categories
from for_search import api
from for_search.library import label_service as labelling
from for_search.library.label_service import default_vocabulary, label_image, sample_images
from for_search.library.library import Library
from for_search.query.image_labels import ImageLabel, ImageLabels, find_labels, judged, labelling_method
from for_search.query.vocabulary_texts import Embedding, VocabularyTexts
from tests.helpers.tiny_index import make_searcher


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("labelling")


@pytest.fixture(scope="module")
def library(folder: Path) -> Library:
    library = Library()
    library.add_opened(make_searcher(folder, 10))
    return library


def test_an_image_of_the_index_is_labelled_by_its_backbone_and_judged_by_its_annotations(
    library: Library, folder: Path
) -> None:
    name = library.default
    searcher = library.searcher(name)
    record = searcher.index.images[4]
    names = [concept.name for concept in CONCEPTS]
    method = labelling_method(searcher.method)
    picture = load_image(folder / "scenes" / "val" / record.path)
    expected = judged(
        find_labels(method, picture, names, embed_categories(method, names), 0.0),
        load_coco(folder / "scenes", "val"),
        record.id,
    )
    shown, found = label_image(library, name, str(record.id), "miniscenes", threshold=0.0)
    assert shown.tobytes() == picture.tobytes()
    assert found.labels == expected.labels
    assert np.array_equal(found.cells, expected.cells)
    assert found.missed == expected.missed
    assert api.pseudo_label(library, record.id, threshold=0.0) == expected.to_json()


def test_an_image_of_ones_own_has_no_verdicts(library: Library) -> None:
    found = api.pseudo_label(library, Image.new("RGB", (50, 20), "red"), names=["dog", "cat"], threshold=0.1)
    assert [one["verdict"] for one in found["labels"]] == [None, None]
    assert found["missed"] is None


def test_the_vocabulary_that_nobody_chose(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_vocabulary(library, library.default) == "dataset"
    monkeypatch.setattr(library, "labels", lambda name: None)
    assert default_vocabulary(library, library.default) == "imagenet21k"
    with pytest.raises(UsageError, match="no labelled categories"):
        label_image(library, library.default, 1, "dataset")


def test_the_threshold_that_nobody_chose_is_the_vocabularys(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelling, "vocabulary_names", lambda *_: ["dog", "cat"])
    assert label_image(library, library.default, 1, "miniscenes")[1].threshold == 0.3
    assert label_image(library, library.default, 1, "imagenet21k")[1].threshold == 0.0005
    assert label_image(library, library.default, 1, "imagenet21k", threshold=0.0)[1].threshold == 0.0


def test_who_waits_for_a_vocabulary_is_told_how_far_it_is(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Embedding(2, done=1, texts=Future())
    monkeypatch.setattr(VocabularyTexts, "embedding", lambda *_: slow)
    told: list[tuple[int, int]] = []

    def report(done: int, total: int) -> None:
        told.append((done, total))
        if len(told) == 2:
            texts = torch.nn.functional.normalize(torch.ones(2, 256), dim=-1)
            threading.Timer(0.05, slow.texts.set_result, [texts]).start()

    label_image(library, library.default, 1, "own", ["dog", "cat"], report=report)
    assert told[:2] == [(1, 2), (1, 2)]


def test_samples(library: Library) -> None:
    searcher = library.searcher(library.default)
    assert [record.id for record in sample_images(searcher, 99, 0)] == [image.id for image in searcher.index.images]
    some = [record.id for record in sample_images(searcher, 4, 0)]
    assert some == sorted(some)
    assert len(set(some)) == 4
    assert some != [record.id for record in sample_images(searcher, 4, 1)]


def test_the_list_is_html_of_text() -> None:
    labels = (ImageLabel("<i>dog", 0.5, 3, "right"), ImageLabel("cat", 0.25, 0, "wrong"), ImageLabel("ox", 0.2, 3))
    found = ImageLabels(labels, 7, 0.1, np.zeros((2, 2), np.int64), ("a & b",))
    shown = labels_html(found)
    assert "<b>7 labels</b> above 0.1 · the first 3 shown · 1 right · 1 wrong · 0 unknown" in shown
    assert "&lt;i&gt;dog" in shown
    assert "a &amp; b" in shown
    assert shown.count("<li>") == 3
    assert [shown.count(f'title="region {n} ') for n in (1, 2, 3)] == [2, 1, 0]
    nothing = labels_html(ImageLabels((), 0, 0.9, np.zeros((2, 2), np.int64)))
    assert "No name reaches a probability of 0.9" in nothing
