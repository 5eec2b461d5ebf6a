"""Labelling images: by hand, against plain loops and scikit-learn, and from a COCO 2014 folder to the table."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score

from for_eval.__main__ import main
from for_eval.leaderboard.paper_rows import read_paper, with_paper
from for_eval.metrics.multi_label import MultiLabelScores, multilabel_scores, zero_shot_scores
from for_eval.metrics.score_matrix import score_matrix
from for_model.data.coco import COCO_OVD_BASE, COCO_OVD_NOVEL
from for_model.data.registry import load_dataset
from for_model.errors import DataError, UsageError
from for_model.methods.build import build_method
from for_model.text import embed_categories
from for_search.store.store import open_store, store_path
from tests.helpers.slow_metrics import random_case

OTHERS = (
    *("traffic light", "fire hydrant", "stop sign", "parking meter", "sports ball", "baseball bat", "baseball glove"),
    *("tennis racket", "wine glass", "hot dog", "potted plant", "dining table", "cell phone", "teddy bear"),
    "hair drier",
)
NOVEL_2014 = (  # typed from the end of the alphabet backwards
    *("zebra", "wine glass", "vase", "umbrella", "tv", "truck", "train", "traffic light", "toothbrush", "toilet"),
    *("toaster", "tie", "tennis racket", "teddy bear", "surfboard"),
)


def slow_scores(scores, relevance, k):
    """(f1, precision, recall, map, images, labels) by counting, image by image and label by label."""
    n_labels, n_images = scores.shape
    images = [m for m in range(n_images) if any(relevance[c][m] for c in range(n_labels))]
    right = predicted = present = 0
    for m in images:
        chosen = sorted(range(n_labels), key=lambda c: (-scores[c][m], c))[:k]
        predicted += len(chosen)
        right += sum(1 for c in chosen if relevance[c][m])
        present += sum(1 for c in range(n_labels) if relevance[c][m])
    found = []
    for c in range(n_labels):
        hits, total = 0, 0.0
        for rank, m in enumerate(sorted(images, key=lambda m: (-scores[c][m], m)), start=1):
            if relevance[c][m]:
                hits += 1
                total += hits / rank
        if hits:
            found.append(total / hits)
    precision, recall = right / predicted, right / present
    f1 = 0.0 if right == 0 else 2 / (1 / precision + 1 / recall)
    return f1, precision, recall, sum(found) / len(found), len(images), len(found)


def as_tuple(found):
    return found.f1, found.precision, found.recall, found.map, found.n_images, found.n_categories


def test_golden():
    # Image 0 has labels 0 and 1, its best two are 0 and 2; image 1 has 2, best 2 and 1; image 2 has none.
    scores = np.array([[0.9, 0.1, 0.8], [0.1, 0.5, 0.3], [0.5, 0.7, 0.9]])
    relevance = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0]], dtype=bool)
    found = multilabel_scores(scores, relevance, k=2)
    # two of four predictions are right, two of three labels found; label 0 ranks 0 1, label 1 ranks 1 0, label 2 1 0
    assert found.precision == pytest.approx(2 / 4)
    assert found.recall == pytest.approx(2 / 3)
    assert found.f1 == pytest.approx(4 / 7)
    assert found.map == pytest.approx((1 + 1 / 2 + 1) / 3)
    assert (found.n_images, found.n_categories) == (2, 3)


@pytest.mark.parametrize("levels", [None, 3])
@pytest.mark.parametrize("k", [1, 3, 7, 20])
@pytest.mark.parametrize("density", [0.03, 0.4])
def test_is_the_slow_oracle(k, levels, density):
    scores, relevance = random_case(k, n_images=60, density=density, levels=levels)
    relevance[2] = False
    found = as_tuple(multilabel_scores(scores, relevance, k))
    assert found == pytest.approx(slow_scores(scores, relevance, k), rel=1e-12)


def test_map_is_scikit_learns():
    scores, relevance = random_case(1, n_categories=12, n_images=300, density=0.05)
    kept = relevance.any(axis=0)
    expected = [average_precision_score(y[kept], s[kept]) for y, s in zip(relevance, scores, strict=True)]
    assert multilabel_scores(scores, relevance).map == pytest.approx(np.mean(expected), rel=1e-12)


def test_the_two_settings_rank_their_own_labels_over_their_own_images():
    scores, relevance = random_case(2, n_images=80, density=0.05)
    novel = np.arange(7) >= 5
    found = zero_shot_scores(scores, relevance, novel, 3)
    assert as_tuple(found["gzsl"]) == pytest.approx(slow_scores(scores, relevance, 3))
    assert as_tuple(found["zsl"]) == pytest.approx(slow_scores(scores[5:], relevance[5:], 3))
    assert found["zsl"].n_images == int(relevance[5:].any(axis=0).sum()) < found["gzsl"].n_images < 80


def test_edges():
    relevance = np.zeros((3, 4), dtype=bool)
    scores = np.random.default_rng(0).random((3, 4))
    nothing = MultiLabelScores(None, None, None, None, 0, 0)
    assert multilabel_scores(scores, relevance) == nothing
    assert multilabel_scores(np.zeros((0, 4)), np.zeros((0, 4), dtype=bool)) == nothing
    assert multilabel_scores(np.zeros((3, 0)), np.zeros((3, 0), dtype=bool)) == nothing
    assert zero_shot_scores(scores, ~relevance, np.zeros(3, dtype=bool))["zsl"] == nothing
    relevance[2] = True  # equal scores: the first labels are predicted, and the third is not among them
    assert multilabel_scores(np.ones((3, 4)), relevance, k=2).f1 == 0.0
    assert multilabel_scores(relevance.astype(float), relevance, k=1).f1 == 1.0
    with pytest.raises(UsageError, match="k is 0"):
        multilabel_scores(scores, relevance, k=0)
    with pytest.raises(UsageError, match="relevance has shape"):
        multilabel_scores(scores, relevance[:2])
    with pytest.raises(UsageError, match="novel has shape"):
        zero_shot_scores(scores, relevance, np.ones(2, dtype=bool))


def coco_2014(root: Path, names=(*COCO_OVD_BASE, *COCO_OVD_NOVEL, *OTHERS), n_images: int = 14) -> Path:
    """Noise pictures with one to four labels each, but for the last two: one has a base label alone, one has none."""
    rng = np.random.default_rng(0)
    (root / "val2014").mkdir(parents=True)
    (root / "annotations").mkdir()
    images, annotations = [], []
    for key in range(1, n_images + 1):
        file = f"COCO_val2014_{key:012d}.jpg"
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(root / "val2014" / file)
        images.append({"id": key, "file_name": file, "height": 64, "width": 64})
        labels = rng.choice(len(names), rng.integers(1, 5), replace=False)
        labels = {n_images - 1: [names.index("person")], n_images: []}.get(key, labels)
        annotations += [{"image_id": key, "category_id": 2 * int(c) + 1, "iscrowd": 0} for c in labels]
    content = {
        "images": images,
        "annotations": [{"id": n, **a} for n, a in enumerate(annotations)],
        "categories": [{"id": 2 * n + 1, "name": name} for n, name in enumerate(names)],
    }
    (root / "annotations" / "instances_val2014.json").write_text(json.dumps(content))
    return root


def test_groups_of_coco_2014(tmp_path: Path) -> None:
    dataset = load_dataset("coco2014", coco_2014(tmp_path / "coco", n_images=3))
    assert (dataset.name, dataset.split) == ("coco2014", "val2014")
    assert {c.name for c in dataset.categories if c.group == "novel"} == set(NOVEL_2014)
    assert sum(c.group == "base" for c in dataset.categories) == 65
    fewer = coco_2014(tmp_path / "fewer", (*COCO_OVD_BASE, *COCO_OVD_NOVEL), n_images=3)
    with pytest.raises(DataError, match="names 65 categories, and the split is of COCO's 80"):
        load_dataset("coco2014", fewer)


def test_from_a_folder_to_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = coco_2014(tmp_path / "coco"), tmp_path / "board"
    given = ["leaderboard", "--dataset", "coco2014", "--root", str(root), "--weights", "random", "--out", str(out)]
    assert main([*given, "--methods", "clip,dense-clip"]) == 0
    assert "GZSL F1@3 | GZSL mAP | ZSL F1@3 | ZSL mAP |" in capsys.readouterr().out
    table = out / "coco2014-multilabel.csv"
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [(row["method"], row["GZSL images"]) for row in rows] == [("clip", "13"), ("dense-clip", "13")]
    assert 0 < int(rows[0]["ZSL images"]) < 13

    content = json.loads((root / "annotations" / "instances_val2014.json").read_text())
    dataset, method = load_dataset("coco2014", root), build_method("clip", weights="random")
    names = [category["name"] for category in content["categories"]]
    scores = score_matrix(open_store(store_path(dataset, method.info)), embed_categories(method, names))
    has = {(a["category_id"], a["image_id"]) for a in content["annotations"]}
    relevance = np.array([[(c["id"], i["id"]) in has for i in content["images"]] for c in content["categories"]])
    novel = [n for n, name in enumerate(names) if name in NOVEL_2014]
    for setting, labels in (("GZSL", range(80)), ("ZSL", novel)):
        f1, precision, recall, ap, n_images, _ = slow_scores(scores[labels], relevance[labels], 3)
        assert int(rows[0][f"{setting} images"]) == n_images
        expected = {"F1@3": f1, "precision@3": precision, "recall@3": recall, "mAP": ap}
        for heading, value in expected.items():
            assert float(rows[0][f"{setting} {heading}"]) == pytest.approx(100 * value, abs=0.006)

    before = table.read_bytes()
    table.unlink()
    assert main(["table", "--out", str(out)]) == 0
    assert table.read_bytes() == before
    assert str(table) in capsys.readouterr().out
    shown = with_paper([table, out / "coco2014.csv"], read_paper()).splitlines()
    assert sum(line.startswith("| paper Table 10 | COCO 2014 |") for line in shown) == 9
    (line,) = (line for line in shown if " DualCoOp " in line)
    assert line.endswith("| 67.3 | 78.6 | 50.6 | 78.3 |")
    assert sum(line.startswith("| ours | coco2014 |") for line in shown) == 4


def test_other_datasets_have_no_such_table(tmp_path: Path) -> None:
    root, out = coco_2014(tmp_path / "coco", n_images=5), tmp_path / "board"
    given = ["leaderboard", "--dataset", "coco", "--root", str(root), "--split", "val2014", "--weights", "random"]
    assert main([*given, "--methods", "clip", "--out", str(out)]) == 0
    assert sorted(path.name for path in out.glob("*.csv")) == ["coco.csv"]
