"""The paper's numbers: complete, plausible, equal where two tables repeat one; and below ours, never among them."""

import shutil
from collections import Counter
from pathlib import Path

import pytest

from for_eval.__main__ import main
from for_eval.leaderboard.paper_rows import PAPER, read_paper, with_paper
from for_eval.leaderboard.paper_tables import SUITES
from for_model.errors import DataError

LEADERBOARDS = PAPER.parent
ROWS = read_paper()
DATASETS = ("COCO", "LVIS", "nuImages")
SCORES = [f"{d} {g}" for d in DATASETS for g in ("base", "novel", "all")] + [
    f"COCO 2014 {setting} {score}" for setting in ("GZSL", "ZSL") for score in ("F1@3", "mAP")
]


def of(table: int) -> list[dict[str, str]]:
    return [row for row in ROWS if row["source"] == f"paper Table {table}"]


def test_every_row_of_every_table_of_results_is_there() -> None:
    counts = Counter(row["source"] for row in ROWS)
    expected = {1: 12, 2: 5, 3: 4, 4: 9, 5: 12, 6: 4, 7: 4, 9: 10, 10: 9}  # Table 8 is the hyperparameters
    assert counts == {f"paper Table {table}": n for table, n in expected.items()}


def test_every_table_has_all_its_cells() -> None:
    coco, lvis = SCORES[0:2], SCORES[3:5]
    filled = {1: SCORES[:9], 2: coco + lvis, 3: coco + lvis, **dict.fromkeys((4, 5, 6, 7, 9), coco), 10: SCORES[9:]}
    for table, columns in filled.items():
        for row in of(table):
            missing = [c for c in columns if not row[c]]
            assert missing == (["nuImages base", "nuImages novel", "nuImages all"] if row["method"] == "VSRN" else [])
            assert not [c for c in SCORES if row[c] and c not in columns]
    settings = {4: ("frozen", "decoder layers"), 5: ("labelled",), 6: ("embeddings an image",), 7: ("decoder layers",)}
    for table, columns in {**settings, 9: ("image size", "dual encoder", "region proposals")}.items():
        assert all(row[c] for row in of(table) for c in columns)
        assert len({tuple(row.values()) for row in of(table)}) == len(of(table))


def test_every_number_is_a_percentage() -> None:
    for row in ROWS:
        for column in SCORES:
            assert not row[column] or 0 < float(row[column]) < 100


@pytest.mark.parametrize(
    ("dataset", "base_share"),
    [("COCO", 48 / 65), ("nuImages", 10 / 18), ("LVIS", 0.8288)],  # LVIS: of the categories that its val split shows
)
def test_all_is_the_mean_over_base_and_novel_categories(dataset: str, base_share: float) -> None:
    compared = 0
    for row in ROWS:
        if row[f"{dataset} all"]:
            base, novel, both = (float(row[f"{dataset} {group}"]) for group in ("base", "novel", "all"))
            if (base, novel, both) == (93.39, 3.01, 45.63):  # printed so, and 53.22 by every other row of its column
                continue
            assert min(base, novel) < both < max(base, novel)
            assert both == pytest.approx(base_share * base + (1 - base_share) * novel, abs=0.016)
            compared += 1
    assert compared == (10 if dataset == "nuImages" else 12)


def test_what_two_tables_say_of_one_training_is_the_same() -> None:
    def scores(table: int, **settings: str) -> set[tuple[str, str]]:
        rows = [r for r in of(table) if all(r[k.replace("_", " ")] == v for k, v in settings.items())]
        return {(r["COCO base"], r["COCO novel"]) for r in rows}

    ours = {("88.14", "89.17")}
    assert scores(1, method="FOR", embeddings_an_image="50", **{"labels": "yes", "pseudo-labels": "yes"}) == ours
    assert scores(2, method="FOR") == scores(4, frozen="q, k, v, o", decoder_layers="2") == ours
    assert scores(6, embeddings_an_image="50") == scores(7, decoder_layers="2") == ours
    assert scores(9, method="FOR", embeddings_an_image="50") == ours
    assert scores(5, labelled="100%") == ours | {("91.11", "21.51")}
    assert scores(6, embeddings_an_image="25") == scores(9, embeddings_an_image="25") == {("88.97", "89.17")}
    assert scores(7, decoder_layers="0") == {("78.19", "83.96")} <= scores(4, frozen="q, k, v, o")
    assert {(r["COCO base"], r["COCO novel"]) for r in of(3)} <= scores(1) | {("87.71", "87.66")}
    assert scores(2, labels="no") <= scores(1)


# Read off the paper's pages and typed by hand.
TYPED = [
    (1, "PCME", {"nuImages base": "60.37", "nuImages novel": "1.2", "nuImages all": "34.07"}),
    (1, "BLIP2", {"COCO base": "78.04", "COCO novel": "84.50", "COCO all": "79.73", "LVIS all": "65.68"}),
    (2, "FT-Dense-CLIP", {"COCO base": "88.00", "COCO novel": "86.67", "LVIS base": "77.46", "LVIS novel": "61.61"}),
    (9, "CLIPSelf", {"image size": "640", "dual encoder": "yes", "region proposals": "yes", "COCO novel": "87.31"}),
    (9, "BARON", {"embeddings an image": "1000", "COCO base": "94.00", "COCO novel": "76.69"}),
    (10, "DualCoOp", dict(zip(SCORES[9:], ("67.3", "78.6", "50.6", "78.3"), strict=True))),
    (10, "FOR", dict(zip(SCORES[9:], ("56.4", "81.3", "50.5", "83.0"), strict=True))),
    (10, "LabelEM", dict(zip(SCORES[9:], ("6.7", "4.0", "10.3", "9.6"), strict=True))),
]


