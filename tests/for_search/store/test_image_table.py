import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from for_model.data.dataset import ImageId, ImageRecord
from for_model.errors import StoreError, UsageError
from for_search.store.image_table import IMAGE_COLUMNS, RESERVED_COLUMNS, ImageRow, ImageTable, write_image_table


def rows(ids: list[ImageId]) -> list[ImageRow]:
    return [ImageRow(ImageRecord(i, f"trips/{i}.jpg"), {"size": n, "rating": n % 3}) for n, i in enumerate(ids)]


def table(path: Path, *ids: ImageId) -> ImageTable:
    write_image_table(path, rows(list(ids)), {"rating": "INTEGER"})
    return ImageTable.open(path)


class TestImageTable:
    def test_is_a_sequence_of_records(self, tmp_path: Path) -> None:
        images = table(tmp_path / "t", *range(0, 5000, 2))
        expected = tuple(ImageRecord(i, f"trips/{i}.jpg") for i in range(0, 5000, 2))
        assert len(images) == 2500
        assert tuple(images) == expected
        assert images[3:9:2] == expected[3:9:2]
        assert (images[0], images[-1], images[1234]) == (expected[0], expected[-1], expected[1234])
        for outside in (2500, -2501):
            with pytest.raises(IndexError, match="of 2500 images"):
                images[outside]

    def test_gives_several_records_in_the_order_asked_for(self, tmp_path: Path) -> None:
        images = table(tmp_path / "t", *range(0, 5000, 2))
        positions = [*range(2400, 100, -2), 7, 7, 0]  # more than one question to SQLite takes
        assert images.records(positions) == [images[position] for position in positions]
        assert images.records([]) == []

    @pytest.mark.parametrize(
        "ids", [(1, 5, 10, 2**40), ("B", "a.jpg", "b/é.jpg", "b/\U0001f600.jpg", "z"), ("10", "9")]
    )
    def test_finds_positions_by_id(self, tmp_path: Path, ids: tuple[ImageId, ...]) -> None:
        images = table(tmp_path / "t", *ids)
        assert [images.position(i) for i in ids] == list(range(len(ids)))
        assert images.position(str(ids[1])) == 1
        for unknown in ("", "nobody", 7, "b"):
            with pytest.raises(UsageError, match="no image of the index has the id"):
                images.position(unknown)

    def test_gives_all_columns_of_an_image(self, tmp_path: Path) -> None:
        path = tmp_path / "t"
        known = {"width": 4, "taken": "2024-05-31 10:00:00", "latitude": -12.5, "my note": 'a "b"', "Größe": 1.5}
        write_image_table(
            path,
            [ImageRow(ImageRecord("a.jpg", "a.jpg"), known), ImageRow(ImageRecord("x/y/b.jpg", "x/y/b.jpg"))],
            {"my note": "TEXT", "Größe": "REAL"},
        )
        images = ImageTable.open(path)
        assert images.columns == ("id", *IMAGE_COLUMNS, "my note", "Größe")
        expected = {**dict.fromkeys([*IMAGE_COLUMNS, "my note", "Größe"]), **known, "path": "a.jpg", "folder": ""}
        assert images.row(0) == ImageRow(ImageRecord("a.jpg", "a.jpg"), expected)
        assert images.row(1).cells["folder"] == "x/y/"
        assert images.row(1).cells["my note"] is None

    def test_the_same_rows_give_the_same_bytes(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            table(tmp_path / name, *range(3000))
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]  # no journal beside them

    def test_an_empty_table(self, tmp_path: Path) -> None:
        images = table(tmp_path / "t")
        assert (len(images), tuple(images), images.where("size > 0").tolist()) == (0, (), [])
        with pytest.raises(UsageError, match="no image"):
            images.position("a")

    @pytest.mark.parametrize("ids", [(2, 1), (1, 1), ("b", "a")])
    def test_ids_must_ascend(self, tmp_path: Path, ids: tuple[ImageId, ...]) -> None:
        with pytest.raises(StoreError, match="must be ascending"):
            write_image_table(tmp_path / "t", rows(list(ids)), {"rating": "INTEGER"})
        assert list(tmp_path.iterdir()) == []

    def test_rows_are_written_as_they_come(self, tmp_path: Path) -> None:
        """No more than one row waits in memory, however many there are."""
        alive = 0

        class Counted(dict):  # type: ignore[type-arg]
            def __del__(self) -> None:
                nonlocal alive
                alive -= 1

        def each() -> Iterator[ImageRow]:
            nonlocal alive
            for i in range(100):
                alive += 1
                assert alive <= 4
                yield ImageRow(ImageRecord(i, f"{i}"), Counted())

        write_image_table(tmp_path / "t", each())

    def test_opening_reads_no_rows(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What opening costs doesn't grow with the table: SQLite takes as many steps for 20,000 images as for 20."""
        connect, steps = sqlite3.connect, 0

        def step() -> None:
            nonlocal steps
            steps += 1

        def counting(*args: object, **options: object) -> sqlite3.Connection:
            connection = connect(*args, **options)  # type: ignore[call-overload]
            connection.set_progress_handler(step, 1)
            return connection

        counts = []
        for n_images in (20, 20_000):
            table(tmp_path / str(n_images), *range(n_images))
            with monkeypatch.context() as patch:
                patch.setattr(sqlite3, "connect", counting)
                steps = 0
                assert len(ImageTable.open(tmp_path / str(n_images))) == n_images
            counts.append(steps)
        assert 0 < counts[0] == counts[1]

    def test_stays_readable_when_its_file_is_replaced(self, tmp_path: Path) -> None:
        images = table(tmp_path / "t", *range(2000))
        table(tmp_path / "t", "other")
        assert images.where("size < 3").tolist() == [0, 1, 2]
        (tmp_path / "t").unlink()
        assert len(tuple(images)) == 2000
        assert images.where("size = 1999").tolist() == [1999]

    def test_can_be_read_only(self, tmp_path: Path) -> None:
        folder = tmp_path / "with ? # and %20"
        folder.mkdir()
        table(folder / "t", 1, 2)
        (folder / "t").chmod(0o444)
        folder.chmod(0o555)
        try:
            assert len(ImageTable.open(folder / "t")) == 2
            with pytest.raises(sqlite3.Error, match="readonly"):
                ImageTable.open(folder / "t")._rows.execute("DELETE FROM images")
        finally:
            folder.chmod(0o755)

    def test_threads_share_one(self, tmp_path: Path) -> None:
        images = table(tmp_path / "t", *range(3000))

        def look(n: int) -> bool:
            found = images.where(f"size >= {n} and size < {n + 5}").tolist()
            return found == list(range(n, n + 5)) and images[n].id == n == images.position(n)

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(look, range(0, 2900, 29)))

    def test_what_is_no_table_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match="is missing"):
            ImageTable.open(tmp_path / "t")
        for content in (b"", b"no database", b"SQLite format 3\0" + b"\xff" * 4096):
            (tmp_path / "t").write_bytes(content)
            with pytest.raises(StoreError, match=r"is damaged|version 0, expected 1"):
                ImageTable.open(tmp_path / "t")

    def test_damage_is_told_in_one_line(self, tmp_path: Path) -> None:
        path = tmp_path / "t"
        table(path, *range(3000))
        content = bytearray(path.read_bytes())
        pages = range(2 * 4096, len(content) - 4 * 4096, 4096)  # without the last ones, which opening looks at
        for page in pages:
            content[page : page + 100] = b"\xff" * 100
        path.write_bytes(content)
        images = ImageTable.open(path)
        for read in (lambda: tuple(images), lambda: images.where("size > 3"), lambda: images.row(1000)):
            with pytest.raises(StoreError, match=r"is damaged .*: build the index again"):
                read()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageTable:
    path = tmp_path_factory.mktemp("where") / "t"
    cells = [
        {"size": 10, "taken": "2023-12-31 23:59:59", "labels": "dog;person", "my note": "it's"},
        {"size": 200, "taken": "2024-01-01 00:00:00", "labels": "hot dog"},
        {"size": 3000, "taken": "2024-06-01 12:00:00", "camera": "Canon EOS"},
        {"taken": None, "latitude": 47.5},
    ]
    names = ("a.jpg", "trips/b.jpg", "trips/x/c.jpg", "zoo/d.jpg")
    write_image_table(
        path,
        [ImageRow(ImageRecord(name, name), each) for name, each in zip(names, cells, strict=True)],
        {"labels": "TEXT", "my note": "TEXT"},
    )
    return ImageTable.open(path)


