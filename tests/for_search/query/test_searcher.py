import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from for_model.data.dataset import ImageRecord
from for_model.data.images import load_image
from for_model.errors import StoreError, UsageError, WeightsError
from for_model.methods import build as building
from for_model.methods.protocol import LazyMethod, Method, MethodInfo
from for_search.index.index import Hit
from for_search.index.index_files import build_index, open_index
from for_search.query.hit_lines import hit_lines
from for_search.query.searcher import Searcher, SearchResult, load_searcher, searcher_of
from for_search.store.store import open_store
from tests.helpers.store_making import change_manifest, make_store, method_info, random_units
from tests.helpers.tiny_index import make_searcher

WIDTH = 32


class ByName:
    """A method whose texts' embeddings are looked up: a text that names row 7 of the store is encoded as that row."""

    def __init__(self, rows: np.ndarray, info: MethodInfo) -> None:
        self.rows = torch.from_numpy(rows.reshape(-1, WIDTH))
        self.info = info
        self.device = torch.device("cpu")

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        raise NotImplementedError

    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def encode_texts(self, texts: Sequence[str]) -> torch.Tensor:
        numbers = [int("".join(c for c in text if c.isdigit())) for text in texts]
        return self.rows[numbers]


@pytest.fixture
def embeddings() -> np.ndarray:
    return random_units((20, 3, WIDTH))


@pytest.fixture
def index_path(tmp_path: Path, embeddings: np.ndarray) -> Path:
    make_store(tmp_path / "store", embeddings)
    return build_index(tmp_path / "store", tmp_path / "index").path


@pytest.fixture
def searcher(index_path: Path, embeddings: np.ndarray) -> Searcher:
    return load_searcher(index_path, method=ByName(embeddings, method_info(3, WIDTH)))


