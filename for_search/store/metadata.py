"""What is said of images beside what their files tell: the labels of a dataset, and the columns of a user's table."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from for_model.data.dataset import Dataset, ImageId
from for_model.errors import DataError
from for_search.store.image_table import RESERVED_COLUMNS, Cell, ColumnType

LABEL_COLUMN = "labels"  # the column of a labelled dataset's category names, with semicolons between them
_KEYS = ("path", "id")
_MAX_COLUMNS = 200
_INT64 = 2**63


@dataclass(frozen=True)
class Metadata:
    """Columns that don't come from the images' files.

    types: of the user's columns, by name, in their order.
    cells: image id -> column -> value, those of `types` and LABEL_COLUMN; without what isn't known.
    """

    types: Mapping[str, ColumnType] = field(default_factory=dict)
    cells: Mapping[ImageId, Mapping[str, Cell]] = field(default_factory=dict)

    def of_dataset(self, dataset: Dataset) -> "Metadata":
        """The same for the images of a dataset and no others, with the labels that the dataset has today."""
        cells = {}
        for image in dataset.images:
            own = {name: cell for name, cell in self.cells.get(image.id, {}).items() if name != LABEL_COLUMN}
            names = sorted(dataset.categories[number].name for number in dataset.labels.get(image.id, ()))
            if found := {**own, **({LABEL_COLUMN: ";".join(names)} if names else {})}:
                cells[image.id] = found
        return Metadata(self.types, cells)


@dataclass(frozen=True)
class JoinedTable:
    """A user's table, joined with a dataset.

    n_unknown: its rows whose image isn't in the dataset.
    n_repeated: its rows whose image has had one before; the first counts.
    """

    metadata: Metadata
    n_unknown: int
    n_repeated: int


def read_metadata(path: Path, dataset: Dataset) -> JoinedTable:
    """Read a table of columns about a dataset's images, and join it with them.

    path: a CSV file (UTF-8, with commas, semicolons or tabs), or a Parquet file (`.parquet`), for which pyarrow must be
        installed. A column `path`, relative to the dataset's image root or absolute, or else `id` says whose a row is.
    dataset: with the images.

    A column is of whole numbers, of numbers or of text, whichever all of its values are. Empty values are none.
    Raises DataError, in one line, for a file that can't be read, that has no column `path` or `id`, or a column of a
    name that FOR fills itself.
    """
    table = _read_table(path)
    names = [str(name).strip() for name in table.columns]
    table.columns = names
    key = next((name for wanted in _KEYS for name in names if name.lower() == wanted), None)
    if key is None:
        raise DataError(f"{path} has the columns {', '.join(names)}: expected one named path or id to join it by")
    own = [name for name in names if name.lower() not in _KEYS]
    _check_names(path, own)
    columns = {name: _typed(table[name].tolist()) for name in own}
    find = _finder(dataset, key.lower())
    cells: dict[ImageId, dict[str, Cell]] = {}
    n_unknown = n_repeated = 0
    for row, wanted in enumerate(table[key].tolist()):
        image_id = find(wanted)
        if image_id is None:
            n_unknown += 1
        elif image_id in cells:
            n_repeated += 1
        else:
            values = {name: column[row] for name, (_, column) in columns.items()}
            cells[image_id] = {name: value for name, value in values.items() if value is not None}
    types = {name: kind for name, (kind, _) in columns.items()}
    return JoinedTable(Metadata(types, cells), n_unknown, n_repeated)


def _read_table(path: Path) -> Any:
    """A data frame; of a CSV all values are texts."""
    import pandas as pd

    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            table = pd.read_parquet(path)
            return table.astype(object).where(table.notna(), None)  # pandas has nothings of several types
        with path.open(encoding="utf-8-sig") as stream:
            header = stream.readline()
        separator = max(",;\t", key=header.count)
        return pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False)
    except FileNotFoundError:
        raise DataError(f"{path} doesn't exist: give --metadata a CSV or Parquet file") from None
    except ImportError:
        raise DataError(f"{path} needs pyarrow to be read: pip install pyarrow, or save the table as CSV") from None
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror or error})") from error
    except Exception as error:  # pandas and pyarrow raise nearly anything for a damaged file
        line = " ".join(str(error).split())[:150]
        raise DataError(f"{path} is no table that can be read ({line}): expected CSV in UTF-8, or Parquet") from error


def _check_names(path: Path, names: Sequence[str]) -> None:
    """Raise DataError for names that columns of a table of images can't have."""
    taken = [name for name in names if name.lower() in RESERVED_COLUMNS]
    if taken:
        raise DataError(f"{path} has a column {taken[0]!r}, which FOR fills itself: rename it or leave it out")
    twice = [name for name, count in Counter(name.lower() for name in names).items() if count > 1]
    if twice:
        raise DataError(f"{path} has the column {twice[0]!r} more than once, capitals aside: rename one")
    if not all(name and name.isprintable() for name in names):
        raise DataError(f"{path} has a column without a name that can be shown: name it or leave it out")
    if len(names) > _MAX_COLUMNS:
        raise DataError(f"{path} has {len(names)} columns, at most {_MAX_COLUMNS} can be kept: leave some out")


def _typed(values: Sequence[Any]) -> tuple[ColumnType, list[Cell]]:
    """The type that all of a column's values have, and the values in that type; None for empty ones."""
    plain = [_plain(value) for value in values]
    for kind, parse in (("INTEGER", _whole), ("REAL", _number)):
        parsed = [None if value is None else parse(value) for value in plain]
        if all(value is None or new is not None for value, new in zip(plain, parsed, strict=True)):
            return kind, parsed  # type: ignore[return-value]
    return "TEXT", [None if value is None else str(value) for value in plain]


def _plain(value: Any) -> int | float | str | None:
    """A cell of a data frame as a number or a text; a date as ISO text."""
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, int | float):
        return +value  # of a truth 1 or 0
    return None if value is None else str(value)


def _whole(value: int | float | str) -> int | None:
    """A whole number, if it is written as one: `007` is a text."""
    try:
        number = int(value)
    except (ValueError, OverflowError):
        return None
    same = str(number) == value if isinstance(value, str) else number == value
    return number if same and -_INT64 <= number < _INT64 else None


def _number(value: int | float | str) -> float | None:
    if isinstance(value, str) and value[:1] == "0" and value[1:2].isdigit():
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _finder(dataset: Dataset, key: str) -> Any:
    """A function from what a table's key column holds to the id of the image; None where there is no such image."""
    if key == "id":
        ids = {str(image.id): image.id for image in dataset.images}
        return lambda wanted: ids.get(str(wanted).strip())
    paths = {image.path: image.id for image in dataset.images}
    root = dataset.image_root.absolute()

    def by_path(wanted: Any) -> ImageId | None:
        path = PurePosixPath(str(wanted).strip())
        return paths.get((path.relative_to(root) if path.is_relative_to(root) else path).as_posix())

    return by_path
