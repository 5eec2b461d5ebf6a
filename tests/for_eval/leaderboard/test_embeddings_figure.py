import csv
from pathlib import Path

import pytest

from for_eval.__main__ import main
from for_eval.leaderboard.embeddings_figure import points, write_embeddings_figure
from for_eval.leaderboard.paper_tables import SUITES
from for_model.errors import UsageError
from tests.helpers.paths import REPOSITORY

LEADERBOARDS = REPOSITORY / "leaderboards"


def test_points_are_those_of_the_tables() -> None:
    found = points(LEADERBOARDS, SUITES["miniscenes"])
    assert found["CLIP"][1] == pytest.approx((43.67, 43.30), abs=0.01)
    assert set(found["FOR"]) == {4, 8}  # rows that learn from one of the two aren't drawn
    with (LEADERBOARDS / "miniscenes-main.csv").open(encoding="utf-8") as stream:
        rows = {tuple(row.values())[:4]: row for row in csv.DictReader(stream)}
    row = rows["FOR", "8", "yes", "yes"]
    assert found["FOR"][8] == pytest.approx((float(row["base mAP@50"]), float(row["novel mAP@50"])), abs=0.01)


def test_the_command_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["figure", str(tmp_path / "figure.png"), "--out", str(LEADERBOARDS)]) == 0
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    with pytest.raises(UsageError, match="no results of tables"):
        write_embeddings_figure(tmp_path / "figure.png", tmp_path)
    assert main(["figure", "figure.txt", "--out", str(LEADERBOARDS)]) == 2
    assert capsys.readouterr().err == "error: figure.txt: expected a figure's name that ends in .png, .svg, .pdf\n"
