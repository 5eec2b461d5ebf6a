"""An index that follows its store: only the difference is written, answers are exact, and readers see whole states."""

import itertools
import threading
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from for_model.errors import StoreError
from for_search.index import flat_engine, index_files, index_manifest
from for_search.index.flat_engine import FlatEngine
from for_search.index.index import SearchIndex
from for_search.index.index_files import build_index, open_index
from tests.helpers.store_making import dyadic_units, random_units, write_state

N, DIM = 3, 12


class Library:
    """A store that images come to and go from, its index, and what it should answer."""

    def __init__(self, folder: Path) -> None:
        self.store, self.index = folder / "store", folder / "index"
        self.store.mkdir()
        self.parts: dict[int, NDArray[np.float32]] = {}
        self.rows: dict[int, tuple[int, int]] = {}
        self._seeds = itertools.count()

    def add(self, *ids: int) -> None:
        number = len(self.parts)
        self.parts[number] = dyadic_units((len(ids), N, DIM), seed=next(self._seeds))  # many ties
        self.rows.update({image_id: (number, row) for row, image_id in enumerate(ids)})

    def remove(self, *ids: int) -> None:
        for image_id in ids:
            del self.rows[image_id]

    def rename(self, old: int, new: int) -> None:
        self.rows[new] = self.rows.pop(old)

    def update(self, *, rebuild: bool = False) -> SearchIndex:
        used = {number for number, _ in self.rows.values()}
        write_state(self.store, {n: part for n, part in self.parts.items() if n in used}, self.rows)
        return build_index(self.store, self.index, rebuild=rebuild)

    def answer(self, query: NDArray[np.float32], k: int) -> list[tuple[int, float, int]]:
        found = []
        for image_id, (number, row) in self.rows.items():
            scores = self.parts[number][row] @ query
            found.append((image_id, float(scores.max()), int(scores.argmax())))
        return sorted(found, key=lambda each: (-each[1], each[0]))[:k]

    def check(self, index: SearchIndex) -> None:
        assert [image.id for image in index.images] == sorted(self.rows)
        queries = dyadic_units((4, DIM), seed=99)
        for k in (1, 3, len(self.rows) + 5):
            for query, hits in zip(queries, index.search(queries, k), strict=True):
                assert [(hit.image.id, hit.score, hit.embedding) for hit in hits] == self.answer(query, k)
        scores = index.score_images(queries)
        for column, image in enumerate(index.images):
            number, row = self.rows[image.id]  # type: ignore[index]
            np.testing.assert_array_equal(index.embeddings(image.id), self.parts[number][row])
            np.testing.assert_array_equal(scores[:, column], (self.parts[number][row] @ queries.T).max(axis=0))


@pytest.fixture
def library(tmp_path: Path) -> Library:
    made = Library(tmp_path)
    made.add(*range(0, 80, 2))
    made.check(made.update())
    return made


def segments(index: SearchIndex) -> dict[str, int]:
    """The segments on disk: name -> inode of the engine's file."""
    return {path.parent.name: path.stat().st_ino for path in index.path.glob("*/index.faiss")}


def test_what_comes_and_goes_leaves_the_large_segment_as_it_is(library: Library) -> None:
    (before,) = segments(library.update()).items()
    for step in (
        lambda: library.add(1, 3, 81),
        lambda: library.remove(4, 3),
        lambda: library.rename(6, 7),
        lambda: library.add(3),  # an id that was there before, with another content
        lambda: (library.remove(8), library.add(8)),
    ):
        step()
        index = library.update()
        library.check(index)
        library.check(open_index(library.index, verify="full"))
        after = segments(index)
        assert before in after.items()
        assert len(after) == len(index.segments) <= 2
    assert library.update().path == library.index


def test_nothing_is_written_where_nothing_has_changed(library: Library) -> None:
    library.add(1)
    library.update()
    before = {path: path.stat().st_mtime_ns for path in library.index.rglob("*") if path.name != "lock"}
    library.update()
    assert {path: path.stat().st_mtime_ns for path in library.index.rglob("*") if path.name != "lock"} == before


def test_a_segment_of_which_a_fifth_is_gone_is_written_again(library: Library) -> None:
    before = segments(library.update())
    library.remove(*range(0, 16, 2))
    assert segments(library.update()) == before  # a fifth, not more
    library.remove(16)
    index = library.update()
    assert not before.keys() & segments(index).keys()
    library.check(index)


def test_rebuilding_merges_all(library: Library) -> None:
    library.add(1)
    assert len(library.update().segments) == 2
    index = library.update(rebuild=True)
    assert len(index.segments) == 1
    library.check(index)


