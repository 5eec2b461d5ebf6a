"""Icon-font glyphs as greyscale masks, read from the fonts in the `qtawesome` wheel (no Qt is imported)."""

import importlib.util
import json
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from for_model.errors import DataError

# font key -> the files' stems, first match wins; and the endings that make the styles of one drawing
_FILES = {
    "mdi": ("materialdesignicons6-webfont",),
    "fa": ("fontawesome6-solid-webfont", "fontawesome6-regular-webfont"),
    "ph": ("phosphor",),
    "ri": ("remixicon",),
    "co": ("codicon",),
}
_STYLES = {"mdi": ("", "-outline"), "fa": ("",), "ph": ("-fill", "-bold"), "ri": ("-fill", "-line"), "co": ("",)}
_MASTER_PX = 128  # longest side of a master mask; scenes only ever scale down from it


@lru_cache(maxsize=1)
def _fonts_dir() -> Path:
    spec = importlib.util.find_spec("qtawesome")
    folder = Path(spec.origin).parent / "fonts" if spec and spec.origin else None
    if folder is None or not folder.is_dir():
        raise DataError("MiniScenes needs the icon fonts of the package qtawesome: pip install qtawesome")
    return folder


@cache
def _font(stem: str) -> tuple[ImageFont.FreeTypeFont, dict[str, int]]:
    """The font at a size that fills a master mask, and its glyph names -> code points."""
    fonts = list(_fonts_dir().glob(f"{stem}-[0-9]*.ttf"))
    charmaps = list(_fonts_dir().glob(f"{stem}-charmap-*.json"))
    if len(fonts) != 1 or len(charmaps) != 1:
        raise DataError(f"{_fonts_dir()}: expected one {stem} font and one charmap; install the pinned qtawesome")
    names = json.loads(charmaps[0].read_text())
    return ImageFont.truetype(str(fonts[0]), 2 * _MASTER_PX), {name: int(code, 16) for name, code in names.items()}


@cache
def styles(drawing: str) -> tuple[tuple[str, str], ...]:
    """The (font file stem, glyph name) pairs of a drawing such as `mdi:cat`, filled before outlined.

    Raises DataError if the installed fonts have no such glyph.
    """
    key, name = drawing.split(":")
    found = tuple(
        (stem, name + ending) for ending in _STYLES[key] for stem in _FILES[key] if name + ending in _font(stem)[1]
    )
    if not found:
        raise DataError(f"no glyph for {drawing} in {_fonts_dir()}: install the pinned qtawesome")
    return found


@cache
def mask(stem: str, name: str) -> Image.Image:
    """A glyph as an `L` image cropped to its ink, longest side `_MASTER_PX` pixels, 255 where there is ink."""
    font, names = _font(stem)
    character = chr(names[name])
    left, top, right, bottom = font.getbbox(character)
    canvas = Image.new("L", (max(int(right - left), 1), max(int(bottom - top), 1)))
    ImageDraw.Draw(canvas).text((-left, -top), character, fill=255, font=font)
    box = canvas.getbbox()
    if box is None:
        raise DataError(f"glyph {name} of {stem} has no ink: install the pinned qtawesome")
    ink = canvas.crop(box)
    scale = _MASTER_PX / max(ink.size)
    size = (max(round(ink.width * scale), 1), max(round(ink.height * scale), 1))
    return ink.resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC)


def ink_area(image: Image.Image) -> int:
    """Pixels of a mask that are more ink than not."""
    return int((np.asarray(image) > 127).sum())
