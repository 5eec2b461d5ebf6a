"""The pictures of an index's images, shrunk to what the page shows; a placeholder, and why, for one that can't be."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from PIL import Image, ImageDraw

from for_model.data.dataset import ImageRecord
from for_model.data.images import load_image
from for_model.errors import ImageError, StoreError
from for_search.query.searcher import Searcher

THUMBNAIL_PX = 512  # longest side; shown small in the grid
LARGE_PX = 768  # longest side of an opened image; a smaller one is enlarged


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
        return _placeholder(), "outside the image folder"
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    return image, None


def large_picture(searcher: Searcher, record: ImageRecord) -> tuple[Image.Image, str | None]:
    """`picture`, its longer side exactly LARGE_PX pixels: a smaller image is enlarged."""
    image, problem = picture(searcher, record, LARGE_PX)
    scale = LARGE_PX / max(image.size)
    if scale > 1:
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    return image, problem


def _placeholder() -> Image.Image:
    """A grey square, crossed out."""
    image = Image.new("RGB", (160, 160), (148, 152, 160))
    draw = ImageDraw.Draw(image)
    for ends in ((60, 60, 100, 100), (60, 100, 100, 60)):
        draw.line(ends, fill=(225, 227, 231), width=5)
    return image
