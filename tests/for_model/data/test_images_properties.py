"""load_image on damaged files: an RGB image or an ImageError, never anything else, whatever bytes are changed."""

import io
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from for_model.data.images import load_image
from for_model.errors import ImageError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO", "TGA", "PCX", "JPEG2000", "DDS")
MAX_PIXELS = 100_000  # what a damaged header may ask for


@cache
def _encoded(name: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, name)
    return stream.getvalue()


def _load(content: bytes) -> Image.Image:
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        return load_image(Path(file.name), max_pixels=MAX_PIXELS)


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_changed_is_sound(name: str) -> None:
    assert _load(_encoded(name)).size == (16, 16)


CHANGES = st.lists(st.tuples(st.integers(0, 400) | st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=9)


@settings(max_examples=40)
@pytest.mark.parametrize("name", FORMATS)
@given(changes=CHANGES, end=st.none() | st.integers(0, 2000), more=st.binary(max_size=20))
def test_damaged_bytes_are_an_image_or_an_image_error(
    name: str, changes: list[tuple[int, int]], end: int | None, more: bytes
) -> None:
    content = bytearray(_encoded(name))
    for place, value in changes:
        content[place % len(content)] = value
    found: Image.Image | str
    try:
        found = _load(bytes(content[:end]) + more)
    except ImageError as error:
        found = str(error)
    if isinstance(found, str):
        assert "\n" not in found
        assert len(found) < 200
    else:
        assert found.mode == "RGB"
        assert 0 < found.width * found.height <= MAX_PIXELS
