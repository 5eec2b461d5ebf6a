"""Six hundred damaged, odd and hostile images: `embed` goes through all of them, in bounded memory."""

import io
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.programs import program

N_IMAGES, MAX_MB = 600, 2000

# In a process of its own, whose growth is then this folder's; with more threads than the images have room for.
_EMBED = """
import sys
from pathlib import Path
from for_model.data.folder import load_folder
from for_search.store.embed import embed
from tests.helpers.fake_method import FakeMethod

def resident_kb(what):
    return int(next(line for line in open("/proc/self/status") if line.startswith(what)).split()[1])

Path("/proc/self/clear_refs").write_text("5")  # the peak is what it holds now
before = resident_kb("VmRSS")
report = embed(load_folder(Path(sys.argv[1])), FakeMethod(), Path(sys.argv[2]), workers=8, progress=False)
print(report.n_images, report.n_skipped, (resident_kb("VmHWM") - before) // 1024)
"""


def png(width: int, height: int, colour_type: int, bytes_per_pixel: int) -> bytes:
    """A sound PNG of zeros, however large, made without its pixels in memory."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packed, line = zlib.compressobj(1), bytes(1 + width * bytes_per_pixel)
    data = b"".join(packed.compress(line) for _ in range(height)) + packed.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def write_odd_images(folder: Path) -> tuple[int, int]:
    """Write them; returns how many of them can be embedded, and how many can't for sure."""
    good = {"grey": png(10_000, 10_000, 0, 1), "clear": png(5_000, 5_000, 6, 4), "colour": png(6_000, 6_000, 2, 3)}
    bad = {"thread": png(1, 490_000, 0, 1), "wide": png(100_000_000, 1, 0, 1), "huge": png(12_000, 10_000, 0, 1)}
    for name, content in {**good, **bad}.items():
        for copy in range(3):
            (folder / f"{name}{copy}.png").write_bytes(content)
    rng = np.random.default_rng(0)
    kinds = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "ICO", "PPM", "JPEG2000", "TGA")
    for i in range(N_IMAGES - 18):
        stream, kind = io.BytesIO(), kinds[i % len(kinds)]
        Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).save(stream, kind)
        content = np.frombuffer(stream.getvalue(), np.uint8).copy()
        content[rng.integers(0, min(len(content), 400), 8)] = rng.integers(0, 256, 8)
        (folder / f"{i:03d}.jpg").write_bytes(content.tobytes()[: len(content) if i % 3 else len(content) // 2])
    return 9, 9


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from Linux's /proc")
def test_memory_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    n_good, n_bad = write_odd_images(tmp_path / "images")
    with program(_EMBED, str(tmp_path / "images"), str(tmp_path / "store")) as embedding:
        ended, (out, error) = embedding.wait(), embedding.said()
    assert ended == 0, error
    n_images, n_skipped, peak_mb = map(int, out.split())
    assert n_images + n_skipped == N_IMAGES
    assert n_images >= n_good
    assert n_skipped >= n_bad
    assert peak_mb < MAX_MB
