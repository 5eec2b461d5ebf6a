"""Settings: TOML files, `section.key=value` overrides, and the models that check them.

A kind of settings is a subclass of `Settings`. `read_table` reads its file, `override` changes single values, and
`parse` turns the nested tables into the model, or says in one line what is wrong.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from for_model.errors import UsageError
from for_model.files import read_toml, toml_value

Count = Annotated[int, Field(ge=0)]
PositiveCount = Annotated[int, Field(ge=1)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]  # a dropout, or a beta of Adam

_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


class Settings(BaseModel):
    """Values that never change, each of exactly the type that is declared (a whole number also serves as a float)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


SettingsT = TypeVar("SettingsT", bound=Settings)


def read_table(path: Path, what: str) -> dict[str, Any]:
    """The nested tables of a TOML file.

    what: how the message calls the file, say `the training's config`.
    Raises UsageError for a file that can't be read or isn't TOML.
    """
    try:
        return read_toml(path)
    except ValueError as error:
        raise UsageError(f"can't read {what} {path}: {error}") from error


def override(table: dict[str, Any], overrides: Sequence[str], valid: Sequence[str]) -> None:
    """Change values of nested tables in place.

    table: what `read_table` gives.
    overrides: `key=value` or `section.key=value` each, the value as TOML writes it or a plain word.
    valid: the settings that there are, for the message; whether a setting is one of them is left to `parse`.
    Raises UsageError for an override without `=`, or one that reaches into a value that isn't a table.
    """
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"setting {text!r}: expected KEY=VALUE; valid keys: {', '.join(valid)}")
        *section, name = key.strip().split(".")
        target = table
        for part in section:
            target = target.setdefault(part, {})
            if not isinstance(target, dict):
                raise UsageError(f"unknown setting {key!r}; valid: {', '.join(valid)}")
        target[name] = toml_value(value.strip())


def parse(
    kind: type[SettingsT], table: Mapping[str, Any], prefix: str = "", valid: Sequence[str] | None = None
) -> SettingsT:
    """Check nested tables, as TOML and JSON give them, and return the settings.

    prefix: what the message puts before a setting's name, `section.` for the table of a section.
    valid: the settings that the message lists for an unknown one; None for those of `kind`.
    Raises UsageError with one line: about an unknown setting if there is one, else about the first wrong value.
    """
    try:
        return kind.model_validate(table)
    except ValidationError as error:
        found = error.errors(include_url=False)
        first = next((each for each in found if each["type"] == "extra_forbidden"), found[0])
        raise UsageError(_message(kind, first, prefix, valid_keys(kind) if valid is None else valid)) from None


@functools.cache
def valid_keys(kind: type[Settings], prefix: str = "") -> tuple[str, ...]:
    """Every setting that there is, as `section.key`."""
    keys: list[str] = []
    for name, field in kind.model_fields.items():
        section = _section(field)
        keys += [f"{prefix}{name}"] if section is None else valid_keys(section, f"{prefix}{name}.")
    return tuple(keys)


def _message(kind: type[Settings], error: ErrorDetails, prefix: str, valid: Sequence[str]) -> str:
    key, field = _place(kind, error["loc"])
    whole = key == ".".join(map(str, error["loc"]))  # else the error is about a part of the setting's value
    key, value = prefix + key, error["input"]
    if error["type"] == "extra_forbidden":
        return f"unknown setting {key!r}; valid: {', '.join(valid)}"
    if error["type"] == "value_error":  # raised by a check of ours on several settings: a whole sentence
        return str(error["ctx"]["error"])
    if error["type"] == "missing" and whole:
        return f"the setting {key} is missing: it has no default"
    if field is None or _section(field):
        return f"[{key.rstrip('.')}] is {value!r}; expected a table of settings"
    return f"{key} is {value!r}; expected {_expected(field)}"


def _place(kind: type[Settings], location: Sequence[int | str]) -> tuple[str, FieldInfo | None]:
    """The setting that pydantic's location lies in, `section.key`, and what declares it, if it is known."""
    names: list[str] = []
    section, field = kind, None
    for part in location:
        names.append(str(part))
        field = section.model_fields.get(str(part))
        inner = _section(field) if field else None
        if inner is None:
            break
        section = inner
    return ".".join(names), field


def _expected(field: FieldInfo) -> str:
    """What a setting takes, say `int, at least 1`."""
    if field.description:
        return field.description
    if get_origin(field.annotation) is Literal:
        return f"one of {', '.join(get_args(field.annotation))}"
    bounds = [
        f"{word} {getattr(each, name):g}"
        for each in field.metadata
        for name, word in _BOUNDS.items()
        if hasattr(each, name)
    ]
    return ", ".join([getattr(field.annotation, "__name__", str(field.annotation)), *bounds])


def _section(field: FieldInfo) -> type[Settings] | None:
    """The settings that a field holds, if it is a section."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Settings) else None
