"""The table of images of a store or an index: the id, the path and the columns of each, in one SQLite file.

SQLite and not Parquet: it comes with Python, where pyarrow is another 45 MB; it opens at once whatever the size and
reads single rows by their position; and it takes the conditions that users write, under an authorizer that lets nothing
but a condition be said (`for_search.store.image_filter`). A table is written once and never changed, so it is opened as
immutable, without locks, and stays readable when its file has been replaced or removed since.
Legend: M images.
"""

import bisect
import contextlib
import itertools
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, overload
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from for_model.data.dataset import ImageId, ImageRecord
from for_model.errors import StoreError, UsageError
from for_model.files import atomic_path
from for_search.store.image_filter import matching_positions

Cell = int | float | str | None  # None where an image has no such value
ColumnType = Literal["INTEGER", "REAL", "TEXT"]

# What every image has beside its id; docs/search.md tells users.
IMAGE_COLUMNS: Mapping[str, ColumnType] = MappingProxyType(
    {
        "path": "TEXT",  # relative to the image root
        "folder": "TEXT",  # of the path, with a slash at its end: 'trips/2024/'; empty for the image root
        "size": "INTEGER",  # bytes
        "mtime": "TEXT",  # when the file was last changed, UTC: '2024-05-31 14:05:00'
        "width": "INTEGER",  # pixels, upright
        "height": "INTEGER",
        "taken": "TEXT",  # EXIF's date, in the camera's local time, else that of `mtime`
        "camera": "TEXT",
        "latitude": "REAL",  # degrees, north and east positive
        "longitude": "REAL",
        "content": "TEXT",  # SHA-256 of the file's bytes, hexadecimal
        "labels": "TEXT",  # of a labelled dataset, category names with semicolons between them: 'dog;person'
    }
)
# Names that no column of a user's can have, in whatever case.
RESERVED_COLUMNS = frozenset({"position", "rowid", "oid", "_rowid_", "id", *IMAGE_COLUMNS})

_HIDDEN = "_"  # begins the names of columns that no condition can name
_VERSION = 1
_PRAGMAS = ("page_size = 4096", "journal_mode = OFF", "synchronous = OFF", f"user_version = {_VERSION}")
_BLOCK = 1000  # rows read at once, when all are


@dataclass(frozen=True)
class ImageRow:
    """An image and what is known of it: column -> value. `id`, `path` and `folder` follow from the record."""

    record: ImageRecord
    cells: Mapping[str, Cell] = field(default_factory=dict)


def write_image_table(
    path: Path,
    rows: Iterable[ImageRow],
    own: Mapping[str, ColumnType] | None = None,
    hidden: Mapping[str, ColumnType] | None = None,
) -> None:
    """Write the table of some images, atomically.

    path: the file, which is replaced.
    rows: in ascending order of id, which are of one type; read once, so that they never lie in memory all together.
    own: the user's columns, which come after those of `IMAGE_COLUMNS`; none of `RESERVED_COLUMNS`.
    hidden: more columns, whose names begin with `_`; no condition can name them.

    The same rows give the same bytes. Raises StoreError when ids aren't ascending, or the file can't be written.
    """
    types = {**IMAGE_COLUMNS, **(hidden or {}), **(own or {})}
    remaining = iter(rows)
    head = list(itertools.islice(remaining, 1))
    id_type = "TEXT" if head and isinstance(head[0].record.id, str) else "INTEGER"
    columns = ", ".join(f"{_quoted(name)} {kind}" for name, kind in types.items())
    slots = ", ".join("?" * (2 + len(types)))
    try:
        with atomic_path(path) as temporary, contextlib.closing(sqlite3.connect(temporary, isolation_level=None)) as db:
            for pragma in _PRAGMAS:  # no journal: until the file has its name, nobody relies on it
                db.execute(f"PRAGMA {pragma}")
            db.execute("BEGIN")
            db.execute(f"CREATE TABLE images (position INTEGER PRIMARY KEY, id {id_type} NOT NULL, {columns})")
            db.executemany(
                f"INSERT INTO images VALUES ({slots})",
                (
                    (position, row.record.id, *_cells(row, types))
                    for position, row in enumerate(_ascending(itertools.chain(head, remaining)))
                ),
            )
            db.execute("COMMIT")
    except sqlite3.Error as error:
        raise StoreError(f"{path} can't be written ({error}): check its disk space and permissions") from error


def _ascending(rows: Iterable[ImageRow]) -> Iterator[ImageRow]:
    before: Any = None
    for row in rows:
        if before is not None and not before < row.record.id:
            raise StoreError(f"image ids must be ascending: {before!r} is followed by {row.record.id!r}")
        before = row.record.id
        yield row


def _cells(row: ImageRow, types: Iterable[str]) -> list[Cell]:
    path = row.record.path
    cells = {**row.cells, "path": path, "folder": path[: path.rfind("/") + 1]}
    return [cells.get(name) for name in types]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


