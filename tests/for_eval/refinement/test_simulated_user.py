"""The simulated user, and the table of what marks are worth."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from for_eval.refinement.ceiling import CEILING, measure_ceiling
from for_eval.refinement.concept_scores import CONCEPT_SCORES, measure_concept
from for_eval.refinement.marks_needed import MARKS_NEEDED, measure_marks_needed
from for_eval.refinement.refine_table import (
    REFINE,
    measure_refiners,
    parse_refiners,
    refine_summary,
    summaries,
)
from for_eval.refinement.simulated_user import (
    N_ASKED,
    PAGE,
    TEXT_ALONE,
    full_average_precision,
    rounds_of,
    simulate,
)
from for_model.data.dataset import Category, Dataset
from for_model.errors import DataError, UsageError
from for_model.methods.protocol import MethodInfo
from for_search.refine.catalogue_sample import sample_catalogue
from for_search.refine.concepts import make_concept, write_concept
from for_search.refine.feedback import feedback_of
from for_search.refine.telling import telling_images
from tests.helpers.planted_index import Planted, make_planted


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return make_planted(tmp_path_factory.mktemp("simulated"), 200)


def test_average_precision_by_hand_and_by_another_library() -> None:
    scores = np.array([4.0, 3.0, 2.0, 1.0])
    assert full_average_precision(scores, np.array([True, False, True, False])) == pytest.approx((1 + 2 / 3) / 2)
    assert full_average_precision(scores, np.zeros(4, bool)) is None
    assert full_average_precision(np.zeros(3), np.array([False, False, True])) == pytest.approx(1 / 3)  # ties by place
    generator = np.random.default_rng(0)
    scores, relevant = generator.random(50), generator.random(50) < 0.3
    assert full_average_precision(scores, relevant) == pytest.approx(average_precision_score(relevant, scores))


def test_a_user_sees_ten_images_a_round(planted: Planted) -> None:
    sample = sample_catalogue(planted.index)
    rounds = {
        refiner: simulate(planted.index, planted.text, planted.relevant, refiner, sample, (0, 1, 2))
        for refiner in (TEXT_ALONE, "linear")
    }
    scores = planted.index.score_images(planted.text[None])[0]
    order = np.argsort(-scores, kind="stable")
    for done, each in enumerate(rounds[TEXT_ALONE]):
        seen, left = order[: PAGE * done], np.sort(order[PAGE * done :])
        assert each.found == planted.relevant[seen].sum()
        assert each.ap_unseen == each.ap_unseen_text
        assert each.ap_unseen == full_average_precision(scores[left], planted.relevant[left])
        assert each.precision is None
    first, one, two = rounds["linear"]
    assert first == rounds[TEXT_ALONE][0]
    assert one.found == rounds[TEXT_ALONE][1].found  # the first page is the text's
    assert two.found > rounds[TEXT_ALONE][2].found
    assert (two.ap_unseen or 0) > (two.ap_unseen_text or 1)
    assert two.ap_list > rounds[TEXT_ALONE][2].ap_list
    assert two.precision is not None
    assert two.recall is not None
    assert two.recall >= two.found / planted.relevant.sum()


def test_a_user_who_is_asked_sees_seven_of_the_best_and_three_others(planted: Planted) -> None:
    sample = sample_catalogue(planted.index)
    rounds = list(rounds_of(planted.index, planted.text, planted.relevant, "linear+telling", sample, 2))
    order = np.argsort(-rounds[0].scores, kind="stable")
    assert set(np.flatnonzero(rounds[1].shown)) == set(order[:PAGE])  # nothing is learnt yet that could be unsure
    new = set(np.flatnonzero(rounds[2].shown & ~rounds[1].shown))
    learnt = rounds[1].learnt
    assert learnt is not None
    asked = {planted.index.position(hit.image.id) for hit in telling_images(learnt, N_ASKED, allowed=~rounds[1].shown)}
    assert asked <= new
    left = [place for place in np.argsort(-rounds[1].scores, kind="stable") if not rounds[1].shown[place]]
    assert new - asked == set([place for place in left if place not in asked][: PAGE - N_ASKED])


def test_a_user_who_has_seen_everything_stops(tmp_path: Path) -> None:
    small = make_planted(tmp_path, 15)
    found = simulate(small.index, small.text, small.relevant, "rocchio", sample_catalogue(small.index), (0, 1, 2, 4))
    assert [each.rounds for each in found] == [0, 1, 2]
    assert (found[-1].found, found[-1].ap_unseen, found[-1].ap_list) == (small.relevant.sum(), None, 1)


def test_means_are_of_the_names_that_they_speak_of() -> None:
    def name(group: str, text: float, gain: float | None) -> dict[str, object]:
        nothing = dict.fromkeys(("precision", "recall", "estimated_precision", "fit_ms", "whole_ms"))
        start = {"rounds": 0, "found": 0, "ap_unseen": text, "ap_unseen_text": text, "ap_list": text, **nothing}
        after = None if gain is None else text + gain
        later = {"rounds": 1, "found": 2, "ap_unseen": after, "ap_unseen_text": text, "ap_list": 0.5, **nothing}
        return {"name": "x", "group": group, "n_relevant": 4, "rounds": [start, later]}

    names = [name("base", 0.2, 0.1), name("base", 0.6, -0.2), name("novel", 0.1, None)]
    table = {group: summaries(names, group)["1"] for group in ("all", "base", "novel", "hard")}
    assert table["all"]["n_names"] == 2
    assert table["all"]["gain"] == pytest.approx(-0.05)
    assert table["all"]["worse"] == 0.5
    assert table["all"]["found"] == 0.5
    assert table["hard"]["gain"] == pytest.approx(0.1)
    assert table["novel"]["gain"] is None
    assert table["all"]["precision"] is None


class _Encoder:
    """A method whose texts have made-up embeddings; its images are in a store already."""

    def __init__(self, planted: Planted) -> None:
        self.info, self._text = planted.index.info, planted.text

    def encode_texts(self, texts: list[str]) -> object:
        import torch

        return torch.from_numpy(self._text)[None].expand(len(texts), -1)


def test_rows_are_made_once_and_the_table_from_them(
    tmp_path: Path, planted: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = planted.index
    labels = {
        image.id: frozenset({0}) for image, relevant in zip(index.images, planted.relevant, strict=True) if relevant
    }
    dataset = Dataset(
        "tiny", "val", tmp_path, index.images, (Category("dog", "base"), Category("cat", "other")), labels
    )
    monkeypatch.setenv("FOR_CACHE", str(tmp_path / "cache"))
    store = index.path.parent / "store"
    monkeypatch.setattr("for_eval.refinement.refine_table.store_path", lambda *_: store)
    method = _Encoder(planted)
    paths = list(measure_refiners(dataset, method, ["text", "rocchio"], tmp_path))  # type: ignore[arg-type]
    assert [path.name for path in paths] == [
        "tiny_val_RN-mini_cluster-clip-4_text.json",
        "tiny_val_RN-mini_cluster-clip-4_rocchio.json",
    ]
    result = json.loads(paths[1].read_text())
    assert [name["name"] for name in result["names"]] == ["dog"]
    times = [path.stat().st_mtime_ns for path in paths]
    assert list(measure_refiners(dataset, method, ["text", "rocchio"], tmp_path)) == paths  # type: ignore[arg-type]
    assert [path.stat().st_mtime_ns for path in paths] == times
    table = REFINE.write_table(tmp_path).read_text().splitlines()
    assert len(table) == 1 + 2 * 4 * 5
    assert sum(line.startswith("tiny,val,Cluster-CLIP 4,4,rocchio,all,2,1,") for line in table) == 1
    assert "rocchio" in refine_summary(paths).splitlines()[2]
    with pytest.raises(DataError, match="no labelled categories"):
        next(measure_refiners(Dataset("tiny", "val", tmp_path, index.images), method, ["text"], tmp_path))  # type: ignore[arg-type]
    (tmp_path / "results" / "refine" / "broken.json").write_text("{}")
    with pytest.raises(DataError, match=r"broken\.json is no result"):
        REFINE.read(tmp_path)


def test_refiners_are_chosen_by_name() -> None:
    assert parse_refiners("linear, text, linear+telling") == ["linear", "text", "linear+telling"]
    with pytest.raises(UsageError, match=r"no refiner is called 'text\+telling'"):
        parse_refiners("text+telling")
    assert parse_refiners("")[0] == TEXT_ALONE
    with pytest.raises(UsageError, match="no refiner is called 'svm': choose some of text, similarity, linear"):
        parse_refiners("svm")


def test_how_many_marks_it_takes(tmp_path: Path, planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    index = planted.index
    labels = {image.id: frozenset({0}) for image, right in zip(index.images, planted.relevant, strict=True) if right}
    dataset = Dataset("tiny", "val", tmp_path, index.images, (Category("dog", "base"),), labels)
    monkeypatch.setenv("FOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("for_eval.refinement.refine_table.store_path", lambda *_: index.path.parent / "store")
    monkeypatch.setattr("for_eval.refinement.marks_needed.COUNTS", (1, 8, 999))
    path = measure_marks_needed(dataset, _Encoder(planted), tmp_path)  # type: ignore[arg-type]
    result = json.loads(path.read_text())
    assert result["n_names"] == {"1": 1, "8": 1, "999": 0}
    scores = index.score_images(planted.text[None])[0]
    assert result["ap_text"]["8"] == pytest.approx(
        full_average_precision(scores[1::2], planted.relevant[1::2]), abs=1e-4
    )
    assert result["ap"]["linear"]["8"] > result["ap"]["linear"]["1"]
    assert result["ap"]["linear"]["999"] is None
    lines = MARKS_NEEDED.write_table(tmp_path).read_text().splitlines()
    assert len(lines) == 1 + 4 * 2
    assert lines[1].startswith("tiny,Cluster-CLIP 4,similarity,1,1,")
    assert REFINE.read(tmp_path) == []  # these results are of the other table


def _labelled(planted: Planted, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """The planted images as a dataset whose store is there."""
    index = planted.index
    labels = {image.id: frozenset({0}) for image, right in zip(index.images, planted.relevant, strict=True) if right}
    monkeypatch.setenv("FOR_CACHE", str(folder / "cache"))
    monkeypatch.setattr("for_eval.refinement.refine_table.store_path", lambda *_: index.path.parent / "store")
    return Dataset(index.dataset, index.split, folder, index.images, (Category("dog", "base"),), labels)


def test_more_labels_bring_more_and_all_of_them_the_most(
    tmp_path: Path, planted: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = _labelled(planted, tmp_path, monkeypatch)
    path = measure_ceiling(dataset, _Encoder(planted), tmp_path)  # type: ignore[arg-type]
    result = json.loads(path.read_text())
    assert result["n_labelled"] == [20, 100]  # all of the half are 100
    (name,) = result["names"]
    scores = planted.index.score_images(planted.text[None])[0]
    assert name["ap_text"] == pytest.approx(full_average_precision(scores[1::2], planted.relevant[1::2]), abs=1e-4)
    assert name["ap_text"] < name["ap"]["linear"]["20"] < name["ap"]["linear"]["100"]
    lines = CEILING.write_table(tmp_path).read_text().splitlines()
    assert sum(",linear,all," in line for line in lines) == 2
    assert measure_ceiling(dataset, _Encoder(planted), tmp_path) == path  # type: ignore[arg-type]  # made once


def test_a_kept_concept_is_scored_against_a_label(
    tmp_path: Path, planted: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = _labelled(planted, tmp_path, monkeypatch)
    method = NamedText(planted.index.info, planted.text)
    concept = make_concept("jumping", planted.index, feedback_of(planted.marks(40)), "dog")
    file = write_concept(tmp_path / "concepts", concept)
    path = measure_concept(dataset, method, file, "dog", tmp_path)  # type: ignore[arg-type]
    result = json.loads(path.read_text())
    assert (result["label"], result["n_right"] + result["n_wrong"], result["n_unmarked"]) == ("dog", 40, 160)
    assert result["ap"]["concept"] > result["ap"]["text"] + 0.1
    assert 0.5 < result["answer"]["precision"] <= 1
    assert "jumping,dog,similarity" in CONCEPT_SCORES.write_table(tmp_path).read_text()
    with pytest.raises(UsageError, match=r"'jumping' is no category of .*--label"):
        measure_concept(dataset, method, file, "", tmp_path)  # type: ignore[arg-type]


class NamedText(_Encoder):
    """The same as a method that a searcher takes."""

    def __init__(self, info: MethodInfo, text: NDArray[np.float32]) -> None:
        self.info, self._text, self.prompts = info, text, ("{}",)
