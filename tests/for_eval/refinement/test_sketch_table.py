"""What 32 bytes keep: a result of each representation, from one split's texts to another's scores."""

import dataclasses
from pathlib import Path

import pytest
import torch

from for_eval.refinement.sketch_table import SKETCHES, study_sketches
from for_model.data.dataset import Category, Dataset
from for_model.errors import UsageError
from for_search.index.sketches.training import SketchTraining
from for_search.library import sketch_texts
from tests.helpers.planted_index import Planted, make_planted


class _Encoder:
    """Every name is the planted text, turned a little by its letters."""

    prompts = ("{}",)

    def __init__(self, planted: Planted) -> None:
        self.info, self._text = planted.index.info, planted.text

    def encode_texts(self, texts: list[str]) -> torch.Tensor:
        rows = torch.from_numpy(self._text).repeat(len(texts), 1)
        for row, text in zip(rows, texts, strict=True):
            row[len(text) % len(row)] += 0.1
        return torch.nn.functional.normalize(rows, dim=1)


def test_a_result_has_a_row_of_each_representation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOR_CACHE", str(tmp_path / "cache"))
    planted = make_planted(tmp_path)
    index = planted.index
    labels = {image.id: frozenset({0}) for image, right in zip(index.images, planted.relevant, strict=True) if right}
    categories = (Category("dog", "base"), Category("horse", "novel"), Category("elephant", "other"))
    measured = Dataset("tiny", "val", tmp_path, tuple(index.images), categories, labels)
    fitted = dataclasses.replace(measured, split="train")
    monkeypatch.setattr("for_eval.refinement.refine_table.store_path", lambda *_: index.path.parent / "store")
    monkeypatch.setattr(
        "for_eval.refinement.sketch_table.SketchTraining", lambda: SketchTraining(steps=3, images=64, hidden=8)
    )
    method = _Encoder(planted)
    known = sketch_texts.known_texts("labels", fitted)
    assert known.images == (frozenset(labels), frozenset(), frozenset())  # of base names it is known, of others not
    result = study_sketches(method, fitted, measured, "labels")  # type: ignore[arg-type]
    assert [(row["representation"], row["bytes"]) for row in result["rows"]] == [
        ("float16", 48),
        ("32 x 8 bits, trained", 24),
        ("32 x 8 bits, principal axes", 24),
        ("product quantisation", 24),
    ]
    full, *_, quantised = (row["scores"] for row in result["rows"])
    assert full["base"] > 0.5
    assert full["novel"] is None  # no image shows a horse
    assert quantised["base"] == pytest.approx(full["base"], abs=0.02)  # a byte for each of 24 numbers keeps all
    SKETCHES.write(tmp_path, result)
    lines = SKETCHES.write_table(tmp_path).read_text().splitlines()
    assert len(lines) == 5
    assert lines[2].startswith('tiny,val,Cluster-CLIP 4,4,labels,"32 x 8 bits, trained",24,')
    with pytest.raises(UsageError, match="trained and measured on val"):
        study_sketches(method, measured, measured, "labels")  # type: ignore[arg-type]


def test_texts_of_a_file_and_none(tmp_path: Path) -> None:
    dataset = Dataset("folder", "all", tmp_path, ())
    path = tmp_path / "names.txt"
    path.write_text("dog\n\n cat \ndog\n")
    assert sketch_texts.known_texts(str(path), dataset).texts == ("dog", "cat")
    with pytest.raises(UsageError, match="folder has no labels: give captions, or a file"):
        sketch_texts.known_texts("labels", dataset)
    path.write_text("\n")
    with pytest.raises(sketch_texts.DataError, match="holds no text"):
        sketch_texts.known_texts(str(path), dataset)
    with pytest.raises(sketch_texts.DataError, match="can't be read"):
        sketch_texts.known_texts(str(tmp_path / "none"), dataset)
