import csv
import re
from pathlib import Path

import pandas as pd
import pytest

from for_app.views.board_tables import leaderboard_html
from for_app.views.charts import marks_html
from for_app.views.curves import Curve, curves_of_marks, read_ablations
from for_app.views.leaderboard import FOLDER, MARKS_FILE, MEASURED, main_columns, read_boards
from for_model.errors import DataError

PAPER = """source,method,embeddings an image,labels,pseudo-labels,labelled,decoder layers,COCO base,COCO novel,new
paper Table 1,CLIP,1,no,no,,,68.56,77.68,
paper Table 1,FOR,50,yes,no,,,91.11,21.51,
paper Table 1,FOR,50,yes,yes,,,88.14,89.17,
paper Table 5,FOR,50,yes,no,5%,,90.40,13.88,
paper Table 6,FOR,5,yes,yes,,,90.72,78.62,
paper Table 7,FOR,50,yes,yes,,1,87.84,88.35,x
"""
QUERIES = """queries,seeds,base mAP@50,base std,novel mAP@50,novel std
8,1,53.34,,50.12,
2,1,49.91,,43.40,
"""
LABELLED = """losses,labelled,base mAP@50,novel mAP@50
labels,0.5%,44.56,
both,0.5%,50.96,48.17
"""
WHOLE = """dataset,method,embeddings an image,base mAP@50,base low,base high,all recall@5,device
miniscenes,clip,1,43.67,41.37,46.01,4.6,cpu
miniscenes,for,8,53.34,50.86,55.78,4.9,cpu
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in (
        ("paper", PAPER), ("miniscenes-queries", QUERIES), ("miniscenes-labelled", LABELLED), ("miniscenes", WHOLE),
    ):  # fmt: skip
        (tmp_path / f"{name}.csv").write_text(text)
    return tmp_path


def test_ours_and_the_papers_rows_stay_apart(folder: Path) -> None:
    boards = read_boards(folder)
    assert [board.title for board in boards] == [
        "miniscenes: methods with 95% intervals",
        "Table 5: the share of the images that is labelled (miniscenes)",
        "Table 6: the number of queries (miniscenes)",
        "The paper's own numbers",
    ]
    for board in boards:
        assert set(board.ours["source"]) <= {MEASURED}
        assert all(source.startswith("paper Table ") for source in board.paper["source"])
    queries = boards[2]
    assert queries.dataset == "miniscenes"
    assert queries.ours["base mAP@50"].tolist() == [53.34, 49.91]
    assert queries.ours["base std"].isna().all()  # not measured, and so not 0
    assert queries.paper["COCO base"].tolist() == [90.72]
    assert len(boards[3].paper) == 6


def test_a_study_is_no_leaderboard(folder: Path) -> None:
    before = [board.title for board in read_boards(folder)]
    (folder / "calibration.csv").write_text("method,AUROC\nclip,0.9\n")
    assert [board.title for board in read_boards(folder)] == before


def test_rows_of_the_paper_in_a_csv_of_ours_are_left_out(folder: Path) -> None:
    (folder / "miniscenes-queries.csv").write_text("source,queries,base mAP@50\nours,8,53.34\npaper Table 6,5,90.72\n")
    (folder / "miniscenes-queries-with-paper.csv").write_text("source,queries\npaper Table 6,5\n")
    board = read_boards(folder)[2]
    assert board.ours.to_dict("records") == [{"source": MEASURED, "queries": 8, "base mAP@50": 53.34}]


def test_a_table_leaves_out_what_every_row_says(folder: Path) -> None:
    whole = read_boards(folder)[0]
    assert list(main_columns(whole.ours).columns) == [
        *("source", "method", "embeddings an image", "base mAP@50", "base low", "base high"),
    ]


def cells(html: str) -> list[list[str]]:
    """The texts of a table's cells, row by row."""
    rows = re.findall(r"<tr>(.*?)</tr>", html, re.DOTALL)
    return [
        [re.sub(r"<[^>]+>", "", cell).strip() for cell in re.findall(r"<t[hd][ >](.*?)</t[hd]>", f"{row}", re.DOTALL)]
        for row in rows
    ]


def test_a_table_has_one_spelling_of_methods_bars_and_marks_the_best(folder: Path) -> None:
    html = leaderboard_html("miniscenes: methods with 95% intervals", folder)
    assert re.findall(r">(CLIP|FOR 8)</td>", html) == ["CLIP", "FOR 8"]
    assert "for</td>" not in html
    assert 'data-value="53.34" title="50.86 to 55.78">53.34<span class="sr">, the best</span>' in html
    assert html.count(", the best") == 1
    assert 'style="width:53.3%"' in html
    assert 'style="left:50.9%;width:4.9%"' in html
    shown = [row for row in cells(html) if row]
    heads = [each.rpartition(">")[2] for each in shown[0]]
    assert heads.index("base") < heads.index("embeddings an image")  # a phone shows the scores too
    assert "<option selected>miniscenes: methods with 95% intervals</option>" in html


