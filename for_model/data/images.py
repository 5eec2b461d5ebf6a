"""Image files -> RGB images, whatever a folder of real photos holds.

Every way in which a file can fail ends in an `ImageError` whose text is short and always the same for the same file,
because embedding stores record it.
"""

import re
import stat
import struct
import warnings
from functools import cache
from os import fsdecode, fsencode
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from for_model.errors import ImageError

MAX_PIXELS = 178_000_000  # an RGBA image of this size takes 700 MB; Pillow's own hard limit is just above it

# The formats that Pillow may try. Left out on purpose: EPS and WMF start other programs, PDF and MPEG aren't readable,
# and HDF5, GRIB, BUFR and FITS are scientific data without agreed brightness.
_FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "MPO", "ICO", "ICNS"),
    *("DIB", "TGA", "PCX", "QOI", "SGI", "SUN", "PSD", "DDS", "XBM", "XPM"),
)

# The suffixes of image files. Camera formats that Pillow can't open are here too, so that such files are counted
# and listed with a reason instead of being passed over.
IMAGE_SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".avif", ".avifs"),
        *(".tif", ".tiff", ".bmp", ".dib", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".ico", ".icns", ".tga"),
        *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".pcx", ".qoi", ".sgi", ".ras", ".psd", ".dds"),
        *(".xbm", ".xpm", ".heic", ".heif", ".jxl"),
    )
)

_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_WHITE = (255, 255, 255, 255)


