"""The regions of an image's cells drawn over it: which cells each pseudo-label comes from."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import label

from for_search.query.image_labels import ImageLabels

# Okabe and Ito's colours, told apart by colour-blind people too; a region's number says it without colour
COLOURS = (
    *((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167)),
    (160, 160, 160),
)
SHOWN_PX = 640  # longest side of the drawing

_FILL = 0.28  # share of the colour inside a region
_EDGE_PX = 4


def region_numbers(found: ImageLabels) -> dict[int, int]:
    """The cluster numbers that labels come from, each with the number that people see, from 1, most probable first."""
    clusters = dict.fromkeys(label.cluster for label in found.labels)
    return {cluster: number for number, cluster in enumerate(clusters, start=1)}


def region_colour(number: int) -> tuple[int, int, int]:
    """The colour of a region by its number; there are eight."""
    return COLOURS[(number - 1) % len(COLOURS)]


def draw_regions(image: Image.Image, found: ImageLabels) -> Image.Image:
    """The image, SHOWN_PX on its longer side, with the cells of every label's cluster tinted, outlined and numbered.

    image: RGB. The cells divide the whole image evenly, whatever its shape: the backbone saw it resized to a square.
    found: its labels, and the cluster of each cell.
    """
    scale = SHOWN_PX / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    shown = image.resize(size, Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS)
    numbers = region_numbers(found)
    pixels = np.asarray(shown).astype(np.float32)  # [H, W, 3]
    regions = _of_pixels(found.cells, size)  # [H, W], cluster numbers
    for cluster, number in numbers.items():
        colour = np.array(region_colour(number), np.float32)
        inside = regions == cluster
        pixels[inside] += _FILL * (colour - pixels[inside])
        pixels[inside & _near_edge(regions)] = colour
    drawn = Image.fromarray(pixels.astype(np.uint8))
    for cluster, number in numbers.items():
        parts, count = label(found.cells == cluster)
        for part in range(1, count + 1):
            _write_number(drawn, parts == part, number)
    return drawn


def _of_pixels(cells: NDArray[np.int64], size: tuple[int, int]) -> NDArray[np.int64]:
    """[g, g] -> [H, W]: the cell's value at every pixel. size: width, height."""
    side = len(cells)
    rows = np.arange(size[1]) * side // size[1]
    columns = np.arange(size[0]) * side // size[0]
    return cells[rows[:, None], columns[None]]


def _near_edge(regions: NDArray[np.int64]) -> NDArray[np.bool_]:
    """[H, W]: pixels within _EDGE_PX of another region or the image's border."""
    padded = np.pad(regions, _EDGE_PX, constant_values=-1)
    height, width = regions.shape
    near = np.zeros_like(regions, dtype=bool)
    for down, right in ((0, _EDGE_PX), (2 * _EDGE_PX, _EDGE_PX), (_EDGE_PX, 0), (_EDGE_PX, 2 * _EDGE_PX)):
        near |= padded[down : down + height, right : right + width] != regions
    return near


def _write_number(drawn: Image.Image, cells: NDArray[np.bool_], number: int) -> None:
    """Write a region's number, dark on a disc of its colour, on the cell that is nearest the region's middle.

    drawn: the picture.
    cells: [g, g], the cells of one connected part of the region.
    number: of the region.
    """
    where = np.argwhere(cells)  # [cells, 2], row and column
    row, column = where[((where - where.mean(axis=0)) ** 2).sum(axis=1).argmin()]
    x, y = (column + 0.5) * drawn.width / len(cells), (row + 0.5) * drawn.height / len(cells)
    draw = ImageDraw.Draw(drawn)
    radius = SHOWN_PX // 36
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=region_colour(number), outline=(20, 20, 20))
    font = ImageFont.load_default(size=radius * 1.25)
    draw.text((x, y), str(number), fill=(20, 20, 20), font=font, anchor="mm")