def test_images_that_are_gone_never_take_a_place(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best rows of all are dead: k distinct images that are there must be found nevertheless."""
    monkeypatch.setattr(flat_engine, "_FIRST_FETCH", 1)
    query = dyadic_units((1, DIM), seed=5)
    number, _ = library.rows[0]
    for image_id in range(0, 14, 2):
        library.parts[number][library.rows[image_id][1]] = query
    for path in (*library.store.iterdir(), *library.index.rglob("*.*")):
        path.unlink()
    library.update(rebuild=True)
    library.remove(*range(0, 14, 2))
    index = library.update()
    assert len(index.segments[0].ranks) == 40
    library.check(index)
    assert [hit.image.id for hit in index.search(query, 5)[0]] == [i for i, _, _ in library.answer(query[0], 5)]


def test_only_what_is_allowed_is_found(library: Library) -> None:
    library.add(1, 3)
    library.remove(0, 2)
    index = library.update()
    queries = dyadic_units((3, DIM), seed=4)
    for chosen in ({1, 4, 9, 50}, {3}, set()):
        allowed = np.array([image.id in chosen for image in index.images])
        for query, hits in zip(queries, index.search(queries, 3, allowed), strict=True):
            expected = [each for each in library.answer(query, 99) if each[0] in chosen][:3]
            assert [(hit.image.id, hit.score, hit.embedding) for hit in hits] == expected


def test_random_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flat_engine, "_FIRST_FETCH", 2)
    rng = np.random.default_rng(0)
    made = Library(tmp_path)
    made.add(*range(20))
    for _ in range(25):
        free = [i for i in range(60) if i not in made.rows]
        made.add(*rng.choice(free, rng.integers(1, 5), replace=False).tolist())
        made.remove(*rng.choice(sorted(made.rows), rng.integers(0, 4), replace=False).tolist())
        made.check(made.update())


def test_an_index_of_something_else_is_replaced_whole(library: Library, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Library(tmp_path / "other")
    other.index = library.index
    other.add(5, 6)
    old = library.update()
    other.check(other.update())
    library.check(old)  # who has opened the old one keeps it


def test_whoever_read_the_manifest_of_before_reads_again(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    stale = index_manifest.read_index_manifest(library.index)
    library.remove(*range(0, 30, 2))
    library.update()
    read = index_files.read_index_manifest
    answers = iter([stale])
    monkeypatch.setattr(index_files, "read_index_manifest", lambda path: next(answers, None) or read(path))
    library.check(open_index(library.index))
    (next(library.index.glob("segment-*")) / "index.faiss").unlink()
    with pytest.raises(StoreError, match="is missing: build the index again"):
        open_index(library.index)


@pytest.mark.slow
def test_answers_of_eight_threads_are_always_those_of_some_state(library: Library) -> None:
    """Each answer of an index opened while another thread writes is right for one of the states that it wrote."""
    query = dyadic_units((1, DIM), seed=7)
    states, problems, done = set(), [], threading.Event()

    def state() -> tuple[tuple[int, float, int], ...]:
        return tuple(library.answer(query[0], 5))

    def read() -> None:
        try:
            while True:
                last = done.is_set()
                hits = open_index(library.index).search(query, 5)[0]
                seen.append(tuple((hit.image.id, hit.score, hit.embedding) for hit in hits))
                if last:
                    break
        except BaseException as error:
            problems.append(error)

    seen: list[tuple[tuple[int, float, int], ...]] = []
    states.add(state())
    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for step in range(12):
        library.add(101 + 2 * step)
        library.remove(*[i for i, _, _ in library.answer(query[0], 2)])
        states.add(state())
        library.update()
    done.set()
    for thread in threads:
        thread.join()
    assert not problems
    assert len(seen) >= 8
    assert set(seen) <= states


def test_a_flipped_byte_is_found_before_the_first_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the first MiB, which is compared when the index is opened."""
    made = Library(tmp_path)
    made.parts[0] = random_units((800, N, 512))
    made.rows = {i: (0, i) for i in range(800)}
    path = next(made.update().path.glob("*/index.faiss"))
    whole = path.read_bytes()
    for position in (len(whole) - 1, 1 << 20, (1 << 20) + 12345):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 64]) + whole[position + 1 :])
        index = open_index(made.index)
        for use in (
            lambda opened: opened.search(random_units((1, 512)), 1),
            lambda opened: opened.score_images(random_units((1, 512))),
            lambda opened: opened.embeddings(3),
        ):
            with pytest.raises(StoreError, match=r"index\.faiss is damaged, its bytes differ"):
                use(index)
    path.write_bytes(whole)
    index = open_index(made.index)
    index.search(random_units((1, 512)), 1)
    monkeypatch.setattr("for_search.index.checked_file.os.pread", lambda *_: pytest.fail("read again"))
    index.search(random_units((1, 512)), 1)
    assert isinstance(index.segments[0].engine, FlatEngine)


def wait_for_checks() -> None:
    for thread in threading.enumerate():
        if thread.name == "check":
            thread.join()


def test_of_what_is_read_in_parts_damage_is_found_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FlatEngine, "read_in_parts", FlatEngine.file_names)
    made = Library(tmp_path)
    made.parts[0] = random_units((800, N, 512))
    made.rows = {i: (0, i) for i in range(800)}
    path = next(made.update().path.glob("*/index.faiss"))
    query = random_units((1, 512))
    sound = open_index(made.index)
    hits = sound.search(query, 3)
    wait_for_checks()
    assert sound.search(query, 3) == hits
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 64]))
    with pytest.raises(StoreError, match="bytes differ"):  # reads all, and so waits
        open_index(made.index).search(query, 3, exact=True)
    with pytest.raises(StoreError, match="bytes differ"):
        open_index(made.index).score_images(query)
    index = open_index(made.index)
    index.search(query, 3)  # may come before the damage is found
    wait_for_checks()
    with pytest.raises(StoreError, match="bytes differ"):
        index.search(query, 3)


def test_a_file_that_may_not_be_read_is_not_called_damaged(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> int:  # chmod stops nobody who is root
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("for_search.index.checked_file.os.open", denied)
    with pytest.raises(StoreError, match=r"can't be read \(Permission denied\): check its permi"):
        open_index(library.index)