def load_image(path: Path, target: int | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode the image at `path` to mode RGB, upright, transparency on white, the first frame of an animation.

    path: the image file.
    target: pixels; a JPEG at least twice as large may be decoded at 1/2, 1/4 or 1/8 of its size, which is several
        times faster, but its shorter side never gets below `target`. None decodes every pixel.
    max_pixels: refuse a larger image before any pixel is decoded; at most MAX_PIXELS.

    Greyscale of 16 bits keeps its high byte; greyscale of 32 bits or floats is scaled to 0-255 from 0-1, 0-255 or else
    from its own range. Safe to call from several threads.
    Raises ImageError whose text is one of `file not found`, `file name is not valid UTF-8`, `empty file`, `truncated`,
    `unreadable: ...`, `not an image: ...`, `damaged: ...` and `too large: WxH pixels (limit ...)`.
    """
    _hush_pillow()
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe or a device could wait for ever
            raise ImageError("not an image: not a regular file")
        if status.st_size == 0:
            raise ImageError("empty file")
        stream = path.open("rb")
    except FileNotFoundError:
        raise ImageError(_why_missing(path)) from None
    except OSError as error:
        raise ImageError(f"unreadable: {error.strerror or type(error).__name__}") from None
    except ValueError as error:  # a NUL character in the name, say
        raise ImageError(f"unreadable: {error}") from None
    with stream:
        with _open(stream, max_pixels) as image:
            upright = _decode(image, target)
        return _to_rgb(upright)


def _hush_pillow() -> None:
    """Ignore Pillow's warnings about odd files: what matters of them is in the result or the ImageError.

    The filter stays: `warnings.catch_warnings` isn't safe in threads, and images are decoded in many.
    """
    if not any(action == "ignore" and module == _PILLOW for action, _, _, module, _ in warnings.filters):
        warnings.filterwarnings("ignore", module=_PILLOW.pattern)


_PILLOW = re.compile(r"PIL\.")


def escape_name(raw: str) -> str:
    r"""A file name that isn't valid UTF-8, with its odd bytes written as `\xNN`, so that it can go into JSON."""
    return fsencode(raw).decode("utf-8", "backslashreplace")


def _why_missing(path: Path) -> str:
    """Tell a file that isn't there from one whose name had to be escaped by `escape_name`."""
    if "\\x" in str(path):
        raw = re.sub(rb"\\x([0-9a-f]{2})", lambda match: bytes.fromhex(match[1].decode()), fsencode(path))
        if Path(fsdecode(raw)).exists():
            return "file name is not valid UTF-8"
    return "file not found"


@cache
def _formats() -> tuple[str, ...]:
    """Those of `_FORMATS` that this build of Pillow can open; asked for any other, Pillow would raise KeyError."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _open(stream: BinaryIO, max_pixels: int) -> Image.Image:
    """Read the header and check the size that it declares, before any pixel is decoded."""
    try:
        image = Image.open(stream, formats=_formats())
    except UnidentifiedImageError:
        raise ImageError(_why_not_an_image(stream)) from None
    except Image.DecompressionBombError:
        raise ImageError(_too_large(_declared_size(stream), max_pixels)) from None
    except MemoryError:
        raise
    except Exception as error:  # damaged headers make Pillow's readers raise nearly anything
        raise ImageError(_damage(error)) from None
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(_too_large(image.size, max_pixels))
    if width < 1 or height < 1:
        raise ImageError(f"not an image: {width}x{height} pixels")
    return image


def _too_large(size: tuple[int, int] | None, limit: int) -> str:
    what = f"{size[0]}x{size[1]}" if size else "too many"
    return f"too large: {what} pixels (limit {limit})"


def _declared_size(stream: BinaryIO) -> tuple[int, int] | None:
    """The size in a header that Pillow refused as a decompression bomb without naming it; (width, height) or None."""
    stream.seek(0)
    prefix = stream.read(16)
    for name in _formats():
        factory, accept = Image.OPEN[name]
        try:
            if accept is None or accept(prefix) is True:
                stream.seek(0)
                return factory(stream, "").size
        except Exception:  # not this format, or its reader refuses the size as well
            continue
    return None


def _why_not_an_image(stream: BinaryIO) -> str:
    stream.seek(0)
    prefix = stream.read(12)
    if prefix[4:8] == b"ftyp" and prefix[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1"):
        return "not an image: HEIC can't be read (convert it to JPEG)"
    if prefix.startswith((b"\xff\x0a", b"\x00\x00\x00\x0cJXL ")):
        return "not an image: JPEG XL can't be read (convert it to JPEG)"
    return "not an image: unknown format or damaged header"


def _damage(error: Exception) -> str:
    """One short line for what Pillow raised while it decoded."""
    message = " ".join(str(error).split())
    if isinstance(error, EOFError) or "truncated" in message.lower():
        return "truncated"
    if " at 0x" in message:  # an object's address differs from run to run
        message = ""
    return f"damaged: {message[:80] or type(error).__name__}"


def _decode(image: Image.Image, target: int | None) -> Image.Image:
    """Decode the pixels and turn them upright."""
    try:
        if target is not None and image.format == "JPEG":
            image.draft(None, (target, target))
        image.load()
    except Image.DecompressionBombError:  # an ICO file's inner PNG, whose size the outer header doesn't tell
        raise ImageError(_too_large(None, MAX_PIXELS)) from None
    except MemoryError:
        raise
    except Exception as error:  # damaged data makes Pillow's decoders raise nearly anything
        raise ImageError(_damage(error)) from None
    method = _TRANSPOSES.get(_orientation(image))
    return image if method is None else image.transpose(method)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8; 1 when there is none or the EXIF block is damaged."""
    try:
        value: Any = image.getexif().get(ExifTags.Base.Orientation, 1)
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, AttributeError, struct.error):
        return 1  # the pixels are sound, and a broken tag can't say which way is up
    return value if isinstance(value, int) else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any of Pillow's modes -> RGB."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "I" and image.format in ("PPM", "PNG"):  # 16 bits that Pillow widened
        return Image.fromarray((np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        return Image.fromarray(_to_bytes(np.asarray(image))).convert("RGB")
    try:
        if image.has_transparency_data or image.mode in ("La", "RGBa"):
            layer = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", layer.size, _WHITE), layer).convert("RGB")
        return image.convert("RGB")
    except ValueError:  # Pillow has no such conversion (LAB)
        raise ImageError(f"not an image: colour mode {image.mode} can't be converted to RGB") from None


def _to_bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Greyscale without an agreed range -> [H, W] uint8: from 0-1, 0-255, or else from its own range.

    values: [H, W] int32 or float32. What isn't finite takes the lowest value; a flat image out of 0-255 is black.
    """
    finite = np.isfinite(values)
    if not finite.any():
        return np.zeros(values.shape, dtype=np.uint8)
    low, high = float(values[finite].min()), float(values[finite].max())
    scaled = np.where(finite, values, low).astype(np.float64)
    if low >= 0 and high <= 1:
        scaled = scaled * 255
    elif low < 0 or high > 255:
        scaled = (scaled - low) * (255 / (high - low)) if high > low else np.zeros_like(scaled)
    return np.rint(scaled).astype(np.uint8)