@pytest.mark.parametrize(("table", "method", "cells"), TYPED)
def test_rows_are_the_papers(table: int, method: str, cells: dict[str, str]) -> None:
    (row,) = (r for r in of(table) if r["method"] == method)
    assert {column: row[column] for column in cells} == cells


@pytest.mark.parametrize(
    ("table", "settings", "scores"),
    [
        (4, {"frozen": "none", "decoder layers": "2"}, ("61.95", "69.55")),
        (4, {"frozen": "v, o", "decoder layers": "0", "pseudo-labels": "no"}, ("83.59", "17.91")),
        (5, {"labelled": "2%", "pseudo-labels": "yes"}, ("85.39", "88.32")),
        (6, {"embeddings an image": "10"}, ("89.63", "85.12")),
        (7, {"decoder layers": "3"}, ("87.96", "88.54")),
        (9, {"method": "CORA", "backbone": "RN50x4", "dual encoder": "no"}, ("86.27", "78.63")),
        (9, {"method": "OwlV2", "embeddings an image": "5184", "image size": "1008"}, ("90.92", "87.27")),
    ],
)
def test_settings_are_the_papers(table: int, settings: dict[str, str], scores: tuple[str, str]) -> None:
    (row,) = (r for r in of(table) if all(r[k] == v for k, v in settings.items()))
    assert (row["COCO base"], row["COCO novel"]) == scores


def sections(text: str) -> dict[str, list[list[str]]]:
    """Markdown tables by the name above each: their rows of cells, the heading first."""
    parts = text.strip().split("\n\n")
    found: dict[str, list[list[str]]] = {}
    for title, table in zip(parts[::2], parts[1::2], strict=True):
        heading, _, *body = table.splitlines()
        found[title.split(",")[0]] = [[cell.strip() for cell in line[1:-1].split("|")] for line in (heading, *body)]
    return found


def test_their_rows_stand_below_ours_in_every_generated_table() -> None:
    made = (path for path in LEADERBOARDS.glob("*.csv") if path != PAPER)
    paths = sorted(path for path in made if "base mAP@50" in path.read_text().splitlines()[0])  # not of studies
    tables = sections(with_paper(paths, ROWS))
    assert set(tables) == {path.name for path in paths}
    for name, (heading, *rows) in tables.items():
        sources = [row[0] for row in rows]
        n_ours = sources.count("ours")
        assert sources[:n_ours] == ["ours"] * n_ours
        assert n_ours == len((LEADERBOARDS / name).read_text().splitlines()) - 1
        dataset, _, table = name.removesuffix(".csv").partition("-")
        has_theirs = dataset == "miniscenes" and (not table or SUITES[dataset].tables[table].paper != ())
        assert n_ours > 0
        assert (n_ours < len(rows)) == has_theirs
        assert all(source.startswith("paper Table ") for source in sources[n_ours:])
        assert {len(row) for row in rows} == {len(heading)}
        assert {row[1] for row in rows[n_ours:]} == ({"COCO"} if has_theirs else set())
    assert {name.removeprefix("miniscenes-").removesuffix(".csv") for name in tables} >= set(
        SUITES["miniscenes"].tables
    )
    freezing = tables["miniscenes-freezing.csv"]
    assert freezing[0][:5] == ["source", "dataset", "frozen", "losses", "decoder layers"]
    assert ["paper Table 4", "COCO", "v, o", "labels", "0", "83.59", "17.91", ""] in freezing
    assert ["paper Table 6", "COCO", "10", "89.63", "85.12", ""] in tables["miniscenes-queries.csv"]
    assert len([row for row in tables["miniscenes-main.csv"] if row[0] == "paper Table 2"]) == 2  # the other 3 are in 1


def test_a_datasets_table_gets_the_rows_of_that_dataset(tmp_path: Path) -> None:
    heading = "dataset,protocol,backbone,method,embeddings an image,base mAP@50,novel mAP@50,all mAP@50\n"
    for name in ("lvis", "coco", "flowers"):
        (tmp_path / f"{name}.csv").write_text(heading + f"{name},all,RN50,clip,1,1.00,2.00,1.50\n")
    tables = sections(with_paper(sorted(tmp_path.glob("*.csv")), ROWS))
    assert tables["coco.csv"][1] == ["ours", "coco", "all", "RN50", "clip", "1", "", "1.00", "2.00", "1.50"]
    expected = ["paper Table 1", "LVIS", "", "ResNet-101", "VSRN", "1", "", "46.55", "20.46", "42.09"]
    assert tables["lvis.csv"][2] == expected
    assert Counter(row[0] for row in tables["coco.csv"][2:]) == {
        "paper Table 1": 12,
        "paper Table 2": 2,
        "paper Table 9": 8,
    }
    assert len(tables["flowers.csv"]) == 2


def test_the_command_prints_them_and_leaves_ours_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(LEADERBOARDS / "results", tmp_path / "results")
    assert main(["table", "--out", str(tmp_path), "--with-paper"]) == 0
    assert "paper Table 7" in capsys.readouterr().out
    for path in tmp_path.glob("*.csv"):
        assert "paper" not in path.read_text()
        assert path.read_bytes() == (LEADERBOARDS / path.name).read_bytes()


def test_a_missing_or_other_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"paper\.csv isn't there"):
        read_paper(tmp_path / "paper.csv")
    for content in ("", "method\nFOR\n", "source,method\nours,FOR\n"):
        (tmp_path / "paper.csv").write_text(content)
        with pytest.raises(DataError, match="'source'"):
            read_paper(tmp_path / "paper.csv")
