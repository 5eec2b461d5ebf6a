import re
import xml.etree.ElementTree as ET

from for_app.views.charts import ablations_html, curves
from for_app.views.curves import Ablation, Curve

SVG = "{http://www.w3.org/2000/svg}"
ABLATION = Ablation(
    "Table 6: the number of queries",
    "queries",
    True,
    (Curve("base", "", (2, 8), (49.9, 53.3)),),
    (Curve("base", "both losses", (5, 50), (90.7, 88.1)), Curve("novel", "both losses", (5, 50), (78.6, 89.2))),
)


def texts(svg: str) -> list[str]:
    return ["".join(element.itertext()).strip() for element in ET.fromstring(svg).iter(f"{SVG}text")]


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


def test_a_single_point_is_no_curve() -> None:
    alone = (Curve("base", "", (2,), (50,)), Curve("novel", "", (2,), (40,)))
    assert curves(Ablation("t", "x", False, alone, ())) == ()
    assert ablations_html([Ablation("t", "x", False, alone, ())]) == ""


def test_ablations_stand_under_their_titles() -> None:
    html = ablations_html([ABLATION, Ablation("<i>", "x", False, ABLATION.ours, ())])
    assert re.findall("<h2>(.*?)</h2>", html) == [ABLATION.title, "&lt;i&gt;"]
    assert html.count("<figure><svg ") == 3
