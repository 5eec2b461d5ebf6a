"""Damaged and odd images: `python -m tests.attack.odd_images --images 1000`.

A folder of small images in six formats, most of them with bytes changed, cut off or put in, between whole ones and
ones that are odd in themselves: huge sides, a grey line of 100 million pixels, 16 bits, CMYK, palettes, several frames,
empty files, text. `embed` runs over it in a process of its own. What must hold: it ends by itself, each image is
embedded or skipped with a reason of one line, and its resident memory, at its largest, stays below 2 GB.
"""

import argparse
import io
import os
import random
import re
import resource
import struct
import subprocess
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from for_search.store.store import open_store
from tests.helpers.fake_method import noise
from tests.helpers.paths import REPOSITORY

MOST_BYTES = 2 * 10**9
FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "TIFF": "tif", "BMP": "bmp"}


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def grey_png(width: int, height: int) -> bytes:
    """A black PNG of any size. Its lines are packed many at a time: this process's memory counts as the child's."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    packer = zlib.compressobj(9)
    row = bytes(width + 1)
    step = max(1, (1 << 20) // len(row))
    rows = [packer.compress(row * min(step, height - start)) for start in range(0, height, step)]
    packed = b"".join(rows) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def _odd(generator: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """Names and contents of images that are odd, and whole."""
    small = noise(generator, 64, 48)
    yield "line.png", grey_png(1, 20_000_000)
    yield "wide.png", grey_png(60_000, 900)
    yield "cmyk.jpg", _saved(small.convert("CMYK"), "JPEG")
    yield "16.png", _saved(Image.fromarray(generator.integers(0, 2**16, (40, 50), dtype=np.uint16)), "PNG")
    yield "float.tif", _saved(Image.fromarray(generator.random((40, 50), dtype=np.float32)), "TIFF")
    yield "palette.png", _saved(small.convert("P"), "PNG", transparency=3)
    yield "alpha.webp", _saved(small.convert("RGBA"), "WEBP")
    yield "bits.tif", _saved(small.convert("1"), "TIFF")
    yield "moving.gif", _saved(small, "GIF", save_all=True, append_images=[small.rotate(90)] * 50)
    yield "pixel.png", _saved(Image.new("RGB", (1, 1)), "PNG")
    yield "empty.jpg", b""
    yield "text.jpg", b"no image at all\n" * 100
    yield "zeros.png", bytes(100_000)


def _large() -> Iterator[tuple[str, bytes]]:
    """Images of as many pixels as are decoded, and more."""
    yield "line-2.png", grey_png(1, 100_000_000)
    yield "line-3.png", grey_png(1, 49_000_000)
    yield "large.png", grey_png(11_000, 10_000)
    yield "larger.png", grey_png(20_000, 20_000)
    yield "large.jpg", _saved(Image.new("RGB", (12_000, 9_000), (9, 99, 200)), "JPEG")
    yield "progressive.jpg", _saved(Image.new("RGB", (8_000, 6_000), (200, 9, 9)), "JPEG", progressive=True)
    yield "large.webp", _saved(Image.new("RGB", (8_000, 8_000), (9, 200, 9)), "WEBP")


def write_images(folder: Path, count: int, seed: int) -> None:
    """So many images, the odd ones among them."""
    chance, generator = random.Random(seed), np.random.default_rng(seed)
    odd = [*_odd(generator), *_large()]
    for name, content in odd:
        (folder / name).write_bytes(content)
    for i in range(count - len(odd)):
        kind, ending = chance.choice(list(FORMATS.items()))
        content = bytearray(_saved(noise(generator, chance.randrange(8, 200), chance.randrange(8, 200)), kind))
        for _ in range(chance.choice((0, 1, 1, 3, 30))):
            at = chance.randrange(len(content))
            # the first bytes hold sizes and types, where a change does most
            at = chance.randrange(min(100, len(content))) if chance.random() < 0.5 else at
            match chance.randrange(4):
                case 0:
                    content[at] ^= 1 << chance.randrange(8)
                case 1:
                    content[at] = chance.choice((0, 255, 127, 128))
                case 2:
                    content[at:at] = chance.randbytes(chance.randrange(1, 40))
                case 3:
                    del content[max(at, 1) :]
        (folder / f"{i:04d}.{ending}").write_bytes(content)


def run(count: int, seed: int) -> str:
    """Embed them. Returns a line for the report; raises AssertionError for a promise that is broken."""
    with tempfile.TemporaryDirectory() as name:
        images, store = Path(name) / "images", Path(name) / "store"
        images.mkdir()
        write_images(images, count, seed)
        command = [sys.executable, "-m", "for_search", "embed", "--dataset", "folder", "--root", str(images)]
        done = subprocess.run(
            [*command, "--method", "clip", "--out", str(store)],
            cwd=REPOSITORY,
            env={**os.environ, "FOR_CACHE": str(Path(name) / "cache")},
            capture_output=True,
            text=True,
            check=False,
        )
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        assert done.returncode == 0, done.stderr[-2000:]
        assert "Traceback" not in done.stderr, done.stderr[-2000:]
        skipped = [image.reason for image in open_store(store).skipped]
        found = re.search(r": (\d+) images, (\d+) skipped", done.stdout)
        assert found is not None, done.stdout
        embedded = int(found[1])
        assert embedded + len(skipped) == count, (embedded, len(skipped), count)
        assert all(reason and "\n" not in reason for reason in skipped)
        assert peak < MOST_BYTES, f"{peak / 1e9:.2f} GB"
    kinds = Counter(reason.partition(":")[0].partition("(")[0].strip()[:40] for reason in skipped)
    most = ", ".join(f"{n} {kind!r}" for kind, n in kinds.most_common(3))
    return (
        f"{count:,} images: {embedded} embedded, {len(skipped)} skipped with a reason (most often {most}); "
        f"resident memory at its largest {peak / 1e9:.2f} GB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000, help="how many (default 1000)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(run(arguments.images, arguments.seed))


if __name__ == "__main__":
    sys.exit(main())
