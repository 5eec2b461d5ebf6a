"""Image files -> RGB images, whatever a folder of real photos holds.

Every way in which a file can fail ends in an `ImageError` whose text is short and always the same for the same file,
because embedding stores record it.
"""

import contextlib
import re
import stat
import struct
import threading
import warnings
from collections.abc import Iterator
from functools import cache
from os import fsdecode, fsencode
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pillow_heif
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from for_model.errors import ImageError


class DecodingRoom:
    """The memory that all images which are being decoded take together: threads wait where it would be too much.

    n_bytes: of memory, for all together; nobody may ask for more.
    """

    def __init__(self, n_bytes: int) -> None:
        self.n_bytes = n_bytes
        self._taken = 0
        self._turn = threading.Lock()
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def taking(self, n_bytes: int) -> Iterator[None]:
        """Wait until there are `n_bytes`, at most those of the room, and hold them."""
        with self._turn, self._changed:  # in turns: small images don't overtake a large one for ever
            self._changed.wait_for(lambda: self._taken + n_bytes <= self.n_bytes)
            self._taken += n_bytes
        try:
            yield
        finally:
            with self._changed:
                self._taken -= n_bytes
                self._changed.notify_all()


ROOM = DecodingRoom(5 * 2**28)  # 1.25 GiB: with the libraries and a small model a process stays below 2 GB

# What an image may take in memory while it is decoded goes by its pixels: Pillow's own 1 to 4 bytes each, and copies to
# turn it upright and to make it RGB; of some formats their decoders' own.
_BYTES_PER_PIXEL = 12
_BYTES_OF_FORMAT = {"JPEG2000": 24, "WEBP": 20, "AVIF": 16, "HEIF": 16}
_BYTES_OF_WIDE_GREY = 40  # a float64 of each pixel, and more than one
MAX_PIXELS = ROOM.n_bytes // _BYTES_PER_PIXEL  # 111.8 million; cameras of 100 million save their PNG and TIFF files

# A network's input has a shorter side of some hundred pixels, and so the longer one that many times as many: an image
# of 1 x 100,000,000 would be made into one of 200 x 20,000,000,000.
MAX_ASPECT = 50
_LARGE = 16_000_000  # pixels from which on all formats are decoded at reduced size, where that will do

# The formats that Pillow may try. Left out on purpose: EPS and WMF start other programs, PDF and MPEG aren't readable,
# and HDF5, GRIB, BUFR and FITS are scientific data without agreed brightness.
_FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "HEIF", "JPEG2000", "MPO", "ICO", "ICNS"),
    *("DIB", "TGA", "PCX", "QOI", "SGI", "SUN", "PSD", "DDS", "XBM", "XPM"),
)

# Cameras' own formats. Many are TIFF files whose first image is a stamp of 160 pixels, which isn't the photograph.
_RAW_SUFFIXES = frozenset(
    (
        *(".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".dng", ".raf", ".orf", ".rw2", ".rwl"),
        *(".pef", ".srw", ".3fr", ".fff", ".iiq", ".x3f", ".mrw", ".dcr", ".kdc", ".erf", ".mef", ".mos"),
    )
)

# The suffixes of image files. Formats that can't be read are here too, so that such files are counted and listed with a
# reason instead of being passed over.
IMAGE_SUFFIXES = _RAW_SUFFIXES.union(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".avif", ".avifs"),
        *(".tif", ".tiff", ".bmp", ".dib", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".ico", ".icns", ".tga"),
        *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".pcx", ".qoi", ".sgi", ".ras", ".psd", ".dds"),
        *(".xbm", ".xpm", ".heic", ".heics", ".heif", ".heifs", ".hif", ".jxl"),
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

_WHITE = (255, 255, 255)
_REDUCIBLE = ("L", "LA", "RGB", "RGBA", "CMYK", "YCbCr")  # modes that Pillow averages; palettes it can't


def load_image(path: Path, target: int | None = None, max_pixels: int | None = None) -> Image.Image:
    """Decode the image at `path` to mode RGB, upright, transparency on white, the first frame of an animation.

    path: the image file.
    target: pixels; a JPEG at least twice as large may be decoded at 1/2, 1/4 or 1/8 of its size, which is several
        times faster, and what then still has more than 16 million pixels is averaged down, but its shorter side never
        gets below `target`. None decodes every pixel.
    max_pixels: refuse an image of more, before any pixel is decoded; None for no limit but what it takes to decode.

    Greyscale of 16 bits keeps its high byte; greyscale of 32 bits or floats is scaled to 0-255 from 0-1, 0-255 or else
    from its own range. Safe to call from several threads, which wait for one another where all their images together
    would take more memory than `ROOM` has.
    Raises ImageError whose text is one of `file not found`, `file name is not valid UTF-8`, `empty file`, `truncated`,
    `unreadable: ...`, `not an image: ...`, `damaged: ...`, `too large: WxH pixels (limit ...)`,
    `too narrow: WxH pixels (limit 1:50)` and `not enough memory to decode it`.
    """
    with decoded_image(path, target, max_pixels) as image:
        return image


