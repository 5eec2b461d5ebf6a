"""The harness end to end, as commands: a dataset on disk -> stores -> JSON results -> CSV, and search over an index."""

import argparse
import csv
import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from for_eval import commands as eval_commands
from for_eval.__main__ import main
from for_eval.leaderboard.columns import to_csv
from for_eval.leaderboard.evaluate import K, commit_of, evaluate, run_method
from for_eval.leaderboard.results import summary, write_tables
from for_eval.metrics import bootstrap, kept_rankings, retrieval
from for_eval.metrics.kept_rankings import read_rankings
from for_eval.metrics.retrieval import retrieval_scores
from for_eval.metrics.score_matrix import score_matrix
from for_model.data.coco import load_coco
from for_model.data.miniscenes.scenes import write_scenes
from for_model.data.registry import load_dataset
from for_model.errors import DataError, UsageError
from for_model.methods.build import build_method
from for_model.text import embed_categories
from for_search.__main__ import main as search_main
from for_search.query.ranking import UNRANKED, average_precision_at_k
from for_search.store.store import open_store, store_path
from tests.helpers.paths import SHARED


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root, {"val": 40}, size=96)
    (root / "val" / "000000000003.jpg").write_bytes(b"")  # so that a skip has to show
    return root


def arguments(scenes: Path, out: Path, methods: str = "clip,cluster-clip:4") -> list[str]:
    return [
        *("leaderboard", "--dataset", "coco", "--root", str(scenes), "--split", "val", "--weights", "random"),
        *("--methods", methods, "--out", str(out), "--stores", str(out / "stores")),
    ]


