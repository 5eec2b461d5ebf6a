"""The paper's tables on a handful of scenes: made once, gone on with, compared with what is committed."""

import csv
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from for_eval.__main__ import main
from for_eval.leaderboard import paper_tables as suites
from for_eval.leaderboard import run_tables as tables
from for_eval.leaderboard.evaluate import evaluate
from for_eval.leaderboard.paper_rows import PAPER, read_paper
from for_eval.leaderboard.paper_tables import SUITES, Row, Suite, Table, tables_command
from for_eval.leaderboard.results import read_ranked
from for_eval.leaderboard.run_tables import RowOutcome, find_data, measure, parse_tables, run_tables, write_table_csvs
from for_model.data.coco import load_coco
from for_model.data.dataset import Dataset
from for_model.data.miniscenes.scenes import write_scenes
from for_model.data.registry import load_dataset
from for_model.errors import DataError, UsageError
from for_model.methods.build import build_method
from for_model.methods.dual_encoders import COCA
from for_model.methods.hub_models import PUBLISHED
from for_model.methods.registry import METHODS, parse_method
from for_search.store.store import open_store

SMALL = {
    "main": Table(
        "small",
        (1,),
        ("method", "losses"),
        (Row(("CLIP", ""), "clip"), Row(("FOR", "both")), Row(("FOR", "labels"), settings=("loss.pse=0.0",))),
        seeds=2,
    ),
    "queries": Table("small", (6,), ("queries",), (Row(("3",), settings=("head.queries=3",)), Row(("4",)))),
}


@dataclass(frozen=True)
class World:
    """12 scenes to train on and 12 to score, a suite, and a folder with a cache of its own and one for results."""

    suite: Suite
    folder: Path

    @property
    def scenes(self) -> Path:
        return self.suite.config.parent / "scenes"

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def results(self) -> Path:
        return self.out / "results" / "tables" / "miniscenes"

    def run(self, *names: str, **options: Any) -> list[RowOutcome]:
        return list(run_tables(self.suite, names, self.out, *find_data(self.suite, None), **options))


def _suite(folder: Path) -> Suite:
    """Draw the scenes into a folder and write the recipe of its trainings beside them."""
    root = folder / "scenes"
    write_scenes(root, {"train": 12, "val": 12}, size=96)
    config = folder / "small.toml"
    config.write_text(
        f'image_size = 96\n[data]\ndataset = "coco"\nsplit = "train"\nroot = "{root}"\n'
        '[head]\nqueries = 4\nlayers = 1\nfeedforward = 32\n[pseudo_labels]\nvocabulary = "miniscenes"\nclusters = 4\n'
        "threshold = 0.2\n[optimizer]\nepochs = 1\n"
    )
    return Suite("miniscenes", "val", config, SMALL)


def _enter(world: World, patch: pytest.MonkeyPatch) -> World:
    """Let commands know the world's suite, its scenes as MiniScenes, and its cache."""

    def load(name: str, place: Path | None, split: str) -> Dataset:
        return load_coco(world.scenes, split, name=name) if name == "miniscenes" else load_dataset(name, place, split)

    patch.setattr(tables, "load_dataset", load)
    patch.setitem(SUITES, "miniscenes", world.suite)
    patch.setenv("FOR_CACHE", str(world.cache))
    return world


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, list[RowOutcome]]:
    """A world in which both tables were made, and what was said of the main one. Not to be changed: see `small`."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        world = _enter(World(_suite(folder), folder), patch)
        outcomes = world.run("main")
        world.run("queries")
    return world, outcomes


@pytest.fixture
def small(made: tuple[World, list[RowOutcome]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A copy of the world in which both tables were made: all rows are in its cache and committed."""
    world = _enter(World(made[0].suite, tmp_path), monkeypatch)
    shutil.copytree(made[0].cache, world.cache)
    shutil.copytree(made[0].out, world.out)
    return world