def test_the_paper_and_what_no_board_is_called(folder: Path) -> None:
    html = leaderboard_html("The paper&#39;s own numbers", folder)
    assert "<option selected>miniscenes" in html  # the first, where there is none of that name
    html = leaderboard_html("The paper's own numbers", folder)
    assert "paper Table 6" in html
    assert "Measured with FOR" not in html.partition("<h2>")[0]
    assert "make leaderboards" in leaderboard_html("", folder / "nowhere")


def test_no_tables_and_damaged_ones(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="make leaderboards"):
        read_boards(tmp_path)
    with pytest.raises(DataError, match="make leaderboards"):
        read_boards(tmp_path / "missing")
    (tmp_path / "miniscenes.csv").write_bytes(b"")
    with pytest.raises(DataError, match=r"miniscenes\.csv can't be read"):
        read_boards(tmp_path)
    (tmp_path / "miniscenes.csv").write_text(WHOLE)
    (tmp_path / "paper.csv").write_text("method\nFOR\n")
    with pytest.raises(DataError, match="expected a column 'source'"):
        read_boards(tmp_path)
    (tmp_path / "paper.csv").unlink()
    assert len(read_boards(tmp_path)) == 2


def test_curves_take_the_papers_points_from_whichever_table_has_them(folder: Path) -> None:
    queries, layers, labelled = read_ablations(folder, "miniscenes")
    assert queries.ours == (Curve("base", "", (2, 8), (49.91, 53.34)), Curve("novel", "", (2, 8), (43.40, 50.12)))
    assert queries.paper == (
        Curve("base", "both losses", (5, 50), (90.72, 88.14)),
        Curve("novel", "both losses", (5, 50), (78.62, 89.17)),
    )
    assert layers.ours == ()
    assert layers.paper[0] == Curve("base", "both losses", (1, 2), (87.84, 88.14))
    assert labelled.ours == (
        Curve("base", "both losses", (0.5,), (50.96,)),
        Curve("novel", "both losses", (0.5,), (48.17,)),
        Curve("base", "labels alone", (0.5,), (44.56,)),  # and none for novel, which wasn't measured
    )
    assert labelled.paper[-1] == Curve("novel", "labels alone", (5, 100), (13.88, 21.51))
    assert labelled.paper[0] == Curve("base", "both losses", (100,), (88.14,))


def test_the_leaderboards_that_come_with_for() -> None:
    boards = read_boards(FOLDER)
    titles = [board.title.partition(":")[0] for board in boards]
    assert titles[-1] == "The paper's own numbers"
    assert {"Tables 1 and 2", "Table 3", "Table 4", "Table 5", "Table 6", "Table 7", "miniscenes"} <= set(titles)
    for board in boards:
        scores = board.ours.filter(regex="mAP@50$")
        assert (((scores > 0) & (scores < 100)) | scores.isna()).all(axis=None)  # what was not measured is empty
        assert all(pd.api.types.is_numeric_dtype(scores[column]) for column in scores)
    queries, layers, labelled = read_ablations(FOLDER)
    assert [curve.x for curve in queries.paper] == [(5, 10, 25, 50)] * 2
    assert layers.paper == (
        Curve("base", "both losses", (0, 1, 2, 3), (78.19, 87.84, 88.14, 87.96)),
        Curve("novel", "both losses", (0, 1, 2, 3), (83.96, 88.35, 89.17, 88.54)),
    )
    assert [curve.x for curve in labelled.paper] == [(0.5, 1, 2, 5, 10, 100)] * 4
    assert labelled.paper[3] == Curve(
        "novel", "labels alone", labelled.paper[3].x, (13.65, 13.53, 13.40, 13.88, 14.93, 21.51)
    )
    assert [len(ablation.ours) > 0 and len(ablation.paper) > 0 for ablation in read_ablations(FOLDER)] == [True] * 3


def test_what_marks_are_worth_has_a_table_and_curves_for_each_dataset() -> None:
    boards = {board.title: board for board in read_boards(FOLDER) if board.marks}
    assert {"Marks on results (miniscenes)", "Marks on results (flickr8k)"} <= set(boards)
    board = boards["Marks on results (miniscenes)"]
    with (FOLDER / MARKS_FILE).open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if (row["dataset"], row["group"]) == ("miniscenes", "all")]
    assert len(board.ours) == len(rows)
    found = {curves.method: curves for curves in curves_of_marks(board.ours)}
    assert set(found) == {row["method"] for row in rows}
    of_linear = [row for row in rows if (row["method"], row["refiner"]) == ("CLIP", "linear")]
    assert found["CLIP"].unseen["linear"] == tuple((float(row["rounds"]), float(row["AP unseen"])) for row in of_linear)
    assert found["CLIP"].found["linear"][0] == (0, 0)
    drawn = marks_html(curves_of_marks(board.ours[board.ours["method"] == "CLIP"]))
    assert drawn.count("<svg") == 2
    assert "right images found (%), CLIP: a line a refiner" in drawn
    html = leaderboard_html(board.title)
    assert "A simulated user sees ten images a round" in html
    headings = re.findall(r'<button type="button">([^<]+)</button>', html)
    assert headings[:4] == ["method", "refiner", "rounds", "gain"]  # which a phone shows
    assert ">-0.0" not in html
    assert "mAP@50 (%)" not in html  # those of the ablations belong to the other tables
