"""The paper's tables on a handful of scenes: made once, gone on with, compared with what is committed."""

import csv
import json
from pathlib import Path

import pytest

from for_eval import tables
from for_eval.__main__ import main
from for_eval.leaderboard import evaluate
from for_eval.store import open_store
from for_eval.tables import TABLES, Row, Table, measure, parse_tables, run_tables, write_table_csvs
from for_model.clip_method import build_method
from for_model.data.coco import load_coco
from for_model.data.miniscenes import write_scenes
from for_model.errors import DataError, UsageError

SMALL = {
    "main": Table(
        "small",
        ("method", "losses"),
        (Row(("CLIP", ""), "clip"), Row(("FOR", "both")), Row(("FOR", "labels"), settings=("loss.pse=0.0",))),
        seeds=2,
    ),
    "queries": Table("small", ("queries",), (Row(("3",), settings=("head.queries=3",)), Row(("4",)))),
}


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A world of 12 scenes to train on and 12 to score, a cache of its own, and the folder for results."""
    root = tmp_path / "scenes"
    write_scenes(root, {"train": 12, "val": 12}, size=96)
    config = tmp_path / "small.toml"
    config.write_text(
        f'image_size = 96\n[data]\ndataset = "coco"\nsplit = "train"\nroot = "{root}"\n'
        '[head]\nqueries = 4\nlayers = 1\nfeedforward = 32\n[pseudo_labels]\nvocabulary = "miniscenes"\nclusters = 4\n'
        "threshold = 0.2\n[optimizer]\nepochs = 1\n"
    )
    monkeypatch.setenv("FOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tables, "CONFIG", config)
    monkeypatch.setattr(tables, "TABLES", SMALL)
    monkeypatch.setattr(tables, "load_dataset", lambda name: load_coco(root, "val", name=name))
    return tmp_path / "out"


def rows(out: Path, name: str) -> list[dict[str, str]]:
    with (out / f"miniscenes-{name}.csv").open() as file:
        return list(csv.DictReader(file))


def test_rows_are_trained_scored_and_averaged(small: Path) -> None:
    verdicts = list(run_tables(["main"], small))
    assert [(v.row.label[0], v.row.label[1], v.seed, v.ok) for v in verdicts] == [
        ("CLIP", "", 0, None),
        ("FOR", "both", 0, None),
        ("FOR", "labels", 0, None),
        ("FOR", "both", 1, None),
        ("FOR", "labels", 1, None),
    ]
    clip, both, labels = rows(small, "main")
    assert (clip["seeds"], both["seeds"], labels["seeds"]) == ("1", "2", "2")
    assert clip["base std"] == ""
    results = [json.loads(path.read_text()) for path in sorted((small / "results" / "tables").glob("for_*.json"))]
    scores = [100 * result["scores"]["base"]["map"] for result in results]
    assert [result["seed"] for result in results] == [0, 1]
    assert float(both["base mAP@50"]) == pytest.approx(sum(scores) / 2, abs=0.006)
    assert float(both["base std"]) == pytest.approx(abs(scores[0] - scores[1]) / 2**0.5, abs=0.006)
    assert results[0]["training"]["config"]["head"]["queries"] == 4
    method = build_method("clip", image_size=None)
    store = next((small.parent / "cache" / "stores").glob("*_clip_*"))
    (own,) = evaluate(load_coco(small.parent / "scenes", "val"), open_store(store), method)
    assert float(clip["novel mAP@50"]) == pytest.approx(100 * own.scores["novel"]["map"], abs=0.006)


def test_what_is_done_is_not_done_again(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    list(run_tables(["main"], small, seeds=1))
    trained: list[str] = []
    original = tables.train.Training

    def counting(*arguments: object) -> object:
        trained.append(str(arguments[1]))
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(tables.train, "Training", counting)
    verdicts = list(run_tables(["main", "queries"], small, seeds=1))
    assert len(trained) == 1  # 3 queries; 4 is the main table's row
    assert [v.ok for v in verdicts] == [True, True, True, None, True]
    assert rows(small, "queries")[1]["base mAP@50"] == rows(small, "main")[1]["base mAP@50"]


def test_a_row_that_differs_fails_and_stays_until_it_is_accepted(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["tables", "--only", "main", "--seeds", "1", "--out", str(small)]
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("new ") == 3
    path = small / "results" / "tables" / "clip.json"
    right = path.read_bytes()
    wrong = json.loads(right)
    wrong["scores"]["novel"]["map"] += 0.0051
    path.write_text(json.dumps(wrong))
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out.count("OK ") == 2
    assert "FAIL  CLIP" in captured.out
    assert "novel 0.5 of 0.5" in captured.out
    assert "1 rows differ" in captured.err
    assert json.loads(path.read_bytes()) == wrong
    assert main([*arguments, "--accept"]) == 0
    assert path.read_bytes() == right
    assert main(arguments) == 0


def test_csvs_come_from_the_results_alone(small: Path) -> None:
    assert write_table_csvs(small) == []
    list(run_tables(["queries"], small))
    before = (small / "miniscenes-queries.csv").read_bytes()
    (path,) = write_table_csvs(small)[1:]
    assert path.name == "miniscenes-queries.csv"
    assert path.read_bytes() == before
    assert rows(small, "main")[0]["base mAP@50"] == ""  # not measured is empty
    damaged = next((small / "results" / "tables").iterdir())
    damaged.write_text("{")
    with pytest.raises(DataError, match="damaged"):
        write_table_csvs(small)


def test_a_table_averages_over_the_seeds_that_its_rows_share(small: Path) -> None:
    list(run_tables(["main"], small))  # two seeds of the row that both tables have
    list(run_tables(["queries"], small))
    three, four = rows(small, "queries")
    assert (three["seeds"], four["seeds"]) == ("1", "1")
    first = json.loads((small / "results" / "tables" / f"{SMALL['queries'].rows[1].key(0)}.json").read_text())
    assert float(four["base mAP@50"]) == pytest.approx(100 * first["scores"]["base"]["map"], abs=0.006)
    assert rows(small, "main")[1]["seeds"] == "2"


def test_a_changed_recipe_is_another_result(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = SMALL["main"].rows[1]
    first = measure(row, 0)
    key = row.key(0)
    monkeypatch.setattr(tables.train, "VERSION", 0)
    assert row.key(0) != key
    assert row.key(1) != row.key(0)
    assert measure(SMALL["queries"].rows[1], 0)["scores"] == first["scores"]


def test_every_row_of_every_table_can_be_made() -> None:
    for table in TABLES.values():
        for row in table.rows:
            assert len(row.label) == len(table.columns)
            if row.method is None:
                assert row.config(0).method in ("for", "for-sup", "for-pl", "ft-clip", "ft-dense-clip")
        keys = [row.key(0) for row in table.rows]
        assert len(keys) == len(set(keys))
    assert TABLES["main"].rows[-1].key(0) == TABLES["layers"].rows[2].key(0) == TABLES["queries"].rows[2].key(0)
    assert TABLES["main"].rows[-1].key(0) == TABLES["freezing"].rows[-1].key(0) == TABLES["labelled"].rows[-1].key(0)


def test_slips_are_said(small: Path) -> None:
    with pytest.raises(UsageError, match="main, queries"):
        parse_tables("mian")
    assert parse_tables("") == ["main", "queries"]
    with pytest.raises(UsageError, match="at least 1"):
        next(run_tables(["main"], small, seeds=0))
