"""What visitors bring: images within limits, and nothing but what they uploaded."""

import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from for_app import uploads
from for_app.uploads import MAX_UPLOAD_PIXELS, uploaded_image
from for_model.errors import UsageError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "uploads").mkdir()
    monkeypatch.setattr(uploads, "get_upload_folder", lambda: str(tmp_path / "uploads"))
    return tmp_path / "uploads"


def test_an_upload_is_decoded(folder: Path) -> None:
    Image.new("RGBA", (30, 20)).save(folder / "a.png")
    image = uploaded_image({"path": str(folder / "a.png"), "meta": {"_type": "gradio.FileData"}})
    assert (image.mode, image.size) == ("RGB", (30, 20))


def test_no_other_file_is_read(folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "secret.png")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    for path in (tmp_path / "secret.png", folder / ".." / "secret.png", folder / "link.png", "\0", "secret.png"):
        with pytest.raises(UsageError, match="was not uploaded here"):
            uploaded_image({"path": str(path)})


@pytest.mark.parametrize("value", [None, {}, {"path": None}, {"path": ""}, {"path": 3}, "a.png", ["a.png"]])
def test_no_upload(folder: Path, value: object) -> None:
    with pytest.raises(UsageError, match="choose or drop one"):
        uploaded_image(value)


def test_a_bomb_and_what_is_no_image(folder: Path) -> None:
    side = int(MAX_UPLOAD_PIXELS**0.5) + 1
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000)))]
    data = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    (folder / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    (folder / "text.png").write_bytes(b"<svg onload=alert(1)>")
    for name, reason in (("bomb.png", "too large"), ("text.png", "not an image"), ("gone.png", "not found")):
        with pytest.raises(UsageError, match=reason) as error:
            uploaded_image({"path": str(folder / name)})
        assert str(folder) not in str(error.value)
