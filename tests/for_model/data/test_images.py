import io
import os
import struct
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import ExifTags, Image, ImageCms, ImageFile

from for_model.data import images
from for_model.data.images import MAX_PIXELS, DecodingRoom, decoded_image, load_image
from for_model.errors import ImageError

RED = (255, 0, 0)


def save(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def pixel(image: Image.Image, x: int = 0, y: int = 0) -> tuple[int, ...]:
    value = image.getpixel((x, y))
    assert isinstance(value, tuple)
    return value


def photo(size: tuple[int, int] = (64, 48)) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGB", RED, RED),
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (255, 0, 0, 128), (255, 127, 127)),
        ("L", 100, (100, 100, 100)),
        ("LA", (0, 0), (255, 255, 255)),
        ("1", 1, (255, 255, 255)),
        ("P", 0, (0, 0, 0)),
    ],
)
def test_modes_become_rgb_on_white(tmp_path: Path, mode: str, colour: object, expected: tuple[int, ...]) -> None:
    image = load_image(save(Image.new(mode, (5, 4), colour), tmp_path / "a.png"))
    assert (image.mode, image.size, pixel(image)) == ("RGB", (5, 4), expected)


@pytest.mark.parametrize("transparency", [0, b"\x00\xff"])
def test_transparent_palette_entries_show_white(tmp_path: Path, transparency: object) -> None:
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    image = load_image(save(palette, tmp_path / "a.png", transparency=transparency))
    assert (pixel(image), pixel(image, 1)) == ((255, 255, 255), (0, 0, 255))


def test_transparent_colour_key_shows_white(tmp_path: Path) -> None:
    image = load_image(save(Image.new("RGB", (4, 4), RED), tmp_path / "a.png", transparency=RED))
    assert pixel(image) == (255, 255, 255)


def test_cmyk_jpeg(tmp_path: Path) -> None:
    image = load_image(save(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), tmp_path / "a.jpg", quality=100))
    assert image.mode == "RGB"
    np.testing.assert_allclose(pixel(image), RED, atol=3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(tmp_path: Path, orientation: int) -> None:
    upright = Image.new("RGB", (40, 24))
    upright.paste(RED, (0, 0, 20, 12))  # red in the upper left quarter only
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # what a camera did, as Pillow's Transpose
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    for suffix in (".jpg", ".png", ".tif", ".webp"):
        image = load_image(save(stored, tmp_path / f"a{suffix}", exif=exif))
        assert image.size == (40, 24)
        np.testing.assert_allclose(pixel(image, 4, 4), RED, atol=12)
        np.testing.assert_allclose(pixel(image, 35, 4), 0, atol=12)
        np.testing.assert_allclose(pixel(image, 4, 20), 0, atol=12)


def test_damaged_exif_leaves_the_pixels(tmp_path: Path) -> None:
    path = save(Image.new("RGB", (8, 6), RED), tmp_path / "a.jpg", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    assert load_image(path).size == (8, 6)


def test_16_bit_greyscale_is_scaled_not_clipped(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256, dtype=np.uint16).reshape(16, 16)
    for name in ("a.png", "a.tif", "a.pgm"):
        values = np.asarray(load_image(save(Image.fromarray(ramp), tmp_path / name)))[..., 0]
        np.testing.assert_array_equal(values, ramp >> 8)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.0, 200.0], [0, 100, 200]),
        ([-10.0, 0.0, 10.0], [0, 128, 255]),
        ([0.0, 1000.0, 4000.0], [0, 64, 255]),
        ([float("nan"), 0.0, 1.0], [0, 0, 255]),
        ([float("inf"), float("nan"), float("-inf")], [0, 0, 0]),
        ([-3.0, -3.0, -3.0], [0, 0, 0]),
    ],
)
def test_float_tiff_is_scaled(tmp_path: Path, values: list[float], expected: list[int]) -> None:
    path = save(Image.fromarray(np.array([values], dtype=np.float32)), tmp_path / "a.tiff")
    assert np.asarray(load_image(path))[0, :, 0].tolist() == expected


def test_32_bit_tiff_is_scaled(tmp_path: Path) -> None:
    path = save(Image.fromarray(np.array([[-5, 0, 5]], dtype=np.int32)), tmp_path / "a.tiff")
    assert np.asarray(load_image(path))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tif"])
def test_an_animation_gives_its_first_frame(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, (0, 255, 0))]
    path = save(frames[0], tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:])
    np.testing.assert_allclose(pixel(load_image(path)), RED, atol=3)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def test_a_caller_may_allow_fewer_pixels(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "small.png")
    assert load_image(tmp_path / "small.png", max_pixels=600).size == (30, 20)
    with pytest.raises(ImageError, match=r"^too large: 30x20 pixels \(limit 599\)$"):
        load_image(tmp_path / "small.png", max_pixels=599)


