import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import ExifTags, Image

from for_model.data.images import DecodingRoom
from tests.helpers.paths import REPOSITORY
from tests.helpers.patience import PATIENCE_S


def test_never_holds_more_than_it_has() -> None:
    room, lock, held, most = DecodingRoom(10), threading.Lock(), 0, 0
    sizes = np.random.default_rng(0).integers(1, 11, 300).tolist()

    def work(size: int) -> None:
        nonlocal held, most
        with room.taking(size):
            with lock:
                held += size
                most = max(most, held)
            time.sleep(0)
            with lock:
                held -= size

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, sizes))
    assert (held, most <= 10) == (0, True)
    with room.taking(10):  # all of it has been given back
        pass


def test_gives_back_what_a_failure_held() -> None:
    room = DecodingRoom(1)
    for _ in range(3):
        with pytest.raises(MemoryError), room.taking(1):
            raise MemoryError


def test_a_large_one_is_not_overtaken_for_ever() -> None:
    room, order = DecodingRoom(10), []
    first = room.taking(6)
    first.__enter__()

    def work(name: str, size: int) -> None:
        with room.taking(size):
            order.append(name)

    large = threading.Thread(target=work, args=("large", 10))
    large.start()
    while not room._turn.locked():
        time.sleep(0.001)
    small = threading.Thread(target=work, args=("small", 1))
    small.start()
    assert order == []  # the small one would fit, but the large one was there first
    first.__exit__(None, None, None)
    large.join()
    small.join()
    assert order == ["large", "small"]


def write_pictures(folder: Path, side: int) -> int:
    """A picture of every kind that takes memory in its own way; returns how many there are."""
    pixels = np.zeros((side, side), np.uint8)
    pixels[::7] = 200
    kinds = {
        **{f"{mode}.png": mode for mode in ("L", "RGB", "RGBA", "P", "LA", "1")},
        **{f"a.{suffix}": "RGB" for suffix in ("jpg", "webp", "bmp", "jp2", "heic", "avif")},
        **{"cmyk.tif": "CMYK", "progressive.jpg": "RGB", "a.gif": "P", "a.tga": "RGBA"},
    }
    pictures = {name: Image.fromarray(pixels).convert(mode) for name, mode in kinds.items()}
    pictures["deep.png"] = Image.fromarray(pixels.astype(np.uint16) * 256)
    pictures["float.tif"] = Image.fromarray(pixels.astype(np.float32))
    pictures["wide.tif"] = Image.fromarray(pixels.astype(np.int32))
    quarter_turn = Image.Exif()
    quarter_turn[ExifTags.Base.Orientation] = 6
    options: dict[str, dict[str, object]] = {
        "a.avif": {"speed": 10},
        "progressive.jpg": {"progressive": True},
        **{f"{mode}.png": {"exif": quarter_turn} for mode in ("RGB", "RGBA", "P")},
    }
    for name, picture in pictures.items():
        picture.save(folder / name, **options.get(name, {}))
    return len(pictures)


# In a process of its own, in which the system gives no more memory beyond what it has already than is counted.
_WITHIN_WHAT_IS_COUNTED = """
import resource, sys
from pathlib import Path
from for_model.data.images import _coefficient_bytes, _pixel_bytes, load_image, opened_image

for path in Path(sys.argv[1], "small").iterdir():  # so that libraries and the stacks of threads are there
    load_image(path)
for path in sorted(Path(sys.argv[1], "large").iterdir()):
    with opened_image(path) as image:
        counted = _pixel_bytes(image) + _coefficient_bytes(image)
    taken = 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1])
    resource.setrlimit(resource.RLIMIT_AS, (taken + counted + 2**22, resource.RLIM_INFINITY))
    try:
        outcome = load_image(path).size
    except Exception as error:
        outcome = error
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(path.name, outcome)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_decoding_takes_no_more_than_is_counted(tmp_path: Path) -> None:
    pillow_heif.register_heif_opener()
    for size, side in (("small", 64), ("large", 1600)):
        (tmp_path / size).mkdir()
        n_pictures = write_pictures(tmp_path / size, side)
    run = subprocess.run(
        [sys.executable, "-c", _WITHIN_WHAT_IS_COUNTED, str(tmp_path)],
        cwd=REPOSITORY,
        # What has been freed goes back to the system, and nothing is set aside for threads.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert len(lines) == n_pictures == 19
    assert [line for line in lines if not line.endswith("(1600, 1600)")] == []
