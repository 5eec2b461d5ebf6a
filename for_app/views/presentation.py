"""What the Search tab shows: pictures with captions for a query, the scores of all images, a description of the index.

No web framework here: images, strings and JSON values. Whatever comes from a query or a file's name is escaped in HTML,
and no path of this machine is told.
"""

import html
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from for_model.data.dataset import ImageRecord
from for_model.data.images import load_image
from for_model.errors import ImageError, StoreError
from for_search.index.index import SearchIndex
from for_search.query.searcher import Searcher, SearchResult

THUMBNAIL_PX = 512  # longest side; shown small in the grid
LARGE_PX = 768  # longest side of an opened image; a smaller one is enlarged
SHOWN_SKIPPED = 100
_BINS = 60


def status_html(result: SearchResult, n_shown: int, index: SearchIndex, n_missing: int) -> str:
    """A line about a search, as HTML.

    n_shown: images in the grid.  n_missing: those of them whose pictures can't be shown.
    """
    info = index.info
    parts = [
        f"<b>{html.escape(result.query.strip())}</b>",
        f"best {n_shown} of {len(index.images):,} images",
        f"{info.n_embeddings} embedding{'s' * (info.n_embeddings != 1)} an image",
        f"index of {_size(index.n_bytes)}",
        f"encoded in {result.encode_ms:.0f} ms, searched in {result.search_ms:.1f} ms"
        if result.encode_ms
        else f"searched in {result.search_ms:.1f} ms",
    ]
    if n_missing:
        parts.append(f"{n_missing} of the pictures can't be shown")
    return " · ".join(parts)


def histogram_html(scores: NDArray[np.float32], low: float, high: float, cutoff: float | None, n_images: int) -> str:
    """The scores of a query as a histogram, an SVG that takes the page's colours; heights grow with the logarithm.

    scores: [m], of all n_images or of a sample.  low, high: the ends of the axis.  cutoff: bars below it are pale.
    """
    counts, edges = np.histogram(scores, bins=_BINS, range=(low, max(high, low + 0.01)))
    heights = np.log1p(counts) / np.log1p(max(1, counts.max())) * 40
    limit = low if cutoff is None else cutoff
    bars = "".join(
        f'<rect x="{2 * i}" y="{40 - height:.1f}" width="1.7" height="{height:.1f}"'
        f"{' class=below' if edges[i + 1] <= limit else ''}></rect>"
        for i, height in enumerate(heights)
        if height
    )
    above = int((scores >= limit).sum()) if cutoff is not None else len(scores)
    of = f"all {n_images:,} images" if len(scores) == n_images else f"{len(scores):,} of {n_images:,} images, a sample"
    told = f"scores of {of}, {low:.2f} to {high:.2f}; heights are logarithms"
    if cutoff is not None:
        told += f"; {above:,} score {cutoff:.3f} or more"
    return (
        f'<figure><svg viewBox="0 0 {2 * _BINS} 40" preserveAspectRatio="none" role="img" aria-label="{told}">{bars}'
        f"</svg><figcaption>{told}</figcaption></figure>"
    )


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


def _placeholder() -> Image.Image:
    """A grey square, crossed out."""
    image = Image.new("RGB", (160, 160), (148, 152, 160))
    draw = ImageDraw.Draw(image)
    for ends in ((60, 60, 100, 100), (60, 100, 100, 60)):
        draw.line(ends, fill=(225, 227, 231), width=5)
    return image


def about_html(index: SearchIndex) -> str:
    """What the index holds, as HTML. Names no folder of this machine: the page may be seen by others."""
    info = index.info
    rows = {
        "Dataset": f"{index.dataset} ({index.split})",
        "Images": f"{len(index.images):,} searched, {len(index.skipped):,} skipped",
        "Method": f"{info.method}, {info.n_embeddings} embeddings of width {info.dim} an image",
        "Backbone": f"{info.backbone} at {info.image_size} pixels, "
        f"weights {info.weights} (sha256 {info.weights_sha256[:12]})",
        "Index": f"{index.kind}, {_size(index.n_bytes)} on disk, {_size(index.n_bytes / len(index.images))} an image",
    }
    lines = "".join(f"<dt>{name}</dt><dd>{html.escape(value)}</dd>" for name, value in rows.items())
    if not index.skipped:
        return f"<dl>{lines}</dl>"
    first = index.skipped[:SHOWN_SKIPPED]
    items = "".join(f"<li>{html.escape(f'{image.path}: {image.reason}')}</li>" for image in first)
    rest = len(index.skipped) - len(first)
    items += f"<li>and {rest:,} more, listed in the index's manifest.json</li>" if rest else ""
    return f"<dl>{lines}<dt>Skipped</dt><dd><ul>{items}</ul></dd></dl>"


def _size(n_bytes: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "bytes" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} GB"