@pytest.mark.parametrize(("width", "height"), [(50_000, 40_000), (17_801, 10_000)])
def test_a_decompression_bomb_is_refused_from_its_header(tmp_path: Path, width: int, height: int) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(width, height) + png_chunk(b"IDAT", zlib.compress(bytes(1000))))
    with pytest.raises(ImageError, match=f"^too large: {width}x{height} pixels \\(limit {MAX_PIXELS}\\)$"):
        load_image(path)


def test_an_image_that_pillow_warns_of_is_not_refused_for_it(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(png_header(10_000, 10_000) + png_chunk(b"IDAT", zlib.compress(bytes(1000))))
    with pytest.raises(ImageError, match=r"^truncated$"):
        load_image(path)


def truncated(suffix: str) -> bytes:
    stream = io.BytesIO()
    photo((200, 150)).save(stream, {".jpg": "JPEG", ".png": "PNG", ".gif": "GIF", ".bmp": "BMP"}[suffix])
    return stream.getvalue()[: stream.tell() // 2]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".gif", ".bmp"])
def test_truncated_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(truncated(suffix))
    with pytest.raises(ImageError, match=r"^truncated$"):
        load_image(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"<!DOCTYPE html><title>404</title>", "not an image: unknown format or damaged header"),
        (b"\xff\xd8\xff\xe0", "not an image: unknown format or damaged header"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image: unknown format or damaged header"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic", "not an image: unknown format or damaged header"),
        (b"\xff\x0a\xfa\x7f", "not an image: JPEG XL can't be read"),
    ],
)
def test_files_that_are_no_images(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError) as caught:
        load_image(path)
    assert str(caught.value).startswith(reason)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    for name, reason in [
        ("missing.jpg", "file not found"),
        ("folder.jpg", "not an image: not a regular file"),
        ("pipe.jpg", "not an image: not a regular file"),
        ("x" * 300 + ".jpg", "unreadable: File name too long"),
        ("nul\0.jpg", "unreadable: embedded null byte"),
    ]:
        with pytest.raises(ImageError, match=f"^{reason}$"):
            load_image(tmp_path / name)


def test_a_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(Image.new("RGB", (4, 4)), tmp_path / "a.png")

    def denied(*_: object) -> None:  # chmod stops nobody who is root
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(ImageError, match=r"^unreadable: Permission denied$"):
        load_image(path)


def test_lab_tiff(tmp_path: Path) -> None:
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    lab = ImageCms.applyTransform(Image.new("RGB", (4, 4), RED), to_lab)
    assert lab is not None
    np.testing.assert_allclose(pixel(load_image(save(lab, tmp_path / "a.tif"))), RED, atol=6)


def test_target_reduces_large_jpegs_but_never_below_it(tmp_path: Path) -> None:
    path = save(Image.new("RGB", (900, 640), RED), tmp_path / "a.jpg")
    assert load_image(path).size == (900, 640)
    assert load_image(path, target=160).size == (225, 160)
    assert load_image(path, target=161).size == (450, 320)
    assert load_image(path, target=321).size == (900, 640)
    assert load_image(path, target=2000).size == (900, 640)
    assert load_image(save(Image.new("RGB", (900, 640)), tmp_path / "a.png"), target=160).size == (900, 640)


def decoded_or_reason(path: Path) -> bytes | str:
    try:
        return load_image(path).tobytes()
    except ImageError as error:
        return str(error)


def test_damaged_bytes_never_raise_anything_else(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "a.bin"
    reasons: set[str] = set()
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "ICO", "PPM", "JPEG2000", "TGA"):
        stream = io.BytesIO()
        photo((32, 32)).save(stream, kind)
        for _ in range(30):
            content = np.frombuffer(stream.getvalue(), dtype=np.uint8).copy()
            content[rng.integers(0, min(len(content), 400), 12)] = rng.integers(0, 256, 12)
            path.write_bytes(content.tobytes())
            outcomes = [decoded_or_reason(path), decoded_or_reason(path)]
            assert outcomes[0] == outcomes[1]
            if isinstance(outcomes[0], str):
                reasons.add(outcomes[0])
    assert "truncated" in reasons
    assert all("\n" not in reason and len(reason) < 130 for reason in reasons)


