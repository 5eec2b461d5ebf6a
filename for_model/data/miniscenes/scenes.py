"""MiniScenes: a small world of drawn objects in which all of FOR can be trained and evaluated without any download.

A scene holds 1 to 8 icon-font drawings of random colour, size, rotation and place, partly hidden by one another, on a
varied background with pixel noise. Scene `index` of a split depends on (seed, split, index, size) alone, so the same
arguments give the same bytes, whatever the number of processes. `write_scenes` writes COCO's own layout.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from for_model.data.miniscenes.concepts import CONCEPTS, Concept, Split
from for_model.data.miniscenes.glyphs import ink_area, mask, styles
from for_model.errors import DataError, UsageError
from for_model.files import cache_dir, write_json

Drawn = TypeVar("Drawn")

VERSION = 1  # raise it when the same arguments give other scenes
DEFAULT_COUNTS: dict[Split, int] = {"train": 48_000, "dev": 1000, "val": 2000}
DEFAULT_SIZE = 160
BENCHMARK_SHARE = 0.7  # this share of the objects is of the 65 base and novel categories, the rest of the others
HELD_BACK_SHARE = 0.6  # of the objects whose concept has drawings held back for the split, this share shows one
OBJECT_PX = (28, 88)  # longest side, log-uniform; in pixels, not in shares of the canvas, so that crops match scenes
FITS_TURNED = 0.77  # share of the canvas: an object of this length still fits when turned by 20 degrees
_CHUNK = 64  # scenes that a process draws at a time
MIN_VISIBLE = 0.6  # an object is placed only where this share of every other object's ink stays visible


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene.

    concept: position in CONCEPTS.
    drawing: one of the concept's, such as `mdi:cat`.
    glyph: the font and the name of the glyph that was drawn.
    box_xywh_px: left, top, width and height, in pixels.
    area_px: how many pixels of its ink are visible.
    """

    concept: int
    drawing: str
    glyph: str
    box_xywh_px: tuple[int, int, int, int]
    area_px: int


def scene_rng(seed: int, stream: str, index: int) -> Generator:
    """The random numbers of one scene; independent between streams (a split's name, say) and scenes."""
    key = int.from_bytes(hashlib.sha256(stream.encode()).digest()[:4], "big")
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, key, index))))


@lru_cache(maxsize=1)
def _pools() -> tuple[tuple[int, ...], tuple[int, ...]]:
    benchmark = tuple(i for i, c in enumerate(CONCEPTS) if c.group != "other")
    return benchmark, tuple(i for i, c in enumerate(CONCEPTS) if c.group == "other")


def _pick(rng: Generator, options: tuple[Any, ...]) -> Any:
    return options[int(rng.integers(len(options)))]


def _background(rng: Generator, size: int) -> NDArray[np.float32]:
    """[size, size, 3] in 0-255: flat, a gradient, smooth blotches or stripes of two colours."""
    low, high = rng.uniform(0, 255, (2, 3)).astype(np.float32)
    high = low + (high - low) * np.float32(rng.uniform(0.1, 0.45))
    kind = int(rng.integers(4))
    if kind == 0:
        weight = np.zeros((size, size), np.float32)
    elif kind == 2:
        coarse = Image.fromarray(rng.random((6, 6), dtype=np.float32))
        weight = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))
    else:
        angle = rng.uniform(0, 2 * np.pi)
        axis = np.arange(size, dtype=np.float32) / size - 0.5
        ramp = np.cos(angle) * axis[None, :] + np.sin(angle) * axis[:, None]
        weight = ramp + 0.5 if kind == 1 else 0.5 + 0.5 * np.sin(ramp * rng.uniform(10, 50))
    return np.asarray(low + weight[..., None].astype(np.float32) * (high - low), np.float32)


def _colour(rng: Generator, behind: NDArray[np.float32]) -> NDArray[np.float32]:
    """A colour that can be told from the one behind it."""
    while True:
        colour = rng.uniform(0, 255, 3).astype(np.float32)
        if float(np.abs(colour - behind).sum()) > 240:
            return colour


