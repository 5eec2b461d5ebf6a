"""The pictures of an index's images, shrunk to what the page shows; a placeholder, and why, for one that can't be."""

import base64
import contextlib
import io
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import ExifTags, Image, ImageDraw

from for_model.data.dataset import ImageRecord
from for_model.data.images import load_image
from for_model.errors import ImageError, StoreError, UsageError
from for_search.query.searcher import Searcher

OUTSIDE = "outside the image folder"
THUMBNAIL_PX = 512  # longest side; shown small in the grid
LARGE_PX = 1024  # longest side of an opened image; a smaller one is enlarged

_DATE_TAKEN = 36867  # Exif's DateTimeOriginal, `2024:05:17 10:00:00`, in the sub-directory of the camera
_TURNED = {5, 6, 7, 8}  # Exif's orientations that swap width and height


@dataclass(frozen=True)
class Shape:
    """What an image file says of itself without being decoded.

    width, height: pixels, as it is shown; 160 for a placeholder.
    n_bytes: of the file.
    date: `2024-05-17`, when it was taken, or else when the file was last changed; empty if it can't be told.
    taken: whether `date` is when it was taken.
    problem: why it can't be shown, if it can't.
    """

    width: int = 160
    height: int = 160
    n_bytes: int = 0
    date: str = ""
    taken: bool = False
    problem: str | None = None

    @property
    def ratio(self) -> float:
        return self.width / self.height


def shapes_of(searcher: Searcher, images: Sequence[ImageRecord]) -> list[Shape]:
    """The shapes of several images, read in threads."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(lambda image: _shape(searcher, image), images))


def _shape(searcher: Searcher, record: ImageRecord) -> Shape:
    try:
        path = searcher.image_path(record)
    except StoreError:  # an index from somewhere else may name any path
        return Shape(problem=OUTSIDE)
    try:
        if not path.is_file():
            return Shape(problem="file not found")
        status = path.stat()
        with Image.open(path) as image:
            exif = image.getexif()
            width, height = image.size
            taken = str(exif.get_ifd(ExifTags.IFD.Exif).get(_DATE_TAKEN) or "")[:10].replace(":", "-")
            turned = exif.get(ExifTags.Base.Orientation) in _TURNED
    except Exception as error:  # Pillow's readers of damaged files raise whatever they like
        return Shape(problem=f"not an image: {type(error).__name__}")
    changed = time.strftime("%Y-%m-%d", time.localtime(status.st_mtime))
    size = (height, width) if turned else (width, height)
    return Shape(*size, n_bytes=status.st_size, date=taken or changed, taken=bool(taken))


def mime_type(path: Path) -> str:
    """The type that a file's content says, whatever its name says. Raises UsageError for what is no image."""
    with contextlib.suppress(Exception), Image.open(path) as image:
        return Image.MIME.get(image.format or "", "application/octet-stream")
    raise UsageError("the file can't be opened as an image")


def pictures_of(
    searcher: Searcher, images: Sequence[ImageRecord], size: int = THUMBNAIL_PX
) -> list[tuple[Image.Image, str | None]]:
    """`picture` of several images, decoded in threads."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(lambda image: picture(searcher, image, size), images))


def picture(searcher: Searcher, record: ImageRecord, size: int) -> tuple[Image.Image, str | None]:
    """An image of at most `size` pixels a side, and None; or a placeholder, and why it can't be shown."""
    try:
        image = load_image(searcher.image_path(record), target=size)
    except ImageError as error:
        return _placeholder(), str(error)
    except StoreError:  # an index from somewhere else may name any path
        return _placeholder(), OUTSIDE
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    return image, None


def large_picture(searcher: Searcher, record: ImageRecord) -> tuple[Image.Image, str | None]:
    """`picture`, its longer side exactly LARGE_PX pixels: a smaller image is enlarged."""
    image, problem = picture(searcher, record, LARGE_PX)
    scale = LARGE_PX / max(image.size)
    if scale > 1:
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    return image, problem


def jpeg(image: Image.Image) -> bytes:
    """A picture as a JPEG file."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=85)
    return stream.getvalue()


def data_uri(image: Image.Image) -> str:
    """A picture as an address that holds the picture itself: nothing is written for a file server to serve."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg(image)).decode()


def _placeholder() -> Image.Image:
    """A grey square, crossed out."""
    image = Image.new("RGB", (160, 160), (148, 152, 160))
    draw = ImageDraw.Draw(image)
    for ends in ((60, 60, 100, 100), (60, 100, 100, 60)):
        draw.line(ends, fill=(225, 227, 231), width=5)
    return image
