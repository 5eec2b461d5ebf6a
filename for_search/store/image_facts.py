"""What the header of an image file says: its size in pixels, and when, where and with which camera it was taken."""

import math
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from PIL import ExifTags

from for_model.data.images import opened_image, orientation
from for_model.errors import ImageError
from for_search.store.image_table import Cell

_MAX_CHARACTERS = 100  # of a camera's name
_DATE = re.compile(r"(\d{4}):(\d\d):(\d\d) (\d\d):(\d\d):(\d\d)")
_DATE_TAGS = (ExifTags.Base.DateTimeOriginal, ExifTags.Base.DateTimeDigitized)


def image_facts(path: Path) -> dict[str, Cell]:
    """The columns that an image's header tells, of `width`, `height`, `taken`, `camera`, `latitude` and `longitude`.

    Columns that it doesn't tell are left out, as are all of a file that can't be opened; no pixel is decoded. Never
    raises: a damaged EXIF block costs its columns only.
    """
    try:
        with opened_image(path) as image:
            width, height = image.size
            facts: dict[str, Cell] = {"width": width, "height": height}
            if image.format == "PNG" and "exif" not in image.info:
                return facts  # asked for EXIF, Pillow would decode all pixels to look for it behind them
            if orientation(image) > 4:  # turned by a quarter
                facts.update(width=height, height=width)
            facts.update(_exif_facts(image))
            return facts
    except (ImageError, MemoryError):
        return {}


def _exif_facts(image: Any) -> dict[str, Cell]:
    try:
        exif = image.getexif()
        details = exif.get_ifd(ExifTags.IFD.Exif)
        place = exif.get_ifd(ExifTags.IFD.GPSInfo)
    except Exception:  # damaged blocks make Pillow raise nearly anything
        return {}
    dates = [details.get(tag) for tag in _DATE_TAGS] + [exif.get(ExifTags.Base.DateTime)]
    found: dict[str, Cell | None] = {
        "taken": next((date for date in map(_date, dates) if date), None),
        "camera": _camera(exif),
        "latitude": _degrees(place, ExifTags.GPS.GPSLatitude, ExifTags.GPS.GPSLatitudeRef, "S", 90),
        "longitude": _degrees(place, ExifTags.GPS.GPSLongitude, ExifTags.GPS.GPSLongitudeRef, "W", 180),
    }
    if found["latitude"] is None or found["longitude"] is None:  # half a place is none
        del found["latitude"], found["longitude"]
    return {name: value for name, value in found.items() if value is not None}


def _date(value: object) -> str | None:
    """`2024:05:31 14:05:00` as `2024-05-31 14:05:00`; None for what is no date, zeros for one."""
    match = _DATE.match(_text(value))
    try:
        return match and str(datetime(*map(int, match.groups())))  # type: ignore[arg-type]
    except ValueError:
        return None


def _camera(exif: Mapping[int, Any]) -> str | None:
    maker, model = _text(exif.get(ExifTags.Base.Make)), _text(exif.get(ExifTags.Base.Model))
    if maker and not model.lower().startswith(maker.split()[0].lower()):  # `Canon` makes the `Canon EOS 5D`
        model = f"{maker} {model}"
    return model.strip()[:_MAX_CHARACTERS] or None


def _degrees(place: Mapping[int, Any], tag: int, side_tag: int, negative: str, limit: int) -> float | None:
    """Degrees, minutes and seconds in decimal, rounded to a centimetre; None where they are no place on earth."""
    try:
        degrees, minutes, seconds = (float(part) for part in place[tag])
    except (KeyError, TypeError, ValueError, ArithmeticError):
        return None
    value = degrees + minutes / 60 + seconds / 3600
    if not math.isfinite(value) or not 0 <= value <= limit:
        return None
    return round(-value if _text(place.get(side_tag)).upper() == negative else value, 7)


def _text(value: object) -> str:
    """A tag's text without what can't be shown."""
    if isinstance(value, bytes):
        value = value.decode("ascii", "replace")
    return "".join(c for c in value if c.isprintable()).strip() if isinstance(value, str) else ""