def _drawing(rng: Generator, concept: Concept, split: Split) -> str:
    held_back = concept.held_back(split)
    if held_back and rng.random() < HELD_BACK_SHARE:
        return str(_pick(rng, held_back))
    return str(_pick(rng, concept.shared()))


def _stamp(rng: Generator, glyph: Image.Image, longest_px: float) -> Image.Image:
    """The glyph at its size in the scene, maybe mirrored, turned by up to 20 degrees."""
    scale = longest_px / max(glyph.size)
    small = glyph.resize(
        (max(round(glyph.width * scale), 4), max(round(glyph.height * scale), 4)), Image.Resampling.BILINEAR
    )
    if rng.random() < 0.5:
        small = small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return small.rotate(float(rng.uniform(-20, 20)), Image.Resampling.BILINEAR, expand=True)


def render_scene(
    rng: Generator,
    split: Split,
    size: int = DEFAULT_SIZE,
    max_objects: int = 8,
    object_px: tuple[float, float] = OBJECT_PX,
) -> tuple[NDArray[np.uint8], list[SceneObject]]:
    """Draw one scene.

    rng: the random numbers, see `scene_rng`.
    split: whose held-back drawings may be shown.
    size: pixels a side.
    max_objects: the number of objects is uniform in 1..max_objects.
    object_px: the shortest and the longest that an object's longest side may be, in pixels.

    Returns [size, size, 3] uint8 RGB, and the objects in the order in which they were drawn.
    """
    canvas = _background(rng, size)
    owner = np.full((size, size), -1, np.int16)  # which object a pixel shows
    placed: list[tuple[int, str, str, tuple[int, int, int, int], int]] = []
    for _ in range(int(rng.integers(1, max_objects + 1))):
        concept = _pick(rng, _pools()[0 if rng.random() < BENCHMARK_SHARE else 1])
        drawing = _drawing(rng, CONCEPTS[concept], split)
        stem, glyph = _pick(rng, styles(drawing))
        longest = float(np.exp(rng.uniform(np.log(object_px[0]), np.log(min(object_px[1], FITS_TURNED * size)))))
        stamp = _stamp(rng, mask(stem, glyph), longest)
        spot = _free_spot(rng, owner, stamp, [p[4] for p in placed])
        if spot is None:
            continue
        x, y, ink = *spot, np.asarray(stamp)
        height, width = ink.shape
        alpha = ink[..., None].astype(np.float32) * np.float32(1 / 255)
        patch = canvas[y : y + height, x : x + width]
        patch += alpha * (_colour(rng, patch.mean((0, 1))) - patch)
        owner[y : y + height, x : x + width][ink > 127] = len(placed)
        placed.append((concept, drawing, f"{stem}:{glyph}", (x, y, width, height), ink_area(stamp)))
    canvas += rng.standard_normal(canvas.shape, dtype=np.float32) * np.float32(rng.uniform(2, 10))
    visible = np.bincount(owner[owner >= 0], minlength=len(placed))
    objects = [SceneObject(*row[:4], int(area)) for row, area in zip(placed, visible, strict=True)]
    return canvas.clip(0, 255).astype(np.uint8), objects


def _free_spot(rng: Generator, owner: NDArray[np.int16], stamp: Image.Image, inks: list[int]) -> tuple[int, int] | None:
    """A place where the stamp leaves MIN_VISIBLE of every object under it visible; None after 12 tries."""
    size = owner.shape[0]
    width, height = stamp.size
    ink = np.asarray(stamp) > 127
    shown = np.bincount(owner[owner >= 0], minlength=len(inks))
    for _ in range(12):
        x, y = int(rng.integers(size - width + 1)), int(rng.integers(size - height + 1))
        under = owner[y : y + height, x : x + width][ink]
        hidden = np.bincount(under[under >= 0], minlength=len(inks))
        if all(shown[i] - hidden[i] >= MIN_VISIBLE * inks[i] for i in range(len(inks))):
            return x, y
    return None


