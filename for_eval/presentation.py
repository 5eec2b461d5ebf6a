"""What the web page shows: pictures with captions for a query, a description of the index, the API's answer.

No web framework here: images, strings and JSON values. Whatever comes from a query or a file's name is escaped in HTML,
and no path of this machine is told.
"""

import html
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw

from for_eval.index import Hit, SearchIndex
from for_eval.search import Searcher
from for_model.data.images import load_image
from for_model.errors import ImageError, StoreError, UsageError

MAX_API_K = 1000
MAX_QUERY_CHARACTERS = 300  # the tokenizer cuts a longer query anyway
THUMBNAIL_PX = 512  # longest side; shown small in the grid and whole when a picture is opened
SHOWN_SKIPPED = 100


@dataclass(frozen=True)
class Answer:
    """What the page shows for one query: pictures with captions, best first, and a line of HTML about the search."""

    pictures: list[tuple[Image.Image, str]]
    status_html: str


def answer(searcher: Searcher, text: str, k: int) -> Answer:
    """Search, and load the pictures that were found; one that can't be shown becomes a placeholder with the reason.

    Raises UsageError for an empty text or k < 1.
    """
    result = searcher.search(clean_query(text), k)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        shown = list(pool.map(lambda hit: _picture(searcher, hit), result.hits))
    pictures = [
        (image, f"{rank} · {hit.score:.3f}{f' · {problem}' if problem else ''}")
        for rank, (hit, (image, problem)) in enumerate(zip(result.hits, shown, strict=True), start=1)
    ]
    info = searcher.index.info
    parts = [
        f"<b>{html.escape(clean_query(text).strip())}</b>",
        f"best {len(pictures)} of {len(searcher.index.images):,} images",
        f"{info.n_embeddings} embedding{'s' * (info.n_embeddings != 1)} an image",
        f"encoded in {result.encode_ms:.0f} ms, searched in {result.search_ms:.1f} ms",
    ]
    missing = sum(bool(problem) for _, problem in shown)
    if missing:
        parts.append(f"{missing} of the pictures can't be shown")
    return Answer(pictures, " · ".join(parts))


def clean_query(text: str) -> str:
    """At most MAX_QUERY_CHARACTERS of a text, without half surrogate pairs, which JSON can hold but UTF-8 can't."""
    return text[:MAX_QUERY_CHARACTERS].encode("utf-8", "replace").decode()


def _picture(searcher: Searcher, hit: Hit) -> tuple[Image.Image, str | None]:
    """A thumbnail of an image that was found, and None; or a placeholder, and why the image can't be shown."""
    try:
        image = load_image(searcher.image_path(hit.image), target=THUMBNAIL_PX)
    except ImageError as error:
        return _placeholder(), str(error)
    except StoreError:  # an index from somewhere else may name any path
        return _placeholder(), "outside the image folder"
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
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


def api_search(searcher: Searcher, query: str, k: int) -> dict[str, Any]:
    """The API's answer: the hits without their paths, and the latency. Raises UsageError, as for k > MAX_API_K."""
    if k > MAX_API_K:
        raise UsageError(f"k is {k}: ask for at most {MAX_API_K} images")
    answered = searcher.search(clean_query(query), k).to_json()
    hits = [{name: hit[name] for name in ("rank", "id", "score", "embedding")} for hit in answered["hits"]]
    return {**answered, "hits": hits}
