"""Conditions over the columns of images, as users write them: SQLite parses and applies them, and takes no more."""

import re
import sqlite3
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from for_model.errors import UsageError

MAX_CONDITION_CHARACTERS = 1000
# Steps of SQLite's virtual machine that a condition may take, so many an image. One of 1,000 characters can't need
# them, as there are no subqueries: this is a second wall behind the first.
_STEPS_PER_IMAGE = 2000
_STEPS_AT_ONCE = 100_000

# Functions that are quick and give no more than they are given; `like` and `glob` are the operators.
_FUNCTIONS = frozenset(
    (
        *("like", "glob", "has", "lower", "upper", "length", "substr", "substring", "instr", "trim", "ltrim", "rtrim"),
        *("abs", "round", "min", "max", "coalesce", "ifnull", "nullif", "iif", "typeof"),
        *("date", "time", "datetime", "julianday", "unixepoch", "strftime"),
    )
)
# What is looked at before SQLite does: texts, which are passed over; names in double quotes, as SQLite would take one
# that it doesn't know for a text; and dates without quotes, which it would take for a subtraction.
_TOKENS = re.compile(r"""'(?:[^']|'')*'|"(?P<name>(?:[^"]|"")*)"|(?<![\w.'-])(?P<date>\d{4}-\d\d-\d\d)(?![\w.'-])""")


def matching_positions(
    db: sqlite3.Connection, condition: str, columns: Sequence[str], n_images: int
) -> NDArray[np.int64]:
    """The positions of the images that meet a condition, [m] int64, ascending.

    db: with the table `images`, for this purpose alone and without cached statements; one thread at a time.
    condition: an expression of SQLite over `columns`, of comparisons, `like`, `in (...)`, `between`, `is null`, `and`,
        `or`, `not`, arithmetic and some functions. `has(labels, 'dog')` asks whether a text of several parts, with
        semicolons between them, has that part, whatever the case. Texts stand in single quotes; a date may do without.
    n_images: M, which the work that it may take goes by.

    Whatever else could be said in SQL, subqueries included, is refused. Raises UsageError, with one line that names the
    columns, for a condition that is empty, too long, wrong or refused, and sqlite3.Error for a damaged table.
    """
    if not condition.strip() or len(condition) > MAX_CONDITION_CHARACTERS or "\0" in condition:
        raise _wrong(condition, f"it must have 1 to {MAX_CONDITION_CHARACTERS} characters", columns)
    known = {name.lower() for name in columns}

    def spelled_out(token: re.Match[str]) -> str:
        if token["date"]:
            return f"'{token['date']}'"
        if token["name"] is not None and token["name"].replace('""', '"').lower() not in known:
            raise _wrong(condition, f"no column {token[0]}; texts go in single quotes", columns)
        return token[0]

    expression = _TOKENS.sub(spelled_out, condition)
    guard = _Guard(known)
    db.set_authorizer(guard)
    db.create_function("has", 2, _has, deterministic=True)
    try:
        # As an operand of CASE first: what closes the parenthesis to go on with a clause, LIMIT or UNION say, is no SQL
        # there, and what is SQL there is none after WHERE. So it is one expression, or several joined by operators.
        db.execute(f"SELECT CASE WHEN ({expression}\n) THEN 1 END FROM images LIMIT 0")
    except (sqlite3.Error, sqlite3.Warning, UnicodeEncodeError) as error:
        raise _wrong(condition, guard.refused or str(error), columns) from error
    guard.n_selects = 0
    steps = iter(range(n_images * _STEPS_PER_IMAGE // _STEPS_AT_ONCE + 10))
    db.set_progress_handler(lambda: next(steps, None) is None, _STEPS_AT_ONCE)
    try:
        found = db.execute(f"SELECT position FROM images WHERE ({expression}\n) ORDER BY position")
        return np.fromiter((position for (position,) in found), dtype=np.int64)
    except sqlite3.OperationalError as error:  # out of steps, or a number that is too large
        why = "it takes too long" if next(steps, None) is None else str(error)
        raise _wrong(condition, why, columns) from error
    finally:
        db.set_progress_handler(None, 0)


class _Guard:
    """SQLite asks it about every part of a statement: one SELECT, columns of the table and harmless functions pass."""

    def __init__(self, columns: set[str]) -> None:
        self._columns = {*columns, "position", ""}
        self.n_selects = 0
        self.refused = ""

    def __call__(self, action: int, first: str | None, second: str | None, *_: str | None) -> int:
        if action == sqlite3.SQLITE_SELECT:
            self.n_selects += 1
            allowed, what = self.n_selects == 1, "a second SELECT"
        elif action == sqlite3.SQLITE_READ:
            allowed = first == "images" and str(second).lower() in self._columns
            what = f"{first}.{second}"
        elif action == sqlite3.SQLITE_FUNCTION:
            allowed, what = str(second).lower() in _FUNCTIONS, f"the function {second}"
        else:
            allowed, what = False, "anything but a condition"
        if not allowed:
            self.refused = self.refused or f"{what} isn't allowed"
        return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


def _has(parts: object, wanted: object) -> bool:
    if parts is None or wanted is None:
        return False
    return str(wanted).strip().casefold() in (part.strip().casefold() for part in str(parts).split(";"))


def _wrong(condition: str, why: str, columns: Sequence[str]) -> UsageError:
    short = condition if len(condition) <= 80 else f"{condition[:77]}..."
    return UsageError(
        f"the filter {short!r} can't be understood ({' '.join(why.split())}): expected a condition over "
        f"{', '.join(columns)}, such as \"taken >= '2024-01-01' and folder like 'trips/%'\""
    )