@pytest.fixture(scope="module")
def board(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("board")
    assert main(arguments(scenes, out)) == 0
    return out


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "coco.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_row_says_what_ran_and_what_was_skipped(board: Path) -> None:
    clip, cluster = rows(board)
    assert [r["method"] for r in (clip, cluster)] == ["clip", "cluster-clip"]
    assert clip["weights"] == cluster["weights"] == "random"
    assert (clip["images"], clip["skipped"]) == ("39", "1")
    assert (clip["embeddings an image"], cluster["embeddings an image"]) == ("1", "4")
    assert int(cluster["bytes an image"]) == 4 * int(clip["bytes an image"])
    assert float(clip["images a second"]) > 0
    result = json.loads(next((board / "results").glob("*_clip-1.json")).read_text())
    assert result["skipped"][0]["reason"] == "empty file"
    assert result["versions"]["torch"]


def test_the_commit_is_that_of_the_checkout_that_ran(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        done = subprocess.run(["git", *who, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    module, other = tmp_path / "package" / "module.py", tmp_path / "other" / "module.py"
    installed = tmp_path / ".venv" / "module.py"
    for path in (module, other, installed, tmp_path / "leaderboards" / "table.json"):
        path.parent.mkdir()
        path.write_text("1")
    assert commit_of(module) is None
    git("init", "-q")
    git("add", "package", "other", "leaderboards")
    git("commit", "-qm", "one")
    commit = git("rev-parse", "--short=12", "HEAD")
    assert commit_of(module) == commit
    assert commit_of(installed) is None  # FOR installed within the checkout of something else
    (tmp_path / "leaderboards" / "table.json").write_text("2")
    assert commit_of(module) == commit
    other.write_text("2")
    assert commit_of(module) == f"{commit}+changes"


def test_scores_are_the_metrics_of_the_store(board: Path, scenes: Path) -> None:
    dataset, method = load_coco(scenes, "val"), build_method("clip", weights="random")
    store = open_store(store_path(dataset, method.info, board / "stores"))
    names = [c.name for c in dataset.categories]
    relevance = dataset.relevance(store.ids)
    scores = retrieval_scores(score_matrix(store, embed_categories(method, names)), relevance, K)
    for group in ("base", "novel"):
        ap = [scores.ap[i] for i, c in enumerate(dataset.categories) if c.group == group and relevance[i].any()]
        assert float(rows(board)[0][f"{group} mAP@50"]) == pytest.approx(100 * np.mean(ap), abs=0.006)
    low, point, high = (float(rows(board)[0][f"all {c}"]) for c in ("low", "mAP@50", "high"))
    assert low <= point <= high
    assert low < high


def test_the_images_are_ranked_once(scenes: Path, board: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, method = load_coco(scenes, "val"), build_method("clip", weights="random")
    ranked: list[int] = []
    original = kept_rankings.top_k

    def counting(scores: Any, k: int, known: Any = None) -> Any:
        if len(scores) > 1:  # the bootstrap may rank a category alone, and deeper
            ranked.append(k)
        return original(scores, k, known)

    for module in (kept_rankings, retrieval, bootstrap):
        monkeypatch.setattr(module, "top_k", counting)
    evaluate(dataset, open_store(store_path(dataset, method.info, board / "stores")), method)
    assert ranked == [4 * K]


def test_a_result_says_each_categorys_score_and_has_its_rankings_beside_it(board: Path, scenes: Path) -> None:
    path = next((board / "results").glob("*_clip-1.json"))
    result = json.loads(path.read_text())
    for group in ("base", "novel"):
        ap = [c["ap"] for c in result["per_category"] if c["group"] == group and c["ap"] is not None]
        assert result["scores"][group]["map"] == pytest.approx(np.mean(ap))
    assert all((c["ap"] is None) == (c["n_relevant"] == 0) for c in result["per_category"])
    sidecar = path.with_suffix(".npz")
    assert result["rankings"] == {"file": sidecar.name, "sha256": hashlib.sha256(sidecar.read_bytes()).hexdigest()}
    rankings = read_rankings(sidecar)
    assert rankings.image_ids == tuple(i for i in range(1, 41) if i != 3)
    assert [int(n) for n in rankings.relevant.sum(axis=1)] == [c["n_relevant"] for c in result["per_category"]]
    hits = np.take_along_axis(rankings.relevant, rankings.order[:, :K], axis=1)
    ap = average_precision_at_k(hits, rankings.relevant.sum(axis=1), K)
    assert list(np.where(np.isnan(ap), -1, ap)) == pytest.approx(
        [-1 if c["ap"] is None else c["ap"] for c in result["per_category"]]
    )


def test_tables_come_from_the_results_alone_to_the_byte(board: Path, tmp_path: Path) -> None:
    shutil.copytree(board / "results", tmp_path / "results")
    assert main(["table", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "coco.csv").read_bytes() == (board / "coco.csv").read_bytes()


def test_a_second_run_gives_the_same_table(board: Path, scenes: Path) -> None:
    before = (board / "coco.csv").read_bytes()
    assert main(arguments(scenes, board)) == 0
    assert (board / "coco.csv").read_bytes() == before


def test_what_was_not_measured_is_empty(board: Path, tmp_path: Path) -> None:
    result = json.loads(next((board / "results").glob("*.json")).read_text())
    result["scores"]["novel"]["map"] = None
    del result["images_per_second"]
    row = next(csv.DictReader(to_csv([result]).splitlines()))
    assert row["novel mAP@50"] == row["images a second"] == ""
    assert row["base mAP@50"] != ""
    assert "None" not in summary([result])
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "a.json").write_text(json.dumps(result))
    assert write_tables(tmp_path) == [tmp_path / "coco.csv"]


def test_no_results_and_damaged_results_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no results"):
        write_tables(tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "a.json").write_text("{")
    with pytest.raises(DataError, match=r"a\.json"):
        write_tables(tmp_path)


def test_a_dataset_without_labels_has_no_scores(scenes: Path, tmp_path: Path) -> None:
    from for_model.data.folder import load_folder

    method = build_method("clip", weights="random")
    with pytest.raises(DataError, match="no labelled categories"):
        run_method(load_folder(scenes / "val"), method, "cpu", tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"--methods": "clip,nonsense"}, "nonsense"),
        ({"--methods": ","}, "--methods is empty"),
        ({"--root": "/nowhere"}, "/nowhere"),
        ({"--split": "val2042"}, "instances_val2042.json"),
        ({"--dataset": "imagenet"}, "imagenet"),
        ({"--weights": "/no/file.safetensors"}, "file.safetensors"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_2(
    changes: dict[str, str], said: str, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(scenes, tmp_path)
    for option, value in changes.items():
        given[given.index(option) + 1] = value
    assert main(given) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_from_a_folder_to_a_search(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, index = tmp_path / "store", tmp_path / "index"
    folder = ("--dataset", "folder", "--root", str(scenes / "val"), "--weights", "random")
    assert search_main(["embed", *folder, "--method", "dense-clip", "--out", str(store)]) == 0
    assert "39 images, 1 skipped" in capsys.readouterr().out
    assert search_main(["index", str(store), "--out", str(index)]) == 0
    capsys.readouterr()
    assert search_main(["search", str(index), "a dog", "-k", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [hit["rank"] for hit in found["hits"]] == [1, 2, 3]
    assert len({hit["id"] for hit in found["hits"]}) == 3
    assert search_main(["search", str(index), "a dog", "-k", "3"]) == 0
    printed = capsys.readouterr().out
    places = [printed.index(hit["path"]) for hit in found["hits"]]
    assert places == sorted(places)
    assert search_main(["search", str(tmp_path), "a dog"]) == 2


def test_help_of_every_command_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    for package, run, commands in (
        ("for_search", search_main, ("embed", "index", "search")),
        ("for_eval", main, ("leaderboard", "tables", "table", "compare", "fetch", "classes")),
    ):
        for command in commands:
            with pytest.raises(SystemExit, match="0"):
                run([command, "--help"])
            assert f"usage: python -m {package} {command}" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data")
def test_real_photos_through_rn50_with_random_weights(tmp_path: Path) -> None:
    root, out = tmp_path / "coco", tmp_path / "board"
    whole = json.loads((SHARED / "coco-tiny" / "annotations" / "instances_val2017.json").read_text())
    images = whole["images"][:12]
    ids = {image["id"] for image in images}
    annotations = [each for each in whole["annotations"] if each["image_id"] in ids]
    (root / "annotations").mkdir(parents=True)
    (root / "val2017").symlink_to(SHARED / "coco-tiny" / "val2017")
    some = {**whole, "images": images, "annotations": annotations}
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(some))
    given = arguments(root, out, "clip,dense-clip,cluster-clip")
    given[given.index("val")] = "val2017"
    assert main([*given, "--backbone", "RN50", "--image-size", "96"]) == 0  # a fifth of the pixels, all of the way
    assert [(r["method"], r["weights"], r["backbone"], r["images"]) for r in rows(out)] == [
        (method, "random", "RN50", "12") for method in ("clip", "dense-clip", "cluster-clip")
    ]


def test_methods_without_a_trained_head_share_a_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[tuple[str, Any]] = []

    def method_of(arguments: Any, name: str, loaded: Any) -> Any:
        built.append((name, loaded))
        return SimpleNamespace(backbone=f"of {name}")

    monkeypatch.setattr(eval_commands, "method_of", method_of)
    names = ["clip", "for+", "dense-clip", "a/head.safetensors", "cluster-clip:4"]
    assert len(list(eval_commands._built(argparse.Namespace(), names))) == 5
    assert [loaded for _, loaded in built] == [None, None, "of clip", None, "of dense-clip"]


def test_missing_images_stop_a_leaderboard(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "half"
    shutil.copytree(scenes, root)
    for file in sorted((root / "val").iterdir())[1::2]:
        file.unlink()
    assert main(arguments(root, tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert "20 of the 40 images of coco val are not under" in error
    assert error.strip().count("\n") == 0
    assert main([*arguments(root, tmp_path / "out", "clip"), "--allow-missing"]) == 0
    assert rows(tmp_path / "out")[0]["skipped"] == "21"  # with the empty file


def federated_root(root: Path) -> Path:
    """Twelve noise pictures and LVIS annotations of three categories; of half the pairs nothing is known."""
    rng = np.random.default_rng(0)
    (root / "val2017").mkdir(parents=True)
    images, annotations = [], []
    for key in range(1, 13):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(root / "val2017" / f"{key}.png")
        state = rng.integers(0, 4, 3)  # 0 present, 1 known to be absent, else unknown
        images.append(
            {
                "id": key,
                "coco_url": f"http://images.cocodataset.org/val2017/{key}.png",
                "neg_category_ids": [c + 1 for c in range(3) if state[c] == 1],
            }
        )
        annotations += [
            {"id": len(annotations) + n, "image_id": key, "category_id": int(c) + 1}
            for n, c in enumerate(np.flatnonzero(state == 0))
        ]
    names = ("dog", "street_sign", "bow_(weapon)")
    categories = [{"id": n + 1, "name": name, "frequency": "fcr"[n]} for n, name in enumerate(names)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "lvis_v1_val.json").write_text(json.dumps(content))
    return root


def test_lvis_is_scored_in_both_protocols(tmp_path: Path) -> None:
    root, out = federated_root(tmp_path / "lvis"), tmp_path / "board"
    assert main(["leaderboard", "--dataset", "lvis", "--root", str(root), "--methods", "clip", "--out", str(out)]) == 0
    with (out / "lvis.csv").open() as file:
        every, federated = csv.DictReader(file)
    assert (every["protocol"], federated["protocol"]) == ("all", "federated")
    # by hand: each category's images in order of score, those of which nothing is known left out of one protocol
    dataset = load_dataset("lvis", root)
    method = build_method("clip", device="cpu")
    store = open_store(store_path(dataset, method.info))
    scores = score_matrix(store, embed_categories(method, [category.name for category in dataset.categories]))
    content = json.loads((root / "lvis_v1_val.json").read_text())
    for row, only_known in ((every, False), (federated, True)):
        found = []
        for number, category in enumerate(content["categories"]):
            present = {a["image_id"] for a in content["annotations"] if a["category_id"] == category["id"]}
            absent = {i["id"] for i in content["images"] if category["id"] in i["neg_category_ids"]}
            ranked = [int(store.ids[n]) for n in np.argsort(-scores[number], kind="stable")]
            ranked = [key for key in ranked if not only_known or key in present | absent]
            hits, total = 0, 0.0
            for rank, key in enumerate(ranked, start=1):
                hits += key in present
                total += hits / rank * (key in present)
            found.append(100 * total / len(present))
        assert float(row["base mAP@50"]) == pytest.approx(np.mean(found[:2]), abs=0.006)
        assert float(row["novel mAP@50"]) == pytest.approx(found[2], abs=0.006)
    assert every["base mAP@50"] != federated["base mAP@50"]


REAL_LVIS = SHARED / "lvis" / "lvis_val_100.json"


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif(not REAL_LVIS.exists(), reason="no real annotations")
def test_real_lvis_annotations_and_embeddings_of_random_weights(tmp_path: Path) -> None:
    """What was ranked against the JSON read directly: the relevance, and that `federated` ranks nothing unknown."""
    root, out = tmp_path / "lvis", tmp_path / "board"
    (root / "val2017").mkdir(parents=True)
    shutil.copy(REAL_LVIS, root / "lvis_v0.5_val.json")
    content = json.loads(REAL_LVIS.read_text())
    rng = np.random.default_rng(0)
    for image in content["images"]:
        noise = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(root / "val2017" / image["coco_url"].split("/")[-1])
    command = ["leaderboard", "--dataset", "lvis", "--root", str(root), "--methods", "cluster-clip:4"]
    assert main([*command, "--weights", "random", "--out", str(out)]) == 0
    present, absent = set(), set()
    for annotation in content["annotations"]:
        present.add((annotation["category_id"], annotation["image_id"]))
    for image in content["images"]:
        absent |= {(key, image["id"]) for key in image["neg_category_ids"]}
    keys = sorted(category["id"] for category in content["categories"])
    every, federated = (
        read_rankings(next((out / "results").glob(f"lvis-v0.5_val_{place}*.npz"))) for place in ("RN", "federated")
    )
    ids = every.image_ids
    assert ids == federated.image_ids == tuple(sorted(image["id"] for image in content["images"]))
    for rankings in (every, federated):
        assert {(keys[c], ids[m]) for c, m in np.argwhere(rankings.relevance)} == present
    ranked = {(keys[c], ids[m]) for c, row in enumerate(federated.order) for m in row if m != UNRANKED}
    assert ranked == present | absent
    assert (every.order != UNRANKED).all()
    result = json.loads(next((out / "results").glob("lvis-v0.5_val_federated*.json")).read_text())
    counts = {category["name"]: category["n_relevant"] for category in result["per_category"]}
    for category in content["categories"]:
        assert counts[category["name"].replace("_", " ")] == sum(key == category["id"] for key, _ in present)