def test_finds_the_image_that_a_text_names(searcher: Searcher) -> None:
    assert isinstance(searcher.method, Method)
    for text in ("row 14", "this is a whole sentence about row 14"):
        result = searcher.search(text, k=4)
        assert (result.query, result.k, len(result.hits)) == (text, 4, 4)
        best = result.hits[0]
        assert (best.image.id, best.embedding) == (10 + 3 * (14 // 3), 14 % 3)
        assert best.score == pytest.approx(1, abs=1e-3)
        assert result.encode_ms > 0
        assert result.search_ms > 0


def test_more_hits_than_images(searcher: Searcher) -> None:
    assert len(searcher.search("row 1", k=500).hits) == 20


@pytest.mark.parametrize(("text", "k"), [("", 5), ("  \n", 5), ("row 1", 0)])
def test_refuses_an_empty_query_and_no_hits(searcher: Searcher, text: str, k: int) -> None:
    with pytest.raises(UsageError):
        searcher.search(text, k)


class TestSearchByImage:
    def test_the_mean_of_the_best_is_the_score(self, searcher: Searcher, embeddings: np.ndarray) -> None:
        kept = embeddings.astype(np.float16).astype(np.float64)
        query = searcher.like_query(10 + 3 * 5)
        assert query.embeddings == pytest.approx(kept[5])
        hits = searcher.find(query, 20).hits
        scores = {}
        for number, image in enumerate(kept):
            best = [max(float(y @ q) for y in image) for q in kept[5]]
            scores[10 + 3 * number] = sum(best) / 3
        assert [hit.image.id for hit in hits] == sorted(scores, key=lambda i: -scores[i])
        assert [hit.score for hit in hits] == pytest.approx([scores[hit.image.id] for hit in hits], abs=1e-6)
        assert hits[0].image.id == 25  # itself
        pairs = [[float(y @ q) for q in kept[5]] for y in kept[(hits[3].image.id - 10) // 3]]
        assert hits[3].embedding == max(range(3), key=lambda i: max(pairs[i]))

    def test_of_one_embedding_as_of_a_text(self, searcher: Searcher) -> None:
        text, part = searcher.text_query("row 16"), searcher.like_query("25", 1)  # row 16 is embedding 1 of image 25
        assert part.label == "like part 1 of image 25"
        assert [hit.image for hit in searcher.find(part, 20).hits] == [
            hit.image for hit in searcher.find(text, 20).hits
        ]

    def test_ties_break_by_id(self, tmp_path: Path, embeddings: np.ndarray) -> None:
        make_store(tmp_path / "twins", np.concatenate([embeddings, embeddings]))
        build_index(tmp_path / "twins", tmp_path / "twins-index")
        twins = load_searcher(tmp_path / "twins-index", method=ByName(embeddings, method_info(3, WIDTH)))
        ids = [hit.image.id for hit in twins.find(twins.like_query(10), 4).hits]
        assert ids[:2] == [10, 10 + 3 * 20]
        assert ids[2] < ids[3]

    def test_what_the_index_does_not_have(self, searcher: Searcher) -> None:
        for arguments in ((11,), (10, 3), (10, -1), ("dog",)):
            with pytest.raises(UsageError):
                searcher.like_query(*arguments)
        for k in (0, -1):
            with pytest.raises(UsageError):
                searcher.find(searcher.like_query(10), k)

    def test_an_image_is_encoded_as_the_index_encodes(self, tmp_path: Path) -> None:
        made = make_searcher(tmp_path, 4)
        image = made.index.images[2]
        query = made.image_query(load_image(made.image_path(image), target=320))
        assert query.embeddings == pytest.approx(made.index.embeddings(image.id), abs=1e-3)
        assert made.find(query, 4).hits[0].image == image


def test_threads_share_a_searcher(searcher: Searcher) -> None:
    texts = [f"row {i}" for i in range(60)]
    expected = [searcher.search(text).hits for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert [result.hits for result in pool.map(searcher.search, texts)] == expected


def test_another_method_is_refused(index_path: Path, embeddings: np.ndarray) -> None:
    with pytest.raises(StoreError, match="RN50 "):
        load_searcher(index_path, method=ByName(embeddings, method_info(3, WIDTH, backbone="RN50")))


class TestRebuiltMethod:
    """`load_searcher` without a method builds the one that the index names."""

    @pytest.fixture
    def built(self, monkeypatch: pytest.MonkeyPatch, embeddings: np.ndarray) -> list[dict[str, object]]:
        """The arguments of every call of `build_method`; a weights file named `lost` can't be read."""
        calls: list[dict[str, object]] = []

        def build(method: str, backbone: str, weights: str | None, **options: object) -> ByName:
            calls.append({"method": method, "backbone": backbone, "weights": weights, **options})
            if weights == "lost.safetensors":
                raise WeightsError("no such weights")
            return ByName(embeddings, method_info(3, WIDTH))

        monkeypatch.setattr(building, "build_method", build)
        return calls

    def rename_weights(self, index_path: Path, weights: str) -> None:
        change_manifest(index_path, lambda manifest: manifest["method"].update(weights=weights))

    def test_is_what_the_index_names(self, index_path: Path, built: list[dict[str, object]]) -> None:
        assert len(load_searcher(index_path, device="cpu").search("row 3").hits) == 10
        arguments = {"method": "cluster-clip:3", "backbone": "RN-mini", "weights": None, "image_size": 160}
        assert built == [{**arguments, "device": "cpu", "loaded": None}]

    @pytest.mark.parametrize(
        ("recorded", "given", "expected"),
        [("openai", None, "openai"), ("random", None, "random"), ("mine.pt", "/far/mine.pt", "/far/mine.pt")],
    )
    def test_has_the_weights_recorded_or_given(
        self, index_path: Path, built: list[dict[str, object]], recorded: str, given: str | None, expected: str
    ) -> None:
        self.rename_weights(index_path, recorded)
        load_searcher(index_path, weights=given)
        assert built[0]["weights"] == expected

    def test_says_how_to_give_a_file_that_is_not_found(self, index_path: Path, built: list[dict[str, object]]) -> None:
        self.rename_weights(index_path, "lost.safetensors")
        with pytest.raises(WeightsError, match=r"'lost.safetensors', .*no such weights.*; if they are a file"):
            load_searcher(index_path)
        with pytest.raises(WeightsError, match=r"^no such weights$"):
            load_searcher(index_path, weights="lost.safetensors")

    def test_of_a_real_backbone(self, tmp_path: Path) -> None:
        method = building.build_method("cluster-clip:3", "RN-mini", "random", image_size=64, device="cpu")
        store = make_store(tmp_path / "store", random_units((4, 3, method.info.dim)))
        change_manifest(store.path, lambda manifest: manifest.update(method=method.info.to_json()))
        assert open_store(store.path).info == method.info
        build_index(store.path, tmp_path / "index")
        searcher = load_searcher(tmp_path / "index", device="cpu")
        assert searcher.method.info == method.info
        assert len(searcher.search("a red bicycle", 2).hits) == 2

    @pytest.mark.slow
    @pytest.mark.parametrize("spec", ["for+", "cluster-clip:3", "clip"])
    def test_of_weights_that_come_with_for_is_loaded_for_images_alone(self, tmp_path: Path, spec: str) -> None:
        method = building.build_method(spec, device="cpu")
        info = method.info
        store = make_store(tmp_path / "store", random_units((40, info.n_embeddings, info.dim)))
        change_manifest(store.path, lambda manifest: manifest.update(method=info.to_json()))
        build_index(store.path, tmp_path / "index")
        searcher = load_searcher(tmp_path / "index")
        query = searcher.text_query("a red bicycle")
        result = searcher.judged(query, searcher.find(query, 2))
        assert result.n_good is not None
        assert not searcher.encoder.loaded
        assert searcher.embeds_images
        loaded = load_searcher(tmp_path / "index", device="cpu")  # a device is asked for: it is loaded at once
        assert loaded.encoder.loaded
        np.testing.assert_allclose(query.embeddings, loaded.text_query("a red bicycle").embeddings, atol=1e-6)
        assert searcher.image_query(Image.new("RGB", (9, 9))).embeddings.shape == (info.n_embeddings, info.dim)
        assert searcher.encoder.loaded
        with pytest.raises(UsageError, match="is empty"):
            load_searcher(tmp_path / "index").text_query(" ")


class TestImagePath:
    def test_lies_under_the_image_root(self, searcher: Searcher, index_path: Path, tmp_path: Path) -> None:
        image = searcher.index.images[0]
        assert searcher.image_path(image) == tmp_path / "images" / "sub" / "10.jpg"
        moved = load_searcher(index_path, method=searcher.method, image_root=tmp_path / "a" / ".." / "moved")
        assert moved.image_path(image) == tmp_path / "moved" / "sub" / "10.jpg"

    def test_a_relative_image_root_becomes_absolute(
        self, searcher: Searcher, index_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        moved = load_searcher(index_path, method=searcher.method, image_root=Path("here"))
        assert moved.image_path(searcher.index.images[0]) == tmp_path / "here" / "sub" / "10.jpg"

    def test_no_link_leads_out_of_it(self, searcher: Searcher, tmp_path: Path) -> None:
        (tmp_path / "images").mkdir()
        (tmp_path / "secret.jpg").write_bytes(b"secret")
        (tmp_path / "images" / "own.jpg").write_bytes(b"own")
        for name, target in (("out.jpg", "../secret.jpg"), ("loop.jpg", "loop.jpg"), ("in.jpg", "own.jpg")):
            (tmp_path / "images" / name).symlink_to(target)
        assert searcher.image_path(ImageRecord(1, "in.jpg")).read_bytes() == b"own"
        for name in ("out.jpg", "loop.jpg"):
            with pytest.raises(StoreError, match="outside"):
                searcher.image_path(ImageRecord(1, name))

    @pytest.mark.parametrize("path", ["../secret.jpg", "/etc/passwd", "sub/../../secret.jpg", "../images-too/a.jpg"])
    def test_never_leads_out_of_it(self, searcher: Searcher, path: str) -> None:
        with pytest.raises(StoreError, match="outside"):
            searcher.image_path(ImageRecord(1, path))


class TestFormats:
    result = SearchResult(
        "cat",
        3,
        (
            Hit(ImageRecord(7, "a/7.jpg"), 0.31254, 12),
            Hit(ImageRecord("b", "b \x1b[2Jü\n.jpg"), -0.5, 3),
        ),
        1.23456,
        2.0,
    )

    def test_text(self) -> None:
        assert hit_lines(self.result.to_json()).splitlines() == [
            "1  0.3125  12  a/7.jpg",
            "2  -0.5000   3  b \\x1b[2Jü\\n.jpg",
        ]
        assert hit_lines(replace(self.result, hits=()).to_json()) == "no images"

    def test_ranks_line_up(self) -> None:
        lines = hit_lines(replace(self.result, hits=self.result.hits[:1] * 10).to_json()).splitlines()
        assert lines[0].startswith(" 1  0.3")
        assert lines[9].startswith("10  0.3")

    def test_json(self) -> None:
        value = json.loads(json.dumps(self.result.to_json()))
        assert value == {
            "query": "cat",
            "k": 3,
            "hits": [
                {"rank": 1, "id": 7, "path": "a/7.jpg", "score": 0.31254, "embedding": 12},
                {"rank": 2, "id": "b", "path": "b \x1b[2Jü\n.jpg", "score": -0.5, "embedding": 3},
            ],
            "latency_ms": {"encode": 1.235, "search": 2.0, "total": 3.235},
        }


def test_known_texts_need_no_method_and_loading_counts_for_no_encoding(
    index_path: Path, embeddings: np.ndarray
) -> None:
    method = ByName(embeddings, method_info(3, WIDTH))

    def load() -> Method:
        time.sleep(0.5)
        return method

    lazy = LazyMethod(method.info, load)
    known = {"row 4": embeddings.reshape(-1, WIDTH)[4]}
    searcher = searcher_of(open_index(index_path), method=lazy, texts=known)
    first = searcher.search("row 4", 1)
    assert (first.hits[0].image.id, first.encode_ms, lazy.loaded) == (searcher.index.images[1].id, 0, False)
    other = searcher.search("row 7", 1)
    assert lazy.loaded
    assert 0 < other.encode_ms < 400
    assert searcher.search("row 4", 1).encode_ms > 0  # from now on all are encoded, and the time is that
