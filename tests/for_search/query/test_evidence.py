"""The evidence for a match, against the embeddings that were indexed and the pixels that they were made of."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from for_model.data.images import load_image
from for_model.errors import ImageError, UsageError, WeightsError
from for_model.methods.clip_method import ClipMethod
from for_search.index.index_files import open_index
from for_search.library.library import Library
from for_search.query.evidence import (
    THING_COLOURS,
    cell_map,
    find_evidence,
    find_evidences,
    find_parts,
    heat_map,
    things_map,
)
from for_search.query.searcher import Searcher, searcher_of
from tests.helpers.tiny_index import make_library

METHODS = ("cluster-clip", "clip", "dense-clip", "for")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evidence")


@pytest.fixture(scope="module")
def library(folder: Path) -> Library:
    return make_library(folder, 6)


def by(library: Library, method: str) -> Searcher:
    searchers = [library.searcher(name) for name in library.names]
    return next(searcher for searcher in searchers if searcher.index.info.method == method)


@pytest.mark.parametrize("method", METHODS)
def test_is_of_the_hit_that_a_search_gives(library: Library, method: str) -> None:
    searcher = by(library, method)
    query = searcher.text_query("umbrella")
    for hit in searcher.find(query, 6).hits:
        found = find_evidence(searcher, hit.image.id, query.embeddings)
        assert (found.image, found.embedding) == (hit.image, hit.embedding)
        assert found.score == pytest.approx(hit.score, abs=1e-5)
        assert found.as_indexed
        assert found.cells.shape == (5, 5)
        assert found.cells.max() == 1
        assert found.cells.min() >= 0


@pytest.mark.parametrize("method", ["dense-clip", "cluster-clip"])
def test_the_cells_average_to_the_embedding_that_was_indexed(library: Library, method: str) -> None:
    """From the pixels again, without the heads: the mean of the dense embeddings of the cells that are marked."""
    searcher = by(library, method)
    made = searcher.method
    assert isinstance(made, ClipMethod)
    query = searcher.text_query("dog")
    for image in searcher.index.images:
        found = find_evidence(searcher, image.id, query.embeddings)
        pixels = made.preprocess(load_image(searcher.image_path(image), target=320))[None]
        dense = made.backbone.pool.project(made.backbone.features(pixels))[0]
        dense = dense / dense.norm(dim=-1, keepdim=True)  # [25, Co]
        mean = dense[torch.from_numpy(found.cells.reshape(-1) > 0)].mean(dim=0)
        indexed = torch.from_numpy(searcher.index.embeddings(image.id)[found.embedding])
        assert float(mean / mean.norm() @ indexed) == pytest.approx(1, abs=1e-3)


def test_of_several_query_embeddings_the_best_pair_counts(library: Library) -> None:
    searcher = by(library, "for")
    ids = [image.id for image in searcher.index.images]
    queries = searcher.like_query(ids[1]).embeddings  # [3, Co]
    found = find_evidence(searcher, ids[0], queries)
    pairs = [[float(y @ q) for q in queries] for y in searcher.index.embeddings(ids[0])]
    assert found.score == pytest.approx(max(map(max, pairs)))
    assert found.embedding == max(range(3), key=lambda i: max(pairs[i]))


def test_an_image_that_has_changed_is_told(library: Library, tmp_path: Path) -> None:
    searcher = by(library, "dense-clip")
    query = searcher.text_query("dog").embeddings
    for image in searcher.index.images:
        generator = np.random.default_rng(0)
        pixels = generator.integers(0, 256, (160, 160, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / image.path)
    changed = replace(searcher, image_root=tmp_path)
    assert not find_evidence(changed, searcher.index.images[0].id, query).as_indexed
    (tmp_path / searcher.index.images[0].path).unlink()
    with pytest.raises(ImageError, match="file not found"):
        find_evidence(changed, searcher.index.images[0].id, query)


def test_a_trained_head_is_found_by_its_hash(library: Library, folder: Path) -> None:
    index = open_index(folder / "for")
    with_head = searcher_of(index, weights="random", heads=[folder / "head.safetensors"])
    without = searcher_of(index, weights="random")
    query = without.text_query("dog")
    assert [hit.image for hit in without.find(query, 3).hits] == [hit.image for hit in with_head.find(query, 3).hits]
    image_id = index.images[0].id
    assert find_evidence(with_head, image_id, query.embeddings).as_indexed
    with pytest.raises(WeightsError, match="--head"):
        find_evidence(without, image_id, query.embeddings)
    with pytest.raises(WeightsError, match="--head"):
        without.image_query(Image.new("RGB", (160, 160)))


def test_ids_are_those_of_the_index(library: Library) -> None:
    searcher = by(library, "clip")
    query = searcher.text_query("dog").embeddings
    image_id = searcher.index.images[2].id
    assert find_evidence(searcher, str(image_id), query).image.id == image_id  # as it comes from an address
    for wrong in (10**9, "dog", ""):
        with pytest.raises(UsageError, match="no image of the index"):
            find_evidence(searcher, wrong, query)


def test_to_json(library: Library) -> None:
    searcher = by(library, "for")
    found = find_evidence(searcher, searcher.index.images[0].id, searcher.text_query("dog").embeddings)
    value = found.to_json()
    assert set(value) == {"id", "embedding", "score", "cells", "meaning", "as_indexed"}
    assert [len(row) for row in value["cells"]] == [5] * 5


def test_cells_are_shares_of_the_largest() -> None:
    shares = np.array([0.1, 0.2, 0.0, 0.4], np.float32)
    assert cell_map(shares).tolist() == [[0.25, 0.5], [0, 1]]
    assert cell_map(np.zeros(4, np.float32)).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("method", METHODS)
def test_each_place_belongs_to_the_part_that_is_most_about_it(library: Library, method: str) -> None:
    searcher = by(library, method)
    image, explained = searcher.index.images[3], searcher.method
    assert isinstance(explained, ClipMethod)
    parts = find_parts(searcher, image.id)
    picture = load_image(searcher.image_path(image), target=2 * explained.info.image_size)
    _, shares = explained.explain_images(explained.preprocess(picture)[None])
    of_all = (shares[0] / shares[0].sum(dim=1, keepdim=True)).numpy()
    assert parts.part.shape == (5, 5)
    assert parts.part.ravel().tolist() == [int(of_all[:, cell].argmax()) for cell in range(25)]
    assert parts.as_indexed
    for part, cells in enumerate(parts.cells):
        assert cells == pytest.approx(cell_map(shares[0, part].numpy()))
    said = parts.to_json()
    assert (said["id"], np.shape(said["cells"])) == (image.id, parts.cells.shape)
    if method == "dense-clip":
        assert parts.part.ravel().tolist() == list(range(25))


def test_scores_of_ones_own_choose_the_embedding(library: Library) -> None:
    searcher = by(library, "cluster-clip")
    image = searcher.index.images[2].id
    third = find_evidence(searcher, image, lambda rows: (np.arange(len(rows)) == 2).astype(np.float32))
    assert (third.embedding, third.score) == (2, 1)
    assert third.cells == pytest.approx(find_parts(searcher, image).cells[2])


def test_a_heat_map_is_bright_where_the_cells_are() -> None:
    cells = np.zeros((4, 4), dtype=np.float32)
    cells[3, 0] = 1  # the lower left
    drawn = heat_map(Image.new("RGB", (200, 80), "grey"), cells)
    assert (drawn.mode, drawn.size) == ("RGB", (200, 80))
    light = np.asarray(drawn.convert("L"), dtype=float)
    corners = light[:20, :50].mean(), light[:20, 150:].mean(), light[60:, 150:].mean()
    assert light[60:, :50].mean() > 1.5 * max(corners)
    assert max(corners) == pytest.approx(min(corners), abs=1)


def test_of_several_things_each_has_its_own(library: Library) -> None:
    searcher = by(library, "cluster-clip")
    things = [searcher.text_query(text).embeddings for text in ("umbrella", "dog")]
    image_id = searcher.index.images[2].id
    found = find_evidences(searcher, image_id, things)
    for one, queries in zip(found, things, strict=True):
        alone = find_evidence(searcher, image_id, queries)
        assert (one.embedding, one.score) == (alone.embedding, alone.score)
        assert one.cells == pytest.approx(alone.cells)


def test_each_thing_has_its_own_colour() -> None:
    left, right = np.zeros((2, 2), dtype=np.float32), np.zeros((2, 2), dtype=np.float32)
    left[:, 0], right[:, 1] = 1, 1
    grey = Image.new("RGB", (40, 40), (100, 100, 100))
    drawn = things_map(grey, [left, right])
    for x, colour in ((0, THING_COLOURS[0]), (39, THING_COLOURS[1])):
        expected = [0.25 * 100 + 0.75 * channel for channel in ImageColor.getrgb(colour)]
        assert drawn.getpixel((x, 20)) == pytest.approx(expected, abs=2)
    assert things_map(grey, []).getpixel((5, 5)) == (100, 100, 100)
    none = things_map(grey, [np.zeros((2, 2), dtype=np.float32)] * (len(THING_COLOURS) + 1))
    assert none.getpixel((5, 5)) == (100, 100, 100)