@pytest.fixture
def uncommitted(small: World) -> World:
    """The rows are in its cache, so that none has to be trained again, but nothing is committed."""
    shutil.rmtree(small.out)
    return small


@pytest.fixture
def new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Nothing was made yet, and the scenes may be changed."""
    return _enter(World(_suite(tmp_path), tmp_path), monkeypatch)


def rows(out: Path, name: str) -> list[dict[str, str]]:
    with (out / f"miniscenes-{name}.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("cache_gib", [0.0, 1.0], ids=["on the fly", "kept"])
def test_a_damaged_image_is_counted_whether_feature_maps_are_kept_or_not(new: World, cache_gib: float) -> None:
    with new.suite.config.open("a") as config:
        config.write(f"[features]\ncache_gib = {cache_gib}\n")
    root, dataset = find_data(new.suite, None)
    (dataset.image_root / dataset.images[4].path).write_bytes(b"no image")
    ((result, rankings),) = measure(new.suite, SMALL["main"].rows[0], 0, dataset, root).values()
    assert (result["n_images"], result["n_skipped"]) == (11, 1)
    assert result["skipped"][0]["id"] == dataset.images[4].id
    assert len(rankings.image_ids) == 11
    assert (result["images_per_second"] is None) == (cache_gib > 0)  # the time of kept feature maps says nothing


@pytest.mark.slow
def test_rows_are_trained_scored_and_averaged(made: tuple[World, list[RowOutcome]]) -> None:
    small, verdicts = made
    assert [(v.row.label[0], v.row.label[1], v.seed, v.ok) for v in verdicts] == [
        ("CLIP", "", 0, None),
        ("FOR", "both", 0, None),
        ("FOR", "labels", 0, None),
        ("FOR", "both", 1, None),
        ("FOR", "labels", 1, None),
    ]
    clip, both, labels = rows(small.out, "main")
    assert (clip["seeds"], both["seeds"], labels["seeds"]) == ("1", "2", "2")
    assert clip["base std"] == ""
    names = [f"{small.suite.key(SMALL['main'].rows[1], seed)}.json" for seed in (0, 1)]
    results = [json.loads((small.results / name).read_text()) for name in names]
    scores = [100 * result["scores"]["base"]["map"] for result in results]
    assert [result["seed"] for result in results] == [0, 1]
    assert float(both["base mAP@50"]) == pytest.approx(sum(scores) / 2, abs=0.006)
    assert float(both["base std"]) == pytest.approx(abs(scores[0] - scores[1]) / 2**0.5, abs=0.006)
    assert results[0]["training"]["config"]["head"]["queries"] == 4
    method = build_method("clip", image_size=None)
    store = next((small.cache / "stores").glob("*_clip_*"))
    (own,) = evaluate(load_coco(small.scenes, "val"), open_store(store), method)
    assert float(clip["novel mAP@50"]) == pytest.approx(100 * own.scores["novel"]["map"], abs=0.006)


@pytest.mark.slow
def test_what_is_done_is_not_done_again(uncommitted: World, monkeypatch: pytest.MonkeyPatch) -> None:
    key = uncommitted.suite.key(SMALL["queries"].rows[0], 0)
    shutil.rmtree(uncommitted.cache / "runs" / "miniscenes" / key)
    for path in (uncommitted.cache / "tables" / "miniscenes").glob(f"{key}*"):
        path.unlink()
    uncommitted.run("main", seeds=1)
    trained: list[str] = []
    original = tables.train.Training

    def counting(*arguments: object) -> object:
        trained.append(str(arguments[1]))
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(tables.train, "Training", counting)
    verdicts = uncommitted.run("main", "queries", seeds=1)
    assert len(trained) == 1  # 3 queries; 4 is the main table's row
    assert [v.ok for v in verdicts] == [True, True, True, None, True]
    assert rows(uncommitted.out, "queries")[1]["base mAP@50"] == rows(uncommitted.out, "main")[1]["base mAP@50"]


@pytest.mark.slow
def test_a_row_that_differs_fails_and_stays_until_it_is_accepted(
    uncommitted: World, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["tables", "--dataset", "miniscenes", "--only", "main", "--seeds", "1", "--out", str(uncommitted.out)]
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("new ") == 3
    path = uncommitted.results / "clip.json"
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


@pytest.mark.slow
def test_rows_keep_their_rankings_and_can_be_compared(small: World, capsys: pytest.CaptureFixture[str]) -> None:
    three, four = (small.results / f"{small.suite.key(row, 0)}.json" for row in SMALL["queries"].rows)
    result, rankings = read_ranked(three)
    assert len(rankings.image_ids) == result["n_images"] == 12
    cached = read_ranked(small.cache / "tables" / "miniscenes" / three.name)
    assert cached[0] == result
    assert np.array_equal(cached[1].order, rankings.order)
    assert main(["compare", str(three), str(four), "--resamples", "20"]) == 0
    printed = capsys.readouterr().out
    assert f"{100 * result['scores']['all']['map']:.2f}" in printed


def without_rankings(path: Path) -> dict[str, Any]:
    """Make a result what it was before results had rankings."""
    result = json.loads(path.read_text())
    del result["rankings"]
    path.write_text(json.dumps(result))
    path.with_suffix(".npz").unlink()
    return result


@pytest.mark.slow
def test_an_earlier_row_without_rankings_is_scored_again_but_not_trained(
    small: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{small.suite.key(SMALL['queries'].rows[0], 0)}.json"
    cached, committed = small.cache / "tables" / "miniscenes" / name, small.results / name
    right = read_ranked(committed)[0]
    old = without_rankings(cached), without_rankings(committed)
    scored: list[str] = []
    original = tables.run_method
    monkeypatch.setattr(
        tables, "run_method", lambda *given, **more: scored.append(given[1].info.method) or original(*given, **more)
    )
    monkeypatch.setattr(tables.train, "Training", None)
    assert [verdict.ok for verdict in small.run("queries")] == [True, True]
    assert scored == ["for"]  # the other row has its rankings
    assert read_ranked(cached)[0]["scores"] == right["scores"]
    assert json.loads(committed.read_text()) == old[1]  # committed ones stay
    assert [verdict.ok for verdict in small.run("queries", accept=True)] == [True, True]
    assert len(scored) == 1
    assert read_ranked(committed)[0]["scores"] == right["scores"]
    cached.with_suffix(".npz").write_bytes(b"damaged")
    small.run("queries")
    assert len(scored) == 2
    read_ranked(cached)


@pytest.mark.slow
def test_comparing_a_row_without_rankings_says_what_makes_it_again(
    small: World, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, three = small.results / "clip.json", small.results / f"{small.suite.key(SMALL['queries'].rows[0], 0)}.json"
    for path, table in ((clip, "main"), (three, "queries")):
        without_rankings(path)
        assert main(["compare", str(path), str(path)]) == 2
        command = f"python -m for_eval tables --dataset miniscenes --only {table} --accept"
        error = capsys.readouterr().err
        assert error == f"error: {path} has no rankings beside it: `{command}` makes it again with them\n"
    assert main([*command.split()[3:], "--out", str(small.out)]) == 0
    assert main(["compare", str(three), str(three), "--resamples", "5"]) == 0


@pytest.mark.slow
def test_every_committed_row_names_the_table_that_makes_it_again() -> None:
    paths = sorted((PAPER.parent / "results" / "tables").glob("*/*.json"))
    assert len(paths) > 40
    for path in paths:
        command = tables_command(path.parent.name, path.stem)
        arguments = command.removeprefix("python -m for_eval tables ").split()
        assert arguments[:2] == ["--dataset", path.parent.name]
        assert arguments[2] == "--only"
        assert arguments[3] in SUITES[path.parent.name].tables
    for suite in SUITES.values():
        names = {
            suite.result_name(row, 2, each) for t in suite.tables.values() for row in t.rows for each in suite.protocols
        }
        assert all("--only" in tables_command(suite.dataset, name) for name in names)
    assert (
        tables_command("miniscenes", "for_0000000000_seed0")
        == "python -m for_eval tables --dataset miniscenes --accept"
    )
    assert tables_command("flowers", "clip") == "python -m for_eval tables --accept"


@pytest.mark.slow
def test_csvs_come_from_the_results_alone(uncommitted: World) -> None:
    assert write_table_csvs(uncommitted.out) == []
    uncommitted.run("queries")
    before = (uncommitted.out / "miniscenes-queries.csv").read_bytes()
    (path,) = write_table_csvs(uncommitted.out)[1:]
    assert path.name == "miniscenes-queries.csv"
    assert path.read_bytes() == before
    assert rows(uncommitted.out, "main")[0]["base mAP@50"] == ""  # not measured is empty
    damaged = next(uncommitted.results.glob("*.json"))
    damaged.write_text("{")
    with pytest.raises(DataError, match="is no JSON result"):
        write_table_csvs(uncommitted.out)


@pytest.mark.slow
def test_a_table_averages_over_the_seeds_that_its_rows_share(uncommitted: World) -> None:
    uncommitted.run("main")  # two seeds of the row that both tables have
    uncommitted.run("queries")
    three, four = rows(uncommitted.out, "queries")
    assert (three["seeds"], four["seeds"]) == ("1", "1")
    first = json.loads((uncommitted.results / f"{uncommitted.suite.key(SMALL['queries'].rows[1], 0)}.json").read_text())
    assert float(four["base mAP@50"]) == pytest.approx(100 * first["scores"]["base"]["map"], abs=0.006)
    assert rows(uncommitted.out, "main")[1]["seeds"] == "2"


@pytest.mark.slow
def test_a_changed_recipe_is_another_result(small: World, monkeypatch: pytest.MonkeyPatch) -> None:
    row, same = SMALL["main"].rows[1], SMALL["queries"].rows[1]
    _, dataset = find_data(small.suite, None)
    first = measure(small.suite, row, 0, dataset)
    key = small.suite.key(row, 0)
    monkeypatch.setattr(suites, "VERSION", 0)
    assert small.suite.key(row, 0) != key
    assert small.suite.key(row, 1) != small.suite.key(row, 0)
    assert measure(small.suite, same, 0, dataset)["all"][0]["scores"] == first["all"][0]["scores"]


@pytest.mark.parametrize("suite", SUITES.values(), ids=list(SUITES))
def test_every_row_of_every_table_can_be_made(suite: Suite) -> None:
    for table in suite.tables.values():
        for row in table.rows:
            assert len(row.label) == len(table.columns)
            if row.method is None:
                assert METHODS[suite.training(row, 0).method].trained
            elif row.backbone is None:
                parse_method(row.method)
        keys = [suite.key(row, 0) for row in table.rows]
        assert len(keys) == len(set(keys))
    default = suite.key(Row(()), 0)
    trained = [table for name, table in suite.tables.items() if name != "baselines" and table.paper]
    assert all(default in [suite.key(row, 0) for row in table.rows] for table in trained)
    training = suite.training(Row(()), 0, Path("/data"))
    assert (training.data.dataset, training.data.root) == (suite.dataset, "/data")


def test_the_help_names_every_dataset_and_table(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["tables", "--help"])
    words = "".join(capsys.readouterr().out.split())
    names = dict.fromkeys(name for suite in SUITES.values() for name in suite.tables)
    assert f"someof{','.join(SUITES)}(all)" in words
    ((_, listed),) = [part.split("someof") for part in words.split("--onlyNAMES")[2:]]
    assert set(listed.partition("(all)")[0].split(",")) == set(names)


def test_embeddings_an_image_are_those_of_the_backbone() -> None:
    """The second label of the main tables, which the paper has too: K cells at the image size of the config."""
    for suite in (suite for suite in SUITES.values() if "main" in suite.tables):
        dense = next(row for row in suite.tables["main"].rows if row.method == "dense-clip")
        size = suite.training(dense, 0).image_size or 160  # RN-mini's own
        assert dense.label[1] == str((size // 32) ** 2)
        for row in suite.tables["main"].rows:
            if row.method is not None and ":" in row.method:
                assert row.label[1] == row.method.partition(":")[2]
            elif row.label[0] == "FOR":
                assert row.label[1] == str(suite.training(row, 0).head.queries)


def test_baselines_are_published_models_with_as_many_embeddings_as_the_paper_says() -> None:
    for row in SUITES["coco"].tables["baselines"].rows:
        if row.method in PUBLISHED:
            vision = PUBLISHED[row.method][str(row.backbone)]["vision_config"]
            assert row.method == "blip2" or row.label[2] == str((vision["image_size"] // vision["patch_size"]) ** 2)
        else:
            assert row.backbone == COCA
    told = {row["embeddings an image"] for row in read_paper() if row["method"].lower().startswith("owl")}
    assert told == {row.label[2] for row in SUITES["coco"].tables["baselines"].rows if "OWL" in row.label[0]}


@pytest.mark.slow
def test_datasets_without_data_are_left_out_and_named(uncommitted: World, capsys: pytest.CaptureFixture[str]) -> None:
    (uncommitted.folder / "data" / "coco").mkdir(parents=True)
    data = str(uncommitted.folder / "data")
    assert main(["tables", "--data", data, "--only", "main", "--seeds", "1", "--out", str(uncommitted.out)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == ["miniscenes"] * 3 + [
        "flickr8k",
        "coco",
        "coco2014",
        "lvis",
        "nuimages",
    ]
    assert "coco       left out: " in printed[4]
    assert "instances_val2017.json doesn't exist" in printed[4]
    assert f"{data}/coco/lvis_v1_val.json doesn't exist" in printed[6]  # it may lie in COCO's folder
    assert f"`python -m for_eval fetch nuimages --root {data}/nuimages`" in printed[7]
    assert all(path.name.startswith("miniscenes-") for path in uncommitted.out.glob("*.csv"))
    assert main(["tables", "--dataset", "lvis", "--data", data]) == 2
    assert main(["tables", "--dataset", "lvis"]) == 2
    assert "no folder of datasets was given" in capsys.readouterr().err


@pytest.mark.slow
def test_both_protocols_of_a_suite_are_rows(new: World, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = replace(new.suite, protocols=("all", "federated"))
    monkeypatch.setitem(SUITES, "miniscenes", suite)
    scenes = load_coco(new.scenes, "val", name="miniscenes")
    some = {image.id: frozenset(range(5)) for image in scenes.images}
    federated = replace(scenes, negatives={key: found - scenes.labels[key] for key, found in some.items()})
    verdicts = list(run_tables(suite, ["queries"], new.out, None, federated, seeds=1))
    assert "all: base" in verdicts[0].line
    assert "federated: base" in verdicts[0].line
    found = rows(new.out, "queries")
    assert [(row["queries"], row["protocol"]) for row in found] == [
        ("3", "all"),
        ("3", "federated"),
        ("4", "all"),
        ("4", "federated"),
    ]
    assert found[0]["base mAP@50"] != found[1]["base mAP@50"]
    assert [verdict.ok for verdict in run_tables(suite, ["queries"], new.out, None, federated, seeds=1)] == [
        True,
        True,
    ]


@pytest.mark.slow
def test_slips_are_said(small: World) -> None:
    suites = [small.suite]
    with pytest.raises(UsageError, match="main, queries"):
        parse_tables(suites, "mian")
    assert parse_tables(suites, "") == ["main", "queries"]
    with pytest.raises(UsageError, match="at least 1"):
        small.run("main", seeds=0)
    assert main(["tables", "--dataset", "cocoa"]) == 2
