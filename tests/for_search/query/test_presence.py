import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from for_model.errors import DataError
from for_model.methods.protocol import LazyMethod, MethodInfo
from for_search.index.index_files import build_index
from for_search.query import presence as module
from for_search.query.hit_lines import hit_lines
from for_search.query.presence import (
    NameScores,
    PresenceNumbers,
    best_share,
    features,
    index_scale,
    numbers_of,
    random_names,
    read_numbers,
    sample_positions,
    text_statistics,
)
from for_search.query.searcher import Searcher, load_searcher
from tests.helpers.small_world import NONSENSE, NamedDirections, make_world
from tests.helpers.store_making import make_store, method_info, random_units


def test_statistics_by_hand() -> None:
    names = NameScores.of(np.array([[0.0, 0.2], [0.2, 0.6]]))
    assert names.mean == pytest.approx([0.1, 0.4])
    assert names.deviation == pytest.approx([0.1, 0.2])
    mean, deviation, level, spread = text_statistics(np.array([0.3, 0.2]), names)  # 2 and -1 deviations above
    assert (mean, deviation, level, spread) == pytest.approx((0.25, 0.05, 0.5, math.log(1.5)))


def test_features_don_t_depend_on_the_scale_of_scores() -> None:
    rng = np.random.default_rng(0)
    scores, names, sample = rng.random((3, 40)), rng.random((20, 40)), np.arange(0, 40, 2)
    found = features(scores, sample, NameScores.of(names[:, sample]))
    other = features(5 * scores - 2, sample, NameScores.of(5 * names[:, sample] - 2))
    assert found == pytest.approx(other)
    assert found[1, 7, 0] == pytest.approx((scores[1, 7] - scores[1, ::2].mean()) / scores[1, ::2].std())


def test_scores_that_are_all_the_same() -> None:
    flat = np.full((1, 30), 0.4)
    found = features(flat, np.arange(30), NameScores.of(np.full((5, 30), 0.4)))
    assert np.isfinite(found).all()
    assert found[0, :, 0] == pytest.approx(np.zeros(30), abs=1e-6)


def test_a_probability_by_hand() -> None:
    numbers = PresenceNumbers(-1.0, (2.0, 0.5, 1.0), (1.0, 2.0), 0.3)
    assert numbers.probability(np.array([1.0, 2.0, -1.0])) == pytest.approx(1 / (1 + math.exp(-1)))
    assert numbers.probability(np.array([[1e9, 0, 0], [-1e9, 0, 0]])) == pytest.approx([1, 0])
    assert numbers.probability_there(np.array([-0.5, 1.0])) == pytest.approx([0.5, 1 / (1 + math.exp(-3))])


def test_the_best_share_by_hand() -> None:
    """A text against two random names, in two images: its share is that of a softmax of 20 times the scores."""
    scores, random = np.array([[0.3, 0.1]]), np.array([[0.2, 0.0], [0.1, 0.0]])
    shares = [math.exp(6) / (math.exp(6) + math.exp(4) + math.exp(2)), math.exp(2) / (math.exp(2) + 2)]
    assert best_share(scores, random) == pytest.approx([max(math.log(p / (1 - p)) for p in shares)])
    twice = best_share(np.repeat(scores, 2, axis=0), np.repeat(random[:, None], 2, axis=1))
    assert twice == pytest.approx(np.repeat(best_share(scores, random), 2))


def test_the_packaged_numbers() -> None:
    known = read_numbers()
    assert {"RN-mini/clip", "RN-mini/for", "RN-mini/for+", "photo-lite/cluster-clip"} <= known.keys()
    for numbers in known.values():
        assert numbers.weights[0] > 0  # or a better score would be less probable
        assert numbers.there[1] > 0
        assert 0 < numbers.cutoff < 1
    assert numbers_of(method_info(8, 4)) == known["RN-mini/cluster-clip"]
    unknown = numbers_of(method_info(8, 4, backbone="RN50"))
    assert unknown.bias == pytest.approx(np.mean([each.bias for each in known.values()]))
    assert not unknown.fitted
    kin = numbers_of(method_info(8, 4, backbone="photo-lite", method="for+"))
    photos = [each.cutoff for name, each in known.items() if name.startswith("photo-lite/")]
    assert kin.cutoff == pytest.approx(np.mean(photos))


@pytest.mark.parametrize("content", ["", "[]", '{"format": "for-calibrations/1"}', '{"format": "for-calibrations/2"}'])
def test_a_damaged_file_of_numbers(tmp_path: Path, content: str) -> None:
    (tmp_path / "numbers.json").write_text(content)
    with pytest.raises(DataError, match="can't be read"):
        read_numbers(tmp_path / "numbers.json")