class ImageTable(Sequence[ImageRecord]):
    """An open table: the records of its M images in ascending order of id, read from disk one by one when asked for.

    Several threads may share one. Whatever reads raises StoreError when the file turns out to be damaged.

    columns: those that a condition can name, `id` first.
    """

    def __init__(self, path: Path, rows: sqlite3.Connection, filters: sqlite3.Connection) -> None:
        self.path = path
        self._rows, self._filters = rows, filters
        self._rows_lock, self._filters_lock = threading.Lock(), threading.Lock()
        found = self._read("SELECT name FROM pragma_table_info('images')")
        self._all_columns = tuple(name for (name,) in found if name != "position")
        self.columns: tuple[str, ...] = tuple(name for name in self._all_columns if not name.startswith(_HIDDEN))
        # The positions count from 0: the last one is found without reading the others.
        [(last,)] = self._read("SELECT max(position) FROM images")
        self._length = 0 if last is None else int(last) + 1

    @classmethod
    def open(cls, path: Path) -> "ImageTable":
        """Open a table; no row is read. Raises StoreError when it is missing, damaged or of another version."""
        # A connection for rows and one for conditions, so that a hit doesn't wait until a condition has been applied to
        # all images. Both are of this file, whatever `path` names later.
        address = f"file:{quote(str(path.absolute()))}?mode=ro&immutable=1"
        try:
            rows, filters = (
                sqlite3.connect(address, uri=True, check_same_thread=False, cached_statements=cached)
                for cached in (128, 0)
            )
            [(version,)] = rows.execute("PRAGMA user_version")
        except sqlite3.Error as error:
            if not path.exists():
                raise StoreError(f"{path} is missing: build the index again") from error
            raise _damaged_table(path, error) from error
        if version != _VERSION:
            raise StoreError(f"{path} is a table of version {version}, expected {_VERSION}: embed and index again")
        return cls(path, rows, filters)

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> ImageRecord: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[ImageRecord, ...]: ...
    def __getitem__(self, index: int | slice) -> ImageRecord | tuple[ImageRecord, ...]:
        if isinstance(index, slice):
            return tuple(self[position] for position in range(*index.indices(self._length)))
        return ImageRecord(*self._row("id, path", index))

    def records(self, positions: Sequence[int]) -> list[ImageRecord]:
        """The records at some positions, which there are, in their order; faster than one by one."""
        found: dict[int, ImageRecord] = {}
        for start in range(0, len(positions), _BLOCK // 2):  # SQLite before 3.32 takes up to 999 values
            part = positions[start : start + _BLOCK // 2]
            sql = f"SELECT position, id, path FROM images WHERE position IN ({', '.join('?' * len(part))})"
            found |= {position: ImageRecord(*row) for position, *row in self._read(sql, *part)}
        return [found[position] for position in positions]

    def __iter__(self) -> Iterator[ImageRecord]:
        for start in range(0, self._length, _BLOCK):
            sql = "SELECT id, path FROM images WHERE position BETWEEN ? AND ?"
            yield from (ImageRecord(*row) for row in self._read(sql, start, start + _BLOCK - 1))

    def row(self, position: int) -> ImageRow:
        """An image with all its columns. Raises IndexError for a position that there isn't."""
        return _image_row(self.columns, self._row(", ".join(map(_quoted, self.columns)), position))

    def iter_rows(self) -> Iterator[ImageRow]:
        """All images with all their columns, hidden ones too, read in blocks."""
        names = self._all_columns
        sql = f"SELECT {', '.join(map(_quoted, names))} FROM images WHERE position BETWEEN ? AND ?"
        for start in range(0, self._length, _BLOCK):
            yield from (_image_row(names, row) for row in self._read(sql, start, start + _BLOCK - 1))

    def position(self, image_id: ImageId) -> int:
        """Where the image of that id is; `"7"` will do for 7, as in an address. Raises UsageError for an unknown id."""
        wanted = type(self[0].id) if self._length else str
        with contextlib.suppress(ValueError):
            key: Any = wanted(image_id)
            place = bisect.bisect_left(self, key, key=lambda image: image.id)
            if place < self._length and self[place].id == key:
                return place
        raise UsageError(f"no image of the index has the id {image_id!r}: take one that a search gave")

    def where(self, condition: str) -> NDArray[np.int64]:
        """The positions of the images that meet a condition, [m] int64, ascending.

        condition: as in SQL after WHERE, over `columns`; see `matching_positions` for what it may say.
        Raises UsageError, with one line that names the columns, for a condition that can't be understood.
        """
        with self._filters_lock, self._damage_told():
            return matching_positions(self._filters, condition, self.columns, self._length)

    def _row(self, columns: str, index: int) -> tuple[Any, ...]:
        position = index + self._length if index < 0 else index
        found = self._read(f"SELECT {columns} FROM images WHERE position = ?", int(position))
        if not found:
            raise IndexError(f"position {index} of {self._length} images")
        return found[0]

    def _read(self, sql: str, *values: int) -> list[tuple[Any, ...]]:
        with self._rows_lock, self._damage_told():
            return self._rows.execute(sql, values).fetchall()

    @contextlib.contextmanager
    def _damage_told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise _damaged_table(self.path, error) from error


def _image_row(columns: Sequence[str], values: Sequence[Any]) -> ImageRow:
    """A row of the table; the first column is the id."""
    cells = dict(zip(columns[1:], values[1:], strict=True))
    return ImageRow(ImageRecord(values[0], cells["path"]), cells)


def _damaged_table(path: Path, error: sqlite3.Error) -> StoreError:
    return StoreError(f"{path} is damaged ({error}): build the index again")