def write_scenes(root: Path, counts: dict[Split, int], seed: int = 0, size: int = DEFAULT_SIZE) -> None:
    """Write splits in COCO's layout: `root/SPLIT/000000000001.jpg`, `root/annotations/instances_SPLIT.json`.

    The annotation file comes last and atomically: a split that has one is complete. Shows a progress bar.

    root: the folder to write to.
    counts: how many scenes of each split; 0 for none.
    seed: other seeds draw other scenes.
    size: pixels a side, a multiple of 32.

    Raises UsageError for impossible arguments, DataError if a split is there already, made with other arguments.
    """
    if size < 64 or size % 32:
        raise UsageError(f"--size must be a multiple of 32, at least 64; got {size}")
    targets = {split: root / "annotations" / f"instances_{split}.json" for split in counts}
    for split, count in counts.items():
        if count < 0:
            raise UsageError(f"--{split} must be 0 or more; got {count}")
        if count and targets[split].exists():
            raise DataError(f"{targets[split]} is there already: choose another --out, or delete {root}")
    for split, count in counts.items():
        if count == 0:
            continue
        (root / split).mkdir(parents=True, exist_ok=True)
        write_json(targets[split], _coco_json(root, split, count, seed, size))


def _coco_json(root: Path, split: Split, count: int, seed: int, size: int) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    draw = partial(_draw_one, root, split, seed, size)
    for index, objects in enumerate(draw_all(draw, count, f"MiniScenes {split}", "scene")):
        image_id = index + 1
        images.append({"id": image_id, "file_name": _file_name(index), "width": size, "height": size})
        annotations += [_annotation(len(annotations) + i + 1, image_id, o) for i, o in enumerate(objects)]
    return {
        "info": {
            "description": "MiniScenes, drawn by FOR",
            "version": VERSION,
            "split": split,
            "seed": seed,
            "size_px": size,
            "scenes": count,
        },
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i + 1, "name": c.name, "group": c.group} for i, c in enumerate(CONCEPTS)],
    }


def _annotation(annotation_id: int, image_id: int, item: SceneObject) -> dict[str, Any]:
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": item.concept + 1,
        "bbox": list(item.box_xywh_px),
        "area": item.area_px,
        "iscrowd": 0,
        "drawing": item.drawing,
        "glyph": item.glyph,
    }


def _file_name(index: int) -> str:
    return f"{index + 1:012d}.jpg"


def draw_all(draw: Callable[[int], Drawn], count: int, title: str, unit: str) -> Iterator[Drawn]:
    """What `draw` makes of 0 to count - 1, in this order; drawn by as many processes as there are cores to run on.

    draw: a function that can be pickled.
    title, unit: of the progress bar.
    """
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with tqdm(total=count, desc=title, unit=unit, disable=None) as bar, contextlib.ExitStack() as stack:
        drawn: Iterator[Drawn] = map(draw, range(count))
        if count > _CHUNK:  # up to there one process would draw them all
            drawn = stack.enter_context(ProcessPoolExecutor(workers)).map(draw, range(count), chunksize=_CHUNK)
        for one in drawn:
            bar.update()
            yield one


def _draw_one(root: Path, split: Split, seed: int, size: int, index: int) -> list[SceneObject]:
    pixels, objects = render_scene(scene_rng(seed, split, index), split, size)
    Image.fromarray(pixels).save(root / split / _file_name(index), quality=92)
    return objects


def default_root(split: str) -> Path:
    """The cache folder of the default scenes, with those of a split drawn on first use.

    The train split has 48,000 scenes (drawn in a minute or two), dev 1,000 and val 2,000.

    split: `train`, `dev` or `val`; for another name nothing is drawn.
    """
    root = cache_dir() / f"miniscenes-v{VERSION}"
    missing: dict[Split, int] = {
        known: count
        for known, count in DEFAULT_COUNTS.items()
        if known == split and not (root / "annotations" / f"instances_{known}.json").exists()
    }
    write_scenes(root, missing)
    return root