def test_a_sample_is_spread_evenly_and_bounded() -> None:
    assert sample_positions(5, 8, 256).tolist() == [0, 1, 2, 3, 4]
    large = sample_positions(100_000, 8, 256)
    assert (len(large), large[0], large[-1]) == (1000, 0, 99_999)
    assert np.diff(large).min() >= 99
    assert len(sample_positions(100_000, 196, 1024)) * 196 * 1024 <= 1 << 23
    assert len(sample_positions(100_000, 10_000, 1024)) == module.MIN_IMAGES


def test_random_names_are_the_same_in_every_run() -> None:
    assert len(random_names()) == len(set(random_names())) == 201


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Searcher:
    return make_world(tmp_path_factory.mktemp("world"))


class TestJudging:
    def test_what_is_there_is_good_and_what_is_not_is_not(self, world: Searcher) -> None:
        query = world.text_query("dog")
        result = world.judged(query, world.find(query, 60))
        assert result.probabilities is not None
        good = [hit.image.id for hit in result.hits[: result.n_good]]
        assert set(good) == {10 + 3 * i for i in range(0, 120, 12)}
        assert list(result.probabilities) == sorted(result.probabilities, reverse=True)

    @pytest.mark.parametrize("nonsense", NONSENSE)
    def test_nonsense_has_no_good_match(self, world: Searcher, nonsense: str) -> None:
        query = world.text_query(nonsense)
        assert world.judged(query, world.find(query, 50)).n_good == 0

    def test_what_the_names_know_better_is_nowhere(self, world: Searcher) -> None:
        """The best images of a text whose share in them is small stand out as far, and aren't good."""
        query = world.text_query("dog")
        assert world.scale is not None
        hits = world.find(query, len(world.index.images)).hits
        best, worst = (np.stack([world.index.embeddings(hit.image.id) for hit in some]) for some in (hits, hits[-3:]))
        (alone,), judged = world.scale.of_texts(query.embeddings), world.scale.of_search(query.embeddings, best)
        elsewhere = world.scale.of_search(query.embeddings, worst)
        assert alone.there == 1
        assert judged.there > 0.9 > 0.1 > elsewhere.there
        assert world.judged(query, world.find(query, 1)).probabilities == pytest.approx(
            [float(judged.probability(np.array(hits[0].score)))]
        )
        assert elsewhere.probability(np.array([0.9])) == pytest.approx(
            elsewhere.there * alone.probability(np.array([0.9]))
        )

    def test_json_and_lines(self, world: Searcher) -> None:
        query = world.text_query("dog")
        result = world.judged(query, world.find(query, 12))
        content = json.loads(json.dumps(result.to_json()))
        assert (content["n_good"], content["cutoff"]) == (10, result.cutoff)
        assert [hit["good"] for hit in content["hits"]] == [True] * 10 + [False] * 2
        assert result.probabilities is not None
        assert content["hits"][0]["probability"] == pytest.approx(result.probabilities[0], abs=1e-4)
        lines = hit_lines(result.to_json()).splitlines()
        assert lines[0] == "10 good matches"
        assert lines[11] == "----  less sure"
        assert len(lines) == 14
        assert "%" in lines[1]

    def test_an_image_is_no_text(self, world: Searcher) -> None:
        query = world.like_query(10)
        assert world.judged(query, world.find(query, 5)).probabilities is None

    def test_a_second_opening_needs_no_encoder(self, world: Searcher) -> None:
        assert world.scale is not None

        def refuse() -> NamedDirections:
            raise AssertionError("the method was loaded")

        again = index_scale(world.index, LazyMethod(world.index.info, refuse))
        texts = world.text_query("dog").embeddings
        assert again is not None
        assert again.of_texts(texts) == world.scale.of_texts(texts)

    def test_a_damaged_file_in_the_cache_is_made_again(
        self, world: Searcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setenv("FOR_CACHE", str(tmp_path))
        first = index_scale(world.index, world.encoder)
        (path,) = (tmp_path / "calibration").glob("*.safetensors")
        path.write_bytes(path.read_bytes()[:-8])
        again = index_scale(world.index, world.encoder)
        assert "making it again" in caplog.text
        texts = world.text_query("dog").embeddings
        assert first is not None
        assert again is not None
        assert again.of_texts(texts) == first.of_texts(texts)


def test_too_few_images_tell_nothing(tmp_path: Path) -> None:
    class Never:
        info: MethodInfo = method_info(2, 8)

        def encode_texts(self, texts: Sequence[str]) -> torch.Tensor:
            return torch.from_numpy(random_units((len(texts), 8)))

    make_store(tmp_path / "store", random_units((module.MIN_IMAGES - 1, 2, 8)))
    build_index(tmp_path / "store", tmp_path / "index")
    searcher = load_searcher(tmp_path / "index", method=Never())  # type: ignore[arg-type]
    query = searcher.text_query("dog")
    result = searcher.judged(query, searcher.find(query, 3))
    assert (result.probabilities, result.n_good) == (None, None)
    assert "good" not in hit_lines(result.to_json())
    assert "n_good" not in result.to_json()