@contextlib.contextmanager
def decoded_image(path: Path, target: int | None = None, max_pixels: int | None = None) -> Iterator[Image.Image]:
    """The image as `load_image` gives it, while what it takes is counted in `ROOM`, for what is made of it at once.

    Raises as `load_image` does, ImageError also for a MemoryError of the caller's own.
    """
    try:
        with opened_image(path) as image:
            _check_size(image, max_pixels)
            coefficients = _coefficient_bytes(image)
            if target is not None and image.format == "JPEG":
                image.draft(None, (target, target))
            # An icon's header doesn't tell how large the picture inside is.
            needed = ROOM.n_bytes if image.format in ("ICO", "ICNS") else _pixel_bytes(image) + coefficients
            if needed > ROOM.n_bytes:
                raise ImageError(_too_large(image.size, MAX_PIXELS))
            with ROOM.taking(needed):
                yield _to_rgb(_decode(image, target))
    except MemoryError:
        raise ImageError("not enough memory to decode it") from None


@contextlib.contextmanager
def opened_image(path: Path) -> Iterator[Image.Image]:
    """An image of which only the header has been read; how large it is hasn't been looked at. Raises ImageError."""
    _hush_pillow()
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe or a device could wait for ever
            raise ImageError("not an image: not a regular file")
        if status.st_size == 0:
            raise ImageError("empty file")
        if path.suffix.lower() in _RAW_SUFFIXES:
            raise ImageError("not an image: camera RAW can't be read (export it as JPEG)")
        stream = path.open("rb")
    except FileNotFoundError:
        raise ImageError(_why_missing(path)) from None
    except OSError as error:
        raise ImageError(f"unreadable: {error.strerror or type(error).__name__}") from None
    except ValueError as error:  # a NUL character in the name, say
        raise ImageError(f"unreadable: {error}") from None
    with stream, _open(stream) as image:
        yield image


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
    # Thumbnails, depth maps and the like aren't looked at.
    pillow_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _open(stream: BinaryIO) -> Image.Image:
    """Read the header, which gives the size before any pixel is decoded."""
    try:
        image = Image.open(stream, formats=_formats())
    except UnidentifiedImageError:
        raise ImageError(_why_not_an_image(stream)) from None
    except Image.DecompressionBombError:
        raise ImageError(_too_large(_declared_size(stream), MAX_PIXELS)) from None
    except MemoryError:
        raise
    except Exception as error:  # damaged headers make Pillow's readers raise nearly anything
        raise ImageError(_damage(error)) from None
    return image


def _check_size(image: Image.Image, max_pixels: int | None) -> None:
    """Raise ImageError for an image that is empty, too narrow, or has more than `max_pixels`."""
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"not an image: {width}x{height} pixels")
    if max_pixels is not None and width * height > max_pixels:
        raise ImageError(_too_large(image.size, max_pixels))
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise ImageError(f"too narrow: {width}x{height} pixels (limit 1:{MAX_ASPECT})")


def _pixel_bytes(image: Image.Image) -> int:
    """What decoding an image takes. Raises ImageError when that is more than there is for all together."""
    each = _BYTES_OF_FORMAT.get(str(image.format), _BYTES_PER_PIXEL)
    if image.mode in ("I", "F"):
        each = max(each, _BYTES_OF_WIDE_GREY)
    limit = ROOM.n_bytes // each
    if image.width * image.height > limit:
        raise ImageError(_too_large(image.size, limit))
    return image.width * image.height * each


def _coefficient_bytes(image: Image.Image) -> int:
    """What a progressive JPEG takes beside its pixels: all coefficients, 16 bits each, also where it is reduced."""
    if image.format != "JPEG" or "progressive" not in image.info:
        return 0
    return 2 * len(image.getbands()) * image.width * image.height


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
        image.load()
    except Image.DecompressionBombError:  # an ICO file's inner PNG, whose size the outer header doesn't tell
        raise ImageError(_too_large(None, MAX_PIXELS)) from None
    except MemoryError:
        raise
    except Exception as error:  # damaged data makes Pillow's decoders raise nearly anything
        raise ImageError(_damage(error)) from None
    _pixel_bytes(image)  # again: an icon has now the size of the picture inside
    upright = _upright(image)
    factor = min(upright.size) // target if target else 1
    if factor > 1 and upright.width * upright.height > _LARGE and upright.mode in _REDUCIBLE:
        return upright.reduce(factor)
    return upright


def _upright(image: Image.Image) -> Image.Image:
    method = _TRANSPOSES.get(orientation(image))
    return image if method is None else image.transpose(method)


def orientation(image: Image.Image) -> int:
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
            layer = image if image.mode == "RGBA" else image.convert("RGBA")
            canvas = Image.new("RGB", layer.size, _WHITE)
            canvas.paste(layer, mask=layer)
            return canvas
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
