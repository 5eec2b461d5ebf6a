from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pytest
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import IFDRational

from for_model.data.images import opened_image
from for_search.store.image_facts import image_facts

BASE, GPS = ExifTags.Base, ExifTags.GPS
WHEN = {BASE.DateTimeOriginal: "2024:05:31 14:05:09"}
WHERE = {
    GPS.GPSLatitudeRef: "S",
    GPS.GPSLatitude: (IFDRational(33), IFDRational(30), IFDRational(36)),
    GPS.GPSLongitudeRef: "E",
    GPS.GPSLongitude: (IFDRational(151), IFDRational(15), IFDRational(0)),
}


def photo(
    path: Path,
    base: Mapping[int, Any] | None = None,
    details: Mapping[int, Any] | None = None,
    place: Mapping[int, Any] | None = None,
) -> Path:
    exif = Image.Exif()
    exif.update(base or {})
    exif.get_ifd(ExifTags.IFD.Exif).update(details or {})
    exif.get_ifd(ExifTags.IFD.GPSInfo).update(place or {})
    Image.new("RGB", (8, 6)).save(path, exif=exif)
    return path


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".avif", ".heic"])
def test_reads_what_the_camera_wrote(tmp_path: Path, suffix: str) -> None:
    pillow_heif.register_heif_opener()
    base = {BASE.Make: "Canon\0", BASE.Model: "Canon EOS 5D"}
    assert image_facts(photo(tmp_path / f"a{suffix}", base, WHEN, WHERE)) == {
        "width": 8,
        "height": 6,
        "taken": "2024-05-31 14:05:09",
        "camera": "Canon EOS 5D",
        "latitude": -33.51,
        "longitude": 151.25,
    }


def test_size_is_that_of_the_upright_image(tmp_path: Path) -> None:
    for orientation in range(1, 9):
        found = image_facts(photo(tmp_path / "a.jpg", {BASE.Orientation: orientation}))
        assert found == ({"width": 8, "height": 6} if orientation < 5 else {"width": 6, "height": 8})


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({BASE.Make: "NIKON CORPORATION", BASE.Model: "NIKON D90"}, "NIKON D90"),
        ({BASE.Make: "samsung", BASE.Model: "SM-G998B"}, "samsung SM-G998B"),
        ({BASE.Model: "X\x1b[31mY"}, "X[31mY"),
        ({BASE.Make: "Leica"}, "Leica"),
        ({BASE.Model: "M" * 500}, "M" * 100),
        ({BASE.Model: "  "}, None),
    ],
)
def test_cameras(tmp_path: Path, tags: Mapping[int, str], expected: str | None) -> None:
    assert image_facts(photo(tmp_path / "a.jpg", tags)).get("camera") == expected


@pytest.mark.parametrize(
    ("base", "details", "expected"),
    [
        ({BASE.DateTime: "2020:01:02 03:04:05"}, {}, "2020-01-02 03:04:05"),
        ({BASE.DateTime: "2020:01:02 03:04:05"}, WHEN, "2024-05-31 14:05:09"),
        ({BASE.DateTime: "2020:01:02 03:04:05"}, {BASE.DateTimeOriginal: "0000:00:00 00:00:00"}, "2020-01-02 03:04:05"),
        ({}, {BASE.DateTimeOriginal: "2024:13:45 99:99:99"}, None),
        ({}, {BASE.DateTimeOriginal: "yesterday"}, None),
        ({}, {BASE.DateTimeOriginal: 7}, None),
    ],
)
def test_dates(tmp_path: Path, base: Mapping[int, Any], details: Mapping[int, Any], expected: str | None) -> None:
    assert image_facts(photo(tmp_path / "a.jpg", base, details)).get("taken") == expected


@pytest.mark.parametrize(
    "wrong",
    [
        {GPS.GPSLatitude: (IFDRational(91), IFDRational(0), IFDRational(0))},
        {GPS.GPSLatitude: (IFDRational(1, 0), IFDRational(0), IFDRational(0))},
        {GPS.GPSLatitude: (IFDRational(1), IFDRational(0))},
        {GPS.GPSLatitude: IFDRational(7)},
        {GPS.GPSLongitude: (IFDRational(181), IFDRational(0), IFDRational(0))},
    ],
)
def test_half_a_place_is_none(tmp_path: Path, wrong: Mapping[int, Any]) -> None:
    assert image_facts(photo(tmp_path / "a.jpg", place={**WHERE, **wrong})) == {"width": 8, "height": 6}


def test_damage_costs_columns_only(tmp_path: Path) -> None:
    """Whatever bytes of the EXIF block are changed, nothing is raised, and the size in pixels is known."""
    path = photo(tmp_path / "a.jpg", {BASE.Model: "X" * 40}, WHEN, WHERE)
    content = path.read_bytes()
    start = content.index(b"Exif") + 6
    stop = start - 8 + int.from_bytes(content[start - 8 : start - 6], "big")
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(300):
        changed = bytearray(content)
        for place in rng.integers(start, stop, 6).tolist():
            changed[place] = int(rng.integers(256))
        path.write_bytes(changed)
        found = image_facts(path)
        assert {found["width"], found["height"]} == {8, 6}
        outcomes.add(tuple(sorted(found)))
    assert len(outcomes) > 3  # some damage was seen


def test_what_is_no_image_has_no_facts(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no image")
    assert image_facts(tmp_path / "a.jpg") == image_facts(tmp_path / "missing.jpg") == image_facts(tmp_path) == {}


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".gif", ".tif", ".bmp", ".avif", ".heic"])
def test_no_pixel_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    pillow_heif.register_heif_opener()
    Image.new("RGB", (8, 6)).save(tmp_path / f"a{suffix}")

    def decoded(_: object) -> None:
        raise AssertionError

    with opened_image(tmp_path / f"a{suffix}") as image:
        monkeypatch.setattr(type(image), "load", decoded)
    assert image_facts(tmp_path / f"a{suffix}") == {"width": 8, "height": 6}
