"""The studies on a world of vectors, and the tables that come with FOR."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from for_eval.queries.asked import NONSENSE_TO_FIT, NONSENSE_TO_MEASURE, Asked
from for_eval.queries.calibration_study import (
    CALIBRATION,
    CHOSEN_RULE,
    RULES,
    fit_presence,
    measure_rule,
    other_backbones,
    present,
    study_calibration,
    write_numbers,
)
from for_eval.queries.combination_study import (
    CHOSEN_COMBINATION,
    COMBINATIONS,
    SENTENCE,
    TOGETHER,
    WITHOUT,
    draw_pairs,
    study_combinations,
)
from for_eval.queries.reliability_figure import write_reliability_figure
from for_eval.refinement.marks_needed import MARKS_NEEDED
from for_eval.refinement.refine_table import REFINE
from for_model.errors import DataError, UsageError
from for_search.query.presence import read_numbers
from tests.helpers.paths import REPOSITORY
from tests.helpers.store_making import method_info

LEADERBOARDS = REPOSITORY / "leaderboards"
N_IMAGES, NAMES = 150, ("dog", "cat", "bus", "cup", "tie", "hat")


def make_asked(seed: int) -> Asked:
    """Scores in which what is there stands out by four deviations, and each name has a scale of its own."""
    rng = np.random.default_rng(seed)
    relevance = rng.random((len(NAMES), N_IMAGES)) < 0.2
    scale = rng.uniform(0.5, 2, (len(NAMES), 1))
    noise = rng.standard_normal((len(NAMES), N_IMAGES))
    base = 0.3 * rng.standard_normal(N_IMAGES)

    def score(texts: Sequence[str]) -> np.ndarray:
        return rng.standard_normal((len(texts), N_IMAGES)).astype(np.float32)

    return Asked(
        dataset="tiny",
        split=f"split{seed}",
        info=method_info(8, 4),
        names=NAMES,
        relevance=relevance,
        present=(scale * (4 * relevance + noise) + base).astype(np.float32),
        absent=(rng.standard_normal((5, N_IMAGES)) + base).astype(np.float32),
        nonsense=(0.3 * rng.standard_normal((6, N_IMAGES)) + base).astype(np.float32),
        random=(rng.standard_normal((20, N_IMAGES)) + base).astype(np.float32),
        sample=np.arange(N_IMAGES),
        score=score,
    )


def test_other_words_are_measured_than_fitted() -> None:
    assert not set(NONSENSE_TO_FIT) & set(NONSENSE_TO_MEASURE)
    assert {"asdfgh", "quantum bureaucracy"} <= set(NONSENSE_TO_MEASURE)


def test_the_chosen_rule_tells_what_is_there() -> None:
    numbers = fit_presence(make_asked(0), None)
    assert numbers.weights[0] > 0
    assert numbers.there[1] > 0
    found = measure_rule(make_asked(1), present(make_asked(1), numbers), numbers.cutoff)
    assert found["auroc_pairs"] > 0.9
    assert found["auroc_names"] > 0.95
    assert found["ece"] < 0.05
    assert found["f1"] > 0.6
    assert found["nonsense_good"] <= 2 / 6  # the cut-off tolerates one of the six words that it is fitted to
    z, level, spread = numbers.weights
    backwards = replace(numbers, weights=(-z, level, spread))
    assert measure_rule(make_asked(1), present(make_asked(1), backwards), numbers.cutoff)["auroc_within"] < 0.5


def test_whether_a_thing_is_anywhere_is_fitted_to_another_split() -> None:
    alone, beside = fit_presence(make_asked(0), None), fit_presence(make_asked(0), make_asked(2))
    assert (alone.bias, alone.weights) == (beside.bias, beside.weights)
    assert alone.there != beside.there
    result = study_calibration(make_asked(0), make_asked(1), make_asked(2))
    assert result["fitted_to"] == "tiny split0, tiny split2"
    assert result["rules"][CHOSEN_RULE]["there"] == list(beside.there)


def test_a_study_is_kept_and_becomes_a_table(tmp_path: Path) -> None:
    result = study_calibration(make_asked(0), make_asked(1))
    assert list(result["rules"])[: len(RULES) + 1] == [*RULES, CHOSEN_RULE]
    path = CALIBRATION.write(tmp_path, result)
    lines = CALIBRATION.write_table(tmp_path).read_text().splitlines()
    assert len(lines) == 1 + len(result["rules"])
    assert lines[1].startswith("tiny,split1,tiny split0,RN-mini,cluster-clip,8,softmax share,0.")
    write_reliability_figure(tmp_path / "figure.svg", [result, result])
    assert "<svg" in (tmp_path / "figure.svg").read_text()
    path.write_text("{}")
    with pytest.raises(DataError, match="delete it"):
        CALIBRATION.write_table(tmp_path)


def test_the_packaged_numbers_are_measured_where_nothing_is_fitted() -> None:
    rules = study_calibration(None, make_asked(1))["rules"]
    assert [rule.removeprefix(CHOSEN_RULE) for rule in rules] == [" as packaged", " fitted to other backbones"]


def test_numbers_are_packaged_beside_the_others(tmp_path: Path) -> None:
    path = tmp_path / "numbers.json"
    shutil.copy(REPOSITORY / "for_search" / "query" / "calibrations.json", path)
    before = read_numbers(path)
    result = study_calibration(make_asked(0), make_asked(1))
    write_numbers([result], path)
    after = read_numbers(path)
    numbers = result["rules"][CHOSEN_RULE]
    assert after["RN-mini/cluster-clip"].bias == pytest.approx(numbers["bias"], abs=1e-3)
    assert {name for name in after if after[name] != before[name]} == {"RN-mini/cluster-clip"}


def test_an_unknown_backbone_gets_the_mean_of_the_others() -> None:
    known = read_numbers()
    everyone = other_backbones("RN50")
    assert everyone is not None
    assert everyone.cutoff == pytest.approx(np.mean([each.cutoff for each in known.values()]))
    photos = other_backbones("RN-mini")
    assert photos is not None
    assert photos.bias == pytest.approx(np.mean([e.bias for name, e in known.items() if name.startswith("photo")]))


def test_pairs_meet() -> None:
    relevance = make_asked(0).relevance
    both, alone = draw_pairs(relevance)
    assert (both, alone) == draw_pairs(relevance)
    assert len(both) == len(set(both)) == 15  # all pairs of six names
    for a, b in both:
        assert (relevance[a] & relevance[b]).sum() >= 2
    for a, b in alone:
        assert (relevance[a] & ~relevance[b]).any()
    with pytest.raises(DataError, match="together"):
        draw_pairs(np.eye(4, dtype=bool))


def test_the_chosen_combination_beats_a_sentence_that_means_nothing(tmp_path: Path) -> None:
    result = study_combinations(make_asked(1))
    assert set(result["together"]) == {*TOGETHER, SENTENCE}
    assert set(result["without"]) == {*WITHOUT, SENTENCE}
    assert result["together"][CHOSEN_COMBINATION]["map"] > 0.6 > result["together"][SENTENCE]["map"]
    without = result["without"]
    assert without[CHOSEN_COMBINATION]["map"] > without["the first thing alone"]["map"]
    assert without[CHOSEN_COMBINATION]["unwanted"] < without["the first thing alone"]["unwanted"]
    COMBINATIONS.write(tmp_path, result)
    lines = COMBINATIONS.write_table(tmp_path).read_text().splitlines()
    assert len(lines) == 1 + len({*TOGETHER, *WITHOUT, SENTENCE})


def test_no_results(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="for_eval calibration"):
        CALIBRATION.write_table(tmp_path)
    with pytest.raises(UsageError, match="for_eval combinations"):
        COMBINATIONS.write_table(tmp_path)


def test_the_tables_that_come_with_for_are_made_of_their_results(tmp_path: Path) -> None:
    for study in (CALIBRATION, COMBINATIONS, REFINE, MARKS_NEEDED):
        shutil.copytree(study.folder(LEADERBOARDS), study.folder(tmp_path))
        made = study.write_table(tmp_path)
        assert made.read_bytes() == (LEADERBOARDS / made.name).read_bytes()


def test_the_packaged_numbers_are_those_of_the_committed_results() -> None:
    known = read_numbers()
    for path in CALIBRATION.folder(LEADERBOARDS).glob("*.json"):
        result = json.loads(path.read_text())
        if result["fitted_to"] is not None:
            numbers = result["rules"][CHOSEN_RULE]
            name = f"{result['method']['backbone']}/{result['method']['method']}"
            assert known[name].weights == pytest.approx(numbers["weights"], abs=1e-3)
            assert known[name].cutoff == pytest.approx(numbers["cutoff"], abs=1e-3)
