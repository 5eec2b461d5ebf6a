import re
import xml.etree.ElementTree as ET

import pandas as pd
import pytest

from for_app.views.charts import ablations_html, bars, bars_html, curves
from for_app.views.curves import Ablation, Curve
from for_app.views.leaderboard import Board

SVG = "{http://www.w3.org/2000/svg}"
FRAME = pd.DataFrame(
    {
        "method": ["clip", "<for> & more"],
        "embeddings an image": [1, 8],
        "base mAP@50": [40.0, 50.0],
        "base low": [38.0, 47.0],
        "base high": [42.0, 53.0],
        "novel mAP@50": [30.0, float("nan")],
        "novel low": [25.0, float("nan")],
        "novel high": [35.0, float("nan")],
    }
)
ABLATION = Ablation(
    "Table 6: the number of queries",
    "queries",
    True,
    (Curve("base", "", (2, 8), (49.9, 53.3)),),
    (Curve("base", "both losses", (5, 50), (90.7, 88.1)), Curve("novel", "both losses", (5, 50), (78.6, 89.2))),
)


def texts(svg: str) -> list[str]:
    return ["".join(element.itertext()).strip() for element in ET.fromstring(svg).iter(f"{SVG}text")]


def widths(svg: str, colour: str) -> list[float]:
    """The widths of the bars of a colour, in points."""
    found = []
    for path in ET.fromstring(svg).iter(f"{SVG}path"):
        if colour in path.get("style", "") and "clip-path" in path.attrib:
            x = [float(number) for number in re.findall(r"[ML] ([\d.]+) ", path.get("d", ""))]
            found.append(max(x) - min(x))
    return found


def test_bars_are_as_long_as_the_scores() -> None:
    svg = bars(FRAME, "methods", "tiny")
    assert svg is not None
    base, novel = widths(svg, "#1f8a9e"), widths(svg, "#d9772b")
    assert base[0] / base[1] == pytest.approx(40 / 50, abs=0.01)
    assert novel[0] / base[0] == pytest.approx(30 / 40, abs=0.01)
    assert {"clip 1", "<for> & more 8", "base", "novel", "mAP@50 on tiny (%), with 95% intervals"} <= set(texts(svg))


def test_whiskers_say_what_they_are() -> None:
    std = FRAME[["method", "base mAP@50"]].assign(**{"base std": [1.0, 2.0]})
    assert any("standard deviations over seeds" in text for text in texts(bars(std, "a") or ""))
    plain = std.assign(**{"base std": [float("nan")] * 2})
    assert "mAP@50 on COCO (%)" in texts(bars(plain, "a") or "")


def test_nothing_to_draw() -> None:
    assert bars(FRAME[["method"]], "a") is None
    assert bars(FRAME.iloc[:0], "a") is None
    assert bars(FRAME.assign(**{"base mAP@50": float("nan"), "novel mAP@50": float("nan")}), "a") is None


def test_colours_follow_the_page_and_ids_dont_clash() -> None:
    ours, paper = curves(ABLATION)
    ids = [set(re.findall(r'id="(m[0-9a-f]{10}|p[0-9a-f]{10})"', svg)) for svg in (ours, paper)]
    assert ids[0]
    assert not ids[0] & ids[1]
    for svg in (ours, paper):
        assert "currentColor" in svg
        assert "#000000" not in svg
        assert not re.search(r"<(script|image|metadata)|https?://(?!www\.w3\.org|purl)", svg)
        assert ET.fromstring(svg).get("role") == "img"
    assert "queries" in texts(ours)
    assert {"5", "50", "base", "novel", "the paper, COCO"} <= set(texts(paper))
    assert curves(ABLATION) == (ours, paper)


def test_a_curve_of_losses_names_them() -> None:
    two = (Curve("base", "both losses", (1, 2), (3, 4)), Curve("base", "labels alone", (1, 2), (1, 2)))
    (svg,) = curves(Ablation("t", "x", False, two, ()))
    assert {"base, both losses", "base, labels alone"} <= set(texts(svg))
    assert "stroke-dasharray" in svg


def test_a_board_is_drawn_ours_first_and_what_is_empty_is_left_out() -> None:
    title = '<b>"methods"'
    both = bars_html(Board(title, "tiny", FRAME, FRAME))
    assert re.findall("<figcaption>(.*?)</figcaption><svg", both) == [
        "Measured with FOR",
        "The paper&#39;s own numbers",
    ]
    assert 'aria-label="&lt;b&gt;&#34;methods&#34;, the paper"' in both
    assert bars_html(Board(title, "tiny", FRAME, FRAME.iloc[:0])).count("<svg") == 1
    assert "<figure>" not in bars_html(Board(title, "tiny", FRAME.iloc[:0], FRAME.iloc[:0]))


def test_ablations_stand_under_their_titles() -> None:
    html = ablations_html([ABLATION, Ablation("<i>", "x", False, ABLATION.ours, ())])
    assert re.findall("<h3>(.*?)</h3>", html) == [ABLATION.title, "&lt;i&gt;"]
    assert html.count("<figure><svg ") == 3
