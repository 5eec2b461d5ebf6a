"""The sketches of an index: written beside its segments, grown with them, verified, and scanned for boxes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from for_model.errors import StoreError
from for_search.index.index_files import build_index, open_index
from for_search.index.sketches import box_scan
from for_search.index.sketches.box_scan import box_bounds, count_members
from for_search.index.sketches.sketch_encoder import principal_encoder
from for_search.index.sketches.sketch_files import check_sketches, kept_encoder, make_sketches, open_sketches
from tests.helpers.planted_index import make_planted
from tests.helpers.store_making import random_units


def test_sketches_are_those_of_the_embeddings(tmp_path: Path) -> None:
    index = make_planted(tmp_path).index
    assert open_sketches(index) is None
    assert kept_encoder(index.path) is None
    made = make_sketches(index)
    assert made.n_bytes == 300 * 4 * 24  # width 24: fewer numbers than 32
    rows = index.take(range(300)).reshape(-1, 24)
    wanted = made.encoder.sketches(rows)
    counts = np.zeros(len(rows), np.uint8)
    [(images, levels, _)] = made.held(counts, 0)
    np.testing.assert_array_equal(levels, wanted)
    np.testing.assert_array_equal(images, np.repeat(np.arange(300), 4))
    assert kept_encoder(index.path).sha256 == made.encoder.sha256  # type: ignore[union-attr]
    stamps = {path: path.stat().st_mtime_ns for path in index.path.rglob("sketches/*")}
    assert make_sketches(open_index(index.path)).encoder.sha256 == made.encoder.sha256
    assert stamps == {path: path.stat().st_mtime_ns for path in index.path.rglob("sketches/*")}
    assert len(stamps) == 3
    other = principal_encoder(random_units((100, 24), seed=1), index.info.text_space)
    assert make_sketches(index, other).encoder.sha256 == other.sha256
    foreign = principal_encoder(random_units((100, 24), seed=1), ("RN50", "b" * 64, 24))
    with pytest.raises(StoreError, match="the sketch encoder is for RN50"):
        make_sketches(index, foreign)


def test_damage_is_found_and_made_good(tmp_path: Path) -> None:
    index = make_planted(tmp_path).index
    made = make_sketches(index)
    assert all(error is None for _, error in check_sketches(index.path))
    [path] = index.path.rglob("sketches.bin")
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"sketches.bin is damaged"):
        open_sketches(index)
    assert [name for name, error in check_sketches(index.path) if error] == ["segment-000001/sketches/sketches.bin"]
    note = path.parent / "note.json"
    value = json.loads(note.read_text())
    note.write_text(json.dumps({**value, "n_rows": 1}))
    with pytest.raises(StoreError, match=r"note.json is damaged"):
        open_sketches(index)
    assert make_sketches(index).encoder.sha256 == made.encoder.sha256
    assert all(error is None for _, error in check_sketches(index.path))


def test_an_index_that_grows_keeps_the_encoder_and_sketches_the_rest(tmp_path: Path) -> None:
    index = make_planted(tmp_path / "small", n_images=200).index
    made = make_sketches(index)
    larger = make_planted(tmp_path / "large", n_images=300)
    shutil.rmtree(tmp_path / "small" / "store")
    shutil.copytree(tmp_path / "large" / "store", tmp_path / "small" / "store")
    encoder = kept_encoder(index.path)
    grown = build_index(tmp_path / "small" / "store", index.path)
    assert len(grown.images) == 300
    again = make_sketches(grown, encoder)
    assert again.encoder.sha256 == made.encoder.sha256
    assert again.n_bytes == 300 * 4 * 24
    assert larger.index.info.text_space == grown.info.text_space


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=(pytest.mark.slow, pytest.mark.compiled))])
def test_boxes_hold_what_a_loop_says(compiled: bool) -> None:
    if compiled:
        pytest.importorskip("numba")
    generator = np.random.default_rng(0)
    points = generator.integers(0, 256, (5000, 7), dtype=np.uint8)
    members = []
    for _ in range(5):
        boxes = []
        for _ in range(int(generator.integers(0, 4))):
            columns = generator.choice(7, int(generator.integers(1, 4)), replace=False)
            low = generator.uniform(-50, 200, len(columns))
            boxes.append((columns, low, low + generator.uniform(0, 150, len(columns))))
        members.append(boxes)
    members.append(
        [(np.array([0]), np.array([10.2]), np.array([10.8])), (np.array([1]), np.array([-9.0]), np.array([999.0]))]
    )
    members.append([(np.array([0]), np.array([256.0]), np.array([300.0]))])
    wanted = [
        sum(
            any(all(low[i] <= point[c] <= high[i] for i, c in enumerate(columns)) for columns, low, high in boxes)
            for boxes in members
        )
        for point in points[:300].tolist()
    ]
    blocks = [np.ascontiguousarray(part.T) for part in (points[:4500], points[4500:])]
    counts = np.concatenate(count_members(blocks, box_bounds(members), compiled))
    np.testing.assert_array_equal(counts[:300], wanted)
    assert len(counts) == 5000


def test_plain_loops_and_numpy_count_the_same() -> None:
    points = np.random.default_rng(1).integers(0, 256, (3, 700), dtype=np.uint8)
    members = [
        [(np.array([0, 2]), np.array([20.0, 0.0]), np.array([90.0, 128.0]))],
        [(np.array([1]), np.zeros(1), np.ones(1) * 9)],
    ]
    bounds = box_bounds(members)
    fields = (bounds.member, bounds.first, bounds.column, bounds.low, bounds.width)
    looped = np.zeros(700, np.uint8)
    with np.errstate(over="ignore"):
        box_scan._looped_scan(points, *fields, looped)
    np.testing.assert_array_equal(looped, count_members([points], bounds, compiled=False)[0])


def test_no_box_holds_nothing() -> None:
    points = np.zeros((3, 10), np.uint8)
    assert (count_members([points], box_bounds([[], []]), compiled=False)[0] == 0).all()