def test_a_memory_error_is_a_reason_like_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(Image.new("RGB", (4, 4)), tmp_path / "a.bmp")

    def exhausted(*_: object) -> None:
        raise MemoryError

    with pytest.raises(ImageError, match=r"^not enough memory to decode it$"), decoded_image(path):
        exhausted()  # what is made of an image can take as much as decoding it
    monkeypatch.setattr(ImageFile.ImageFile, "load", exhausted)
    with pytest.raises(ImageError, match=r"^not enough memory to decode it$"):
        load_image(path)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@pytest.mark.parametrize("suffix", [".heic", ".HEIF", ".avif"])
def test_phones_formats(tmp_path: Path, suffix: str) -> None:
    pillow_heif.register_heif_opener()
    picture = Image.new("RGB", (64, 48), RED)
    picture.paste((0, 0, 255), (0, 0, 32, 48))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # turned by a quarter to the right
    picture.info["exif"] = exif.tobytes()  # of HEIC it is made the turn that the format has of its own
    upright = load_image(save(picture, tmp_path / f"a{suffix}", quality=90, exif=picture.info["exif"]))
    assert upright.size == (48, 64)
    np.testing.assert_allclose(upright.getpixel((24, 10)), (0, 0, 255), atol=12)
    np.testing.assert_allclose(upright.getpixel((24, 54)), RED, atol=12)
    cut = tmp_path / "cut.heic"
    cut.write_bytes((tmp_path / f"a{suffix}").read_bytes()[:-40])
    with pytest.raises(ImageError, match=r"^(truncated|damaged|not an image)"):
        load_image(cut)


@pytest.mark.parametrize("suffix", [".cr2", ".NEF", ".dng", ".arw"])
def test_camera_raw_is_not_taken_for_the_stamp_that_it_holds(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    Image.new("RGB", (16, 12), RED).save(path, "TIFF")
    with pytest.raises(ImageError, match=r"^not an image: camera RAW can't be read \(export it as JPEG\)$"):
        load_image(path)


@pytest.mark.parametrize(("width", "height"), [(1, 100_000_000), (51, 1), (2, 101), (70_000, 1_000)])
def test_a_narrow_image_is_refused_from_its_header(tmp_path: Path, width: int, height: int) -> None:
    path = tmp_path / "narrow.png"
    path.write_bytes(png_header(width, height) + png_chunk(b"IDAT", zlib.compress(bytes(1000))))
    with pytest.raises(ImageError, match=f"^too narrow: {width}x{height} pixels \\(limit 1:50\\)$"):
        load_image(path)
    assert load_image(save(Image.new("L", (50, 1)), tmp_path / "a.png")).size == (50, 1)


def test_large_images_are_averaged_down_where_that_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_LARGE", 10_000)
    picture = photo((300, 200))
    path = save(picture, tmp_path / "a.png")
    assert load_image(path).size == (300, 200)
    assert load_image(path, target=101).size == (300, 200)
    reduced = load_image(path, target=50)
    np.testing.assert_array_equal(np.asarray(reduced), np.asarray(picture.convert("RGB").reduce(4)))
    small = save(picture.resize((100, 100)), tmp_path / "b.png")
    assert load_image(small, target=10).size == (100, 100)


def test_an_icon_that_holds_more_than_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (400, 300)).save(stream, "PNG")
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, stream.tell(), 22)
    (tmp_path / "a.ico").write_bytes(struct.pack("<HHH", 0, 1, 1) + entry + stream.getvalue())
    monkeypatch.setattr(images, "ROOM", DecodingRoom(400 * 300 * 12 - 1))
    with pytest.raises(ImageError, match=r"^too large: 400x300 pixels"):
        load_image(tmp_path / "a.ico")


def test_progressive_jpegs_are_counted_at_their_full_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(photo((800, 800)), tmp_path / "a.jpg", progressive=True)
    assert load_image(path, target=100).size == (100, 100)
    monkeypatch.setattr(images, "ROOM", DecodingRoom(2 * 3 * 800 * 800))
    with pytest.raises(ImageError, match=r"^too large"):
        load_image(path, target=100)
    assert load_image(save(photo((800, 800)), tmp_path / "b.jpg"), target=100).size == (100, 100)


def test_threads_see_no_warnings(tmp_path: Path) -> None:
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    path = save(palette, tmp_path / "a.png", transparency=b"\x00\xff")
    large = tmp_path / "large.png"
    large.write_bytes(png_header(10_000, 10_000))
    started = threading.Barrier(2)

    def work(_: int) -> None:
        started.wait()
        for _ in range(20):
            load_image(path)
            with pytest.raises(ImageError):
                load_image(large)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(work, range(2)))
