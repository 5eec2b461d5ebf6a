"""Comparing two results against resampled collections that are built literally, and as a command."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

from for_eval.__main__ import main
from for_eval.leaderboard.comparison_report import to_text, write_figure
from for_eval.leaderboard.paired_comparison import compare, load_ranked
from for_eval.leaderboard.results import FORMAT, write_result
from for_eval.metrics import kept_rankings as rankings_module
from for_eval.metrics.kept_rankings import rankings_of
from for_model.errors import DataError, UsageError
from for_search.query.ranking import UNRANKED
from tests.helpers.slow_metrics import random_case, slow_scores

GROUPS = ("base",) * 4 + ("novel",) * 3
ABOUT = {"dataset": "tiny", "split": "val", "protocol": "all"}


def make(scores, relevance, known=None, k=5, ids=None, **changes):
    about = {**ABOUT, "categories": [f"thing {c}" for c in range(len(scores))], "groups": GROUPS, **changes}
    return rankings_of(scores, relevance, known, k=k, image_ids=ids or range(scores.shape[1]), **about)


def two_scores(n_images=60, levels=7):
    """Scores of A and B for one relevance: B follows it more closely."""
    scores, relevance = random_case(0, n_images=n_images, density=0.2, levels=levels)
    noise = np.random.default_rng(5).standard_normal(scores.shape)
    return scores, np.round(scores + 2 * relevance + noise), relevance


def slow_ap(scores, relevance, known, k):
    """[C] AP@k, None where there is no relevant image."""
    pools = [None] * len(scores) if known is None else known
    found = [slow_scores(*rows, k, pool) for *rows, pool in zip(scores, relevance, pools, strict=True)]
    return [None if p == 0 else ap for ap, *_, p in found]


def slow_draws(a, b, relevance, known, k, n_resamples, rng):
    """[R, C] B - A of collections made of copies of the images drawn; None without a relevant image."""
    found = []
    for _ in range(n_resamples):
        drawn = np.sort(rng.integers(a.shape[1], size=a.shape[1]))
        pool = None if known is None else known[:, drawn]
        ap_a, ap_b = (slow_ap(scores[:, drawn], relevance[:, drawn], pool, k) for scores in (a, b))
        found.append([None if x is None else y - x for x, y in zip(ap_a, ap_b, strict=True)])
    return found


def mean(values):
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def check_spread(spread, values, own, level):
    values = np.array([value for value in values if value is not None])
    values += own - values.mean()
    assert spread.n_resamples == len(values)
    assert_allclose((spread.low, spread.high), np.quantile(values, [(1 - level) / 2, (1 + level) / 2]), atol=1e-12)
    assert spread.share_better == pytest.approx(np.mean(values > 1e-12), abs=1e-12)


@pytest.mark.parametrize("with_known", [False, True])
@pytest.mark.parametrize(("n_images", "k", "levels"), [(60, 5, 7), (60, 5, None), (12, 50, 3), (200, 20, None)])
def test_is_literal_resampling(n_images, k, levels, with_known):
    a, b, relevance = two_scores(n_images, levels)
    relevance[2] = False
    known = np.random.default_rng(2).random(a.shape) < 0.7 if with_known else None
    n_resamples, level = 30, 0.9
    comparison = compare(make(a, relevance, known, k), make(b, relevance, known, k), n_resamples, 4, level)

    rng = np.random.default_rng(4)
    draws = slow_draws(a, b, relevance, known, k, n_resamples, rng)
    own_a, own_b = (slow_ap(scores, relevance, known, k) for scores in (a, b))
    for name, members in (("base", range(4)), ("novel", range(4, 7)), ("all", range(7))):
        group = comparison.groups[name]
        used = [c for c in members if own_a[c] is not None]
        own = [own_b[c] - own_a[c] for c in used]
        assert group.n_categories == len(used)
        assert group.a == pytest.approx(np.mean([own_a[c] for c in used]))
        assert group.b == pytest.approx(np.mean([own_b[c] for c in used]))
        assert group.difference == pytest.approx(np.mean(own))
        check_spread(group.spreads["images"], [mean(row[c] for c in used) for row in draws], np.mean(own), level)
        picks = [rng.integers(len(used), size=len(used)) for _ in range(n_resamples)]
        check_spread(group.spreads["categories"], [mean(own[p] for p in pick) for pick in picks], np.mean(own), level)
        both = [mean(row[used[p]] for p in pick) for row, pick in zip(draws, picks, strict=True)]
        check_spread(group.spreads["both"], both, np.mean(own), level)
    assert len(comparison.categories) == sum(ap is not None for ap in own_a)
    for category in comparison.categories:
        c = int(category.name.split()[1])
        assert (category.a, category.b) == (pytest.approx(own_a[c]), pytest.approx(own_b[c]))
        check_spread(category.spread, [row[c] for row in draws], own_b[c] - own_a[c], level)
    differences = [category.difference for category in comparison.categories]
    assert differences == sorted(differences, reverse=True)


def test_the_same_result_twice_differs_in_nothing():
    a, _, relevance = two_scores()
    comparison = compare(make(a, relevance), make(a, relevance), 20)
    for group in comparison.groups.values():
        assert group.difference == 0
        assert {(s.low, s.high, s.share_better) for s in group.spreads.values()} == {(0, 0, 0)}
    assert [c.name for c in comparison.categories] == sorted(c.name for c in comparison.categories)


def test_a_better_ranking_is_better_and_turning_the_two_round_turns_the_signs():
    a, b, relevance = two_scores(200)
    there, back = (compare(make(x, relevance), make(y, relevance), 100) for x, y in ((a, b), (b, a)))
    spread = there.groups["all"].spreads["images"]
    assert 0 < spread.low < there.groups["all"].difference < spread.high
    assert spread.share_better > 0.95
    turned = back.groups["all"].spreads["images"]
    assert_allclose((turned.low, turned.high), (-spread.high, -spread.low), atol=1e-12)
    assert turned.share_better == pytest.approx(1 - spread.share_better)
    assert [-c.difference for c in back.categories] == [c.difference for c in there.categories[::-1]]


def test_images_that_only_one_ranks_are_left_out_and_counted():
    a, b, relevance = two_scores()
    of_a, of_b = np.arange(60) != 7, ~np.isin(np.arange(60), [0, 30])
    common = of_a & of_b
    ids = lambda mask: [int(i) for i in np.flatnonzero(mask)]  # noqa: E731
    got = compare(
        make(a[:, of_a], relevance[:, of_a], ids=ids(of_a)), make(b[:, of_b], relevance[:, of_b], ids=ids(of_b)), 50
    )
    expected = compare(
        make(a[:, common], relevance[:, common], ids=ids(common)),
        make(b[:, common], relevance[:, common], ids=ids(common)),
        50,
    )
    assert (got.n_images, got.only_a, got.only_b) == (57, 2, 1)
    assert got == dataclasses.replace(expected, only_a=2, only_b=1)
    assert "2 images of A, 1 of B" in to_text(got, "a", "b")


def test_groups_without_relevant_images_are_empty():
    a, b, relevance = two_scores()
    relevance[4:] = False
    comparison = compare(make(a, relevance), make(b, relevance), 20)
    assert comparison.groups["novel"] is None
    assert comparison.groups["all"].n_categories == 4
    assert "None" not in to_text(comparison, "a", "b")
    relevance[:] = False
    assert compare(make(a, relevance), make(b, relevance), 20).categories == ()


def test_one_relevant_image_that_no_resample_holds_has_no_spread(tmp_path):
    relevance = np.zeros((7, 40), dtype=bool)
    drawn = np.random.default_rng(0).integers(40, size=40)  # the first resample of seed 0
    relevance[0, drawn[0]] = True
    relevance[4, np.setdiff1d(np.arange(40), drawn)[0]] = True
    scores = np.random.default_rng(0).standard_normal(relevance.shape)
    comparison = compare(make(scores, relevance), make(-scores, relevance), 1)
    assert {c.name: c.spread is None for c in comparison.categories} == {"thing 0": False, "thing 4": True}
    novel = comparison.groups["novel"].spreads
    assert (novel["images"], novel["both"]) == (None, None)
    assert novel["categories"].n_resamples == 1
    assert "None" not in to_text(comparison, "a", "b")
    write_figure(tmp_path / "a.svg", comparison, "a", "b")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dataset": "other"}, "A is of tiny val, protocol all, k = 5, B of other val"),
        ({"split": "dev"}, "B of tiny dev"),
        ({"protocol": "federated"}, "protocol federated"),
        ({"k": 6}, "k = 6"),
        ({"categories": [f"other {c}" for c in range(7)]}, "other categories"),
        ({"groups": ("base",) * 7}, "other groups"),
        ({"ids": range(100, 160)}, "no common image"),
    ],
)
def test_other_tasks_are_refused(changes, said):
    a, b, relevance = two_scores()
    with pytest.raises(UsageError, match=said) as caught:
        compare(make(a, relevance), make(b, relevance, **changes), 10)
    assert "\n" not in str(caught.value)


def test_other_labels_are_refused():
    a, b, relevance = two_scores()
    other = relevance.copy()
    other[3, 3] ^= True
    with pytest.raises(UsageError, match="different labels"):
        compare(make(a, relevance), make(b, other), 10)
    known = np.ones_like(relevance)
    fewer = known.copy()
    fewer[3, np.flatnonzero(~relevance[3])[0]] = False
    with pytest.raises(UsageError, match="different labels"):
        compare(make(a, relevance, known), make(b, relevance, fewer), 10)


@pytest.mark.parametrize("settings", [{"n_resamples": 0}, {"level": 0.0}, {"level": 1.0}])
def test_settings_must_make_sense(settings):
    a, b, relevance = two_scores()
    with pytest.raises(UsageError, match="give n_resamples >= 1"):
        compare(make(a, relevance), make(b, relevance), **settings)


def test_rankings_too_short_for_a_resample_are_refused(monkeypatch):
    monkeypatch.setattr(rankings_module, "DEPTH", 1)
    a, b, relevance = two_scores()
    with pytest.raises(UsageError, match="5 deep, don't fill 5 ranks"):
        compare(make(a, relevance), make(b, relevance), 10)


def result_of(method, n_embeddings=1):
    info = {"method": method, "backbone": "RN-mini", "weights": "rn-mini", "n_embeddings": n_embeddings}
    return {"format": FORMAT, **ABOUT, "method": {**info, "image_size": 160, "settings": {}}}


@pytest.fixture
def two_results(tmp_path: Path) -> list[str]:
    a, b, relevance = two_scores(200)
    paths = []
    for method, scores in (("clip", a), ("cluster-clip", b)):
        paths.append(str(write_result(tmp_path, result_of(method), make(scores, relevance, k=50))))
    return paths


def test_the_command_prints_tables_and_draws(two_results, tmp_path, capsys):
    figure = tmp_path / "figures" / "gain.png"
    assert main(["compare", *two_results, "--out", str(figure), "--resamples", "50"]) == 0
    out = capsys.readouterr().out
    assert "A  clip (1 embedding; RN-mini, rn-mini)" in out
    assert "200 images, 7 categories" in out
    (line,) = (line for line in out.splitlines() if line.startswith("all (7)"))
    assert line.count("%") == 3
    from PIL import Image

    with Image.open(figure) as image:
        assert min(image.size) > 800
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}
    assert {(0x00, 0x72, 0xB2), (0xE6, 0x9F, 0x00), (0x55, 0x55, 0x55)} <= colours
    assert main(["compare", *two_results, "--json", "--resamples", "50"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert f"{100 * found['groups']['all']['difference']:+.2f}" in line
    assert len(found["categories"]) == 7
    assert found["groups"]["novel"]["spreads"]["both"]["n_resamples"] == 50


def test_many_categories_are_shown_by_their_ends_and_drawn_without_names(tmp_path):
    rng = np.random.default_rng(0)
    relevance = rng.random((130, 50)) < 0.3
    a, b = rng.standard_normal((2, 130, 50))
    groups = ("base",) * 100 + ("novel",) * 30
    comparison = compare(make(a, relevance, groups=groups), make(b, relevance, groups=groups), 10)
    text = to_text(comparison, "a", "b")
    shown = [line for line in text.splitlines() if line.startswith("thing ")]
    assert [line.split()[1] for line in shown] == [
        c.name.split()[1] for c in (*comparison.categories[:10], *comparison.categories[-10:])
    ]
    for name in ("a.svg", "a.PDF"):
        write_figure(tmp_path / name, comparison, "a", "b")
        assert (tmp_path / name).stat().st_size > 1000
    with pytest.raises(UsageError, match=r"ends in \.png, \.svg, \.pdf"):
        write_figure(tmp_path / "a.gif", comparison, "a", "b")


def test_bad_arguments_are_one_line(two_results, tmp_path, capsys):
    def error(*arguments):
        assert main(["compare", *arguments]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert said.count("\n") == 1
        return said

    first, second = map(Path, two_results)
    assert "nothing.json" in error(two_results[0], str(tmp_path / "nothing.json"))
    assert "ends in .png" in error(*two_results, "--out", str(tmp_path / "figure"))
    assert "n_resamples=0" in error(*two_results, "--resamples", "0")
    shutil.copy(first.with_suffix(".npz"), second.with_suffix(".npz"))
    assert "is not the file that" in error(*two_results)
    second.with_suffix(".npz").unlink()
    assert "doesn't exist: run the leaderboard of its result again" in error(*two_results)
    for named in (None, {}, {"file": "../other.npz"}, {"file": 5}):
        second.write_text(json.dumps({**result_of("clip"), "rankings": named}))
        assert "run its leaderboard again" in error(*two_results)
    second.write_text(json.dumps(result_of("clip")))
    assert f"{second} has no rankings beside it: run its leaderboard again" in error(*two_results)


def test_what_is_loaded_is_what_was_written(two_results):
    result, rankings = load_ranked(Path(two_results[0]))
    assert result["method"]["method"] == "clip"
    assert rankings.order.shape == (7, 200)
    assert (rankings.order != UNRANKED).all()
    with pytest.raises(DataError, match="no JSON result"):
        load_ranked(Path(two_results[0]).with_suffix(".npz"))
