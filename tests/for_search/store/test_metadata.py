import os
from pathlib import Path

import pandas as pd
import pytest
from PIL import ExifTags, Image

from for_model.data.dataset import Category, Dataset, ImageRecord
from for_model.data.folder import load_folder
from for_model.errors import DataError
from for_search.index.index_files import build_index
from for_search.store.embed import embed
from for_search.store.metadata import JoinedTable, Metadata, read_metadata
from for_search.store.store import open_store
from tests.helpers.fake_method import FakeMethod, contents

NAMES = ("a.jpg", "trips/b.jpg", "trips/c.jpg")
DATASET = Dataset("folder", "all", Path("/photos"), tuple(ImageRecord(name, name) for name in NAMES))
NUMBERED = Dataset("coco", "val", Path("/photos"), tuple(ImageRecord(i, f"{i}.jpg") for i in (7, 20)))


def joined(tmp_path: Path, text: str, dataset: Dataset = DATASET) -> JoinedTable:
    path = tmp_path / "table.csv"
    path.write_text(text, encoding="utf-8")
    return read_metadata(path, dataset)


class TestReadMetadata:
    def test_types_are_those_that_all_values_have(self, tmp_path: Path) -> None:
        table = joined(
            tmp_path,
            "path,rating,price,code,note,empty\n"
            'a.jpg,5,1.5,007,"a, ""b""",\n'
            "trips/b.jpg,,2,12,é,\n"
            "trips/c.jpg,-3,1e3,13, ,\n",
        )
        assert (table.n_unknown, table.n_repeated) == (0, 0)
        assert table.metadata == Metadata(
            {"rating": "INTEGER", "price": "REAL", "code": "TEXT", "note": "TEXT", "empty": "INTEGER"},
            {
                "a.jpg": {"rating": 5, "price": 1.5, "code": "007", "note": 'a, "b"'},
                "trips/b.jpg": {"price": 2.0, "code": "12", "note": "é"},
                "trips/c.jpg": {"rating": -3, "price": 1000.0, "code": "13"},
            },
        )

    def test_rows_of_no_image_and_of_the_same_are_counted(self, tmp_path: Path) -> None:
        table = joined(tmp_path, "path,n\na.jpg,1\nnobody.jpg,2\na.jpg,3\n\ntrips/b.jpg,4\nA.JPG,5\n")
        assert (table.n_unknown, table.n_repeated) == (2, 1)
        assert table.metadata.cells == {"a.jpg": {"n": 1}, "trips/b.jpg": {"n": 4}}

    @pytest.mark.parametrize("separator", [";", "\t", ","])
    def test_separators(self, tmp_path: Path, separator: str) -> None:
        table = joined(tmp_path, f"\ufeffPath{separator}n\n./a.jpg{separator}1\n/photos/trips/b.jpg{separator}2\n")
        assert table.metadata.cells == {"a.jpg": {"n": 1}, "trips/b.jpg": {"n": 2}}

    def test_by_id(self, tmp_path: Path) -> None:
        table = joined(tmp_path, "n,ID\n1,20\n2,7\n3,8\n", NUMBERED)
        assert (table.metadata.cells, table.n_unknown) == ({20: {"n": 1}, 7: {"n": 2}}, 1)

    @pytest.mark.parametrize(
        ("text", "match"),
        [
            ("name,n\na.jpg,1\n", "has the columns name, n: expected one named path or id"),
            ("path,Size\na.jpg,1\n", "has a column 'Size', which FOR fills itself"),
            ("path,position\na.jpg,1\n", "which FOR fills itself"),
            ("path,n,N\na.jpg,1,2\n", "has the column 'n' more than once"),
            ("path,\x07\na.jpg,1\n", "without a name that can be shown"),
            ("path," + ",".join(f"c{i}" for i in range(201)), "has 201 columns, at most 200"),
            ("", "is no table that can be read"),
            ('path,n\n"a.jpg,1\n', "is no table that can be read"),
        ],
    )
    def test_tables_that_cannot_be_joined(self, tmp_path: Path, text: str, match: str) -> None:
        with pytest.raises(DataError, match=match) as refused:
            joined(tmp_path, text)
        assert "\n" not in str(refused.value)

    def test_files_that_cannot_be_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(DataError, match="doesn't exist"):
            read_metadata(tmp_path / "missing.csv", DATASET)
        with pytest.raises(DataError, match="can't be read"):
            read_metadata(tmp_path, DATASET)
        (tmp_path / "latin.csv").write_bytes(b"path,n\ncaf\xe9.jpg,1\n")
        with pytest.raises(DataError, match="expected CSV in UTF-8"):
            read_metadata(tmp_path / "latin.csv", DATASET)

        def missing(_: object) -> None:
            raise ImportError

        monkeypatch.setattr(pd, "read_parquet", missing)
        with pytest.raises(DataError, match="needs pyarrow to be read: pip install pyarrow, or save the table as CSV"):
            read_metadata(tmp_path / "table.parquet", DATASET)

    def test_values_of_parquet_keep_their_types(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """pyarrow isn't among FOR's packages: what it would give is."""
        frame = pd.DataFrame(
            {
                "path": NAMES,
                "n": pd.array([1, None, 3], dtype="Int64"),
                "real": [0.5, float("nan"), float("inf")],
                "yes": [True, False, True],
                "day": pd.to_datetime(["2024-05-31 10:00", None, "2024-06-01 00:00"]),
                "text": ["x", None, "1"],
            }
        )
        monkeypatch.setattr(pd, "read_parquet", lambda _: frame)
        table = read_metadata(tmp_path / "table.parquet", DATASET)
        assert table.metadata == Metadata(
            {"n": "INTEGER", "real": "TEXT", "yes": "INTEGER", "day": "TEXT", "text": "TEXT"},
            {
                "a.jpg": {"n": 1, "real": "0.5", "yes": 1, "day": "2024-05-31 10:00:00", "text": "x"},
                "trips/b.jpg": {"yes": 0},
                "trips/c.jpg": {"n": 3, "real": "inf", "yes": 1, "day": "2024-06-01 00:00:00", "text": "1"},
            },
        )


class TestColumnsOfAStore:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        root = tmp_path / "images"
        for i, name in enumerate(NAMES):
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            exif = Image.Exif()
            exif[ExifTags.Base.Model] = f"Model {i}"
            if i:
                exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = f"202{i}:06:01 12:00:00"
            Image.new("RGB", (20 + i, 10), (i, 0, 0)).save(path, exif=exif)
            os.utime(path, ns=(0, 1_700_000_000 * 10**9))  # 2023-11-14 22:13:20 UTC
        return root

    def found(self, root: Path, condition: str, metadata: Metadata | None = None) -> list[object]:
        """Bring store and index up to date, and apply a condition."""
        embed(load_folder(root), FakeMethod(), root.parent / "store", workers=1, progress=False, metadata=metadata)
        index = build_index(root.parent / "store", root.parent / "index")
        return [index.images[i].id for i in index.images.where(condition).tolist()]

    @pytest.mark.parametrize(
        ("condition", "expected"),
        [
            ("width = 21 and height = 10", [NAMES[1]]),
            ("taken >= 2022-01-01", [NAMES[0], NAMES[2]]),
            ("taken = mtime and mtime = '2023-11-14 22:13:20'", [NAMES[0]]),  # without a date in EXIF, the file's
            ("camera = 'Model 2'", [NAMES[2]]),
            ("folder like 'trips/%' and size > 100 and length(content) = 64", [NAMES[1], NAMES[2]]),
            ("latitude is null and labels is null", list(NAMES)),
        ],
    )
    def test_come_from_the_files(self, root: Path, condition: str, expected: list[str]) -> None:
        assert self.found(root, condition) == expected

    def test_the_users_table(self, root: Path) -> None:
        first = Metadata({"rating": "INTEGER"}, {NAMES[0]: {"rating": 5}, "gone.jpg": {"rating": 5}})
        assert self.found(root, "rating = 5", first) == [NAMES[0]]
        before = contents(root.parent / "store")
        assert self.found(root, "rating > '4'") == [NAMES[0]]  # without a table the columns stay
        assert contents(root.parent / "store") == before
        assert set(open_store(root.parent / "store").metadata.cells) == {NAMES[0]}
        (root / NAMES[0]).rename(root / "z.jpg")
        assert self.found(root, "camera = 'Model 0' and width = 20") == ["z.jpg"]  # what the file says goes with it
        assert self.found(root, "mood = 'fine'", Metadata({"mood": "TEXT"}, {NAMES[1]: {"mood": "fine"}})) == [NAMES[1]]
        index = build_index(root.parent / "store", root.parent / "index")
        assert index.images.columns[-1] == "mood"  # the new table's columns take the place of the old

    def test_labels(self, root: Path) -> None:
        folder = load_folder(root)
        labels = {NAMES[0]: frozenset({0, 1}), NAMES[1]: frozenset({2})}
        categories = tuple(Category(name, "base") for name in ("person", "dog", "hot dog"))
        dataset = Dataset("scenes", "val", folder.image_root, folder.images, categories, labels)
        for _ in range(2):  # the second time nothing is to be done
            embed(dataset, FakeMethod(), root.parent / "store", workers=1, progress=False)
            images = build_index(root.parent / "store", root.parent / "index").images
            assert images.row(0).cells["labels"] == "dog;person"
            assert images.where("has(labels, 'dog')").tolist() == [0]
            assert images.where("not has(labels, 'dog')").tolist() == [1, 2]
        changed = Dataset("scenes", "val", folder.image_root, folder.images, categories, {NAMES[2]: frozenset({1})})
        embed(changed, FakeMethod(), root.parent / "store", workers=1, progress=False)
        images = build_index(root.parent / "store", root.parent / "index").images
        assert images.where("has(labels, 'dog')").tolist() == [2]