class TestWhere:
    @pytest.mark.parametrize(
        ("condition", "expected"),
        [
            ("taken >= '2024-01-01' and folder like 'trips/%'", [1, 2]),
            ("taken >= 2024-01-01 and folder like 'trips/%'", [1, 2]),  # a date may do without quotes
            ("taken<2024-01-01", [0]),
            ("2024-01-01 <= taken", [1, 2]),
            ("camera like '%2024-01-01%' or camera = 'Canon EOS'", [2]),
            ("folder = 'trips/'", [1]),
            ("folder = ''", [0]),
            ("size between 100 and 5000", [1, 2]),
            ("size > '90'", [1, 2]),  # the column is of numbers
            ("taken is null", [3]),
            ("not (size > 100)", [0]),
            ("has(labels, 'Dog')", [0]),
            ("has(labels, 'dog') or has(labels, 'hot dog')", [0, 1]),
            ("not has(labels, 'dog')", [1, 2, 3]),
            ("id in ('a.jpg', 'zoo/d.jpg')", [0, 3]),
            ("\"my note\" = 'it''s'", [0]),
            ('"SIZE" = 10', [0]),
            ("strftime('%Y', taken) = '2024'", [1, 2]),
            ("latitude > 40 -- north", [3]),
            ("1", [0, 1, 2, 3]),
            ("0", []),
            ("1) or (0", [0, 1, 2, 3]),
        ],
    )
    def test_finds_the_images(self, images: ImageTable, condition: str, expected: list[int]) -> None:
        found = images.where(condition)
        assert (found.dtype, found.tolist()) == ("int64", expected)

    @pytest.mark.parametrize(
        ("condition", "why"),
        [
            ("", "1 to 1000 characters"),
            (" " * 1001, "1 to 1000 characters"),
            ("size > 1" + " or size > 1" * 100, "1 to 1000 characters"),
            ("tkaen > 3", "no such column: tkaen"),
            ('"tkaen" > 3', 'no column "tkaen"'),
            ('folder like "trips/%"', "texts go in single quotes"),
            ("size >", "syntax error"),
            ("(size > 1", "syntax error"),
            ("size > 1)", "syntax error"),
            ("'", "unrecognized token"),
            ("1; drop table images", "syntax error"),
            ("1) limit (1", "syntax error"),
            ("1) union select 1 where (1", "syntax error"),
            ("1) then 1 end from images where (1", "syntax error"),
            ("1) then 1 end limit case when (1", "syntax error"),
            ("1 /*", "incomplete input"),
            ("exists (select 1)", "a second SELECT isn't allowed"),
            ("(with recursive c(x) as (select 1 union all select x + 1 from c) select max(x) from c)", "isn't allowed"),
            ("(select name from sqlite_master)", "isn't allowed"),
            ("id in images", "sub-select returns"),
            ("id in json_each('[1]')", "isn't allowed"),
            ("randomblob(1000000000)", "the function randomblob isn't allowed"),
            ("zeroblob(1000000000)", "the function zeroblob isn't allowed"),
            ("printf('%1000000000d', 1)", "isn't allowed"),
            ("load_extension('x')", "the function load_extension isn't allowed"),
            ("count(*) > 1", "the function count isn't allowed"),
            ("sum(size) over () > 1", "isn't allowed"),
            ("camera regexp 'x'", "no such function"),
            ("id = ?", "bindings"),
            ("id = :name", "bindings"),
            ("abs(-9223372036854775807 - 1) > size", "overflow"),
            ("size = '\ud800'", "surrogates"),
            ("size = 1\0", "characters"),
            ("pragma user_version", "syntax error"),
            ("attach 'x' as y", "syntax error"),
            ("+".join(["(" * 300, ")" * 300]), "can't be understood"),
        ],
    )
    def test_refuses_what_is_no_condition(self, images: ImageTable, condition: str, why: str) -> None:
        with pytest.raises(UsageError) as refused:
            images.where(condition)
        line = str(refused.value)
        assert why in line
        assert "\n" not in line
        assert "id, path, folder, size" in line
        assert "labels, my note" in line
        assert images.where("size = 10").tolist() == [0]  # nothing is left of it

    def test_work_is_bounded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        images = table(tmp_path / "t", *range(3000))
        monkeypatch.setattr("for_search.store.image_filter._STEPS_PER_IMAGE", 0)
        monkeypatch.setattr("for_search.store.image_filter._STEPS_AT_ONCE", 100)
        with pytest.raises(UsageError, match="it takes too long"):
            images.where("size >= 0 or path like '%a%'")
        monkeypatch.undo()
        assert len(images.where("size >= 0 or path like '%a%'")) == 3000

    def test_users_columns_may_not_hide_the_tables_own(self) -> None:
        assert {"position", "rowid", "id", "path", "content"} <= RESERVED_COLUMNS
