"""Fetching against a server on loopback that breaks, lies and stalls, and checking what is on disk."""

import hashlib
import io
import json
import re
import signal
import stat
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from for_eval.__main__ import main
from for_eval.download.check import check
from for_eval.download.fetch import archives_for, choose_splits, describe, fetch, is_there, space_needed
from for_eval.download.sources import SOURCES, Archive, PublishedSplit, Source
from for_model.data.coco import load_coco
from for_model.errors import DataError, UsageError
from for_model.files import locked
from tests.helpers.nuimages_making import write_nuimages
from tests.helpers.paths import REPOSITORY
from tests.helpers.patience import PATIENCE_S


@dataclass
class Server:
    """What the server has and how it misbehaves. cut: bytes that a connection brings before it is closed."""

    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    cut: int | None = None
    stall: bool = False
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""


class _Handler(BaseHTTPRequestHandler):
    server_state: Server

    def do_GET(self) -> None:
        state = self.server_state
        wanted = self.headers.get("Range")
        state.asked.append((self.path, wanted))
        if self.path not in state.files:
            self.send_error(404)
            return
        body, start = state.files[self.path], 0
        if wanted and state.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start:][: state.cut])
        self.wfile.flush()
        if state.stall:
            time.sleep(PATIENCE_S)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    state = Server()
    handler = type("Handler", (_Handler,), {"server_state": state})
    listener = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    listener.daemon_threads = True
    listener.block_on_close = False
    thread = threading.Thread(target=listener.serve_forever, args=(0.01,))
    thread.start()
    state.url = f"http://127.0.0.1:{listener.server_address[1]}"
    yield state
    listener.shutdown()
    listener.server_close()
    thread.join()


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, body in files.items():
            archive.writestr(name, body)
    return out.getvalue()


def picture(n: int) -> bytes:
    return np.random.default_rng(n).bytes(20_000 + n)


def instances(n_images: int, split: str) -> bytes:
    content = {
        "images": [
            {"id": n, "file_name": f"{n}.jpg", "coco_url": f"http://x/{split}/{n}.jpg"} for n in range(n_images)
        ],
        "annotations": [{"id": n, "image_id": n, "category_id": 1 + n % 2} for n in range(n_images)],
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "person"}],
    }
    return json.dumps(content).encode()


def offer(server: Server, path: str, body: bytes, **facts: object) -> Archive:
    server.files[path] = body
    return Archive(server.url + path, len(body), hashlib.sha256(body).hexdigest(), **facts)  # type: ignore[arg-type]


@pytest.fixture
def source(server: Server) -> Source:
    """A dataset of 4 training and 3 validation images in COCO's layout, as three archives."""
    names = {"train2017": 4, "val2017": 3}
    annotations = {f"annotations/instances_{split}.json": instances(n, split) for split, n in names.items()}
    archives = [
        offer(
            server,
            "/annotations.zip",
            zipped({**annotations, "annotations/captions_val2017.json": b"{}"}),
            part="annotations",
            splits=tuple(names),
            holds=tuple(annotations),
            n_files=2,
        )
    ]
    for split, n in names.items():
        body = zipped({f"{split}/": b"", **{f"{split}/{k}.jpg": picture(k) for k in range(n)}})
        archives.append(
            offer(server, f"/{split}.zip", body, part="images", splits=(split,), holds=(f"{split}/",), n_files=n)
        )
    splits = tuple(PublishedSplit(name, n, n) for name, n in names.items())
    return Source("tiny", "Tiny", "http://page", "none", "coco", splits, 2, tuple(archives))


SPLITS = ("train2017", "val2017")


def verdicts(source: Source, root: Path) -> list[tuple[str, bool]]:
    return [(verdict.line, verdict.ok) for verdict in check(source, root, SPLITS)]


def assert_whole(source: Source, root: Path) -> None:
    assert [ok for _, ok in verdicts(source, root)] == [True, True]
    assert all((root / "train2017" / f"{n}.jpg").read_bytes() == picture(n) for n in range(4))
    assert not [path for path in (root / "downloads").iterdir() if path.name != ".lock"]


def test_fetches_what_the_readers_read_and_only_once(server: Server, source: Source, tmp_path: Path) -> None:
    root = tmp_path / "data" / "tiny"
    fetch(source, root, SPLITS)
    assert_whole(source, root)
    assert not (root / "annotations" / "captions_val2017.json").exists()
    assert [image.path for image in load_coco(root, "val2017").images] == ["0.jpg", "1.jpg", "2.jpg"]
    assert [path for path, _ in server.asked] == ["/annotations.zip", "/train2017.zip", "/val2017.zip"]
    fetch(source, root, SPLITS)
    assert len(server.asked) == 3
    (root / "val2017" / "1.jpg").unlink()
    fetch(source, root, SPLITS, keep=True)
    assert [path for path, _ in server.asked[3:]] == ["/val2017.zip"]
    kept = root / "downloads" / "val2017.zip"
    assert kept.read_bytes() == server.files["/val2017.zip"]
    assert describe(source, root, SPLITS)[-1] == f"unpacked, and no longer needed: {kept}"


def test_splits_and_parts_choose_archives(server: Server, source: Source, tmp_path: Path) -> None:
    fetch(source, tmp_path, choose_splits(source, "val"), ("annotations",))
    assert [path for path, _ in server.asked] == ["/annotations.zip"]
    assert [v.line for v in check(source, tmp_path, ("val2017",), ("annotations",))] == [
        "val2017    OK    3 images, 3 annotations, 2 categories"
    ]
    assert [v.line for v in check(source, tmp_path, ("val2017",), ("images",))] == [
        "val2017/   FAIL  0 images on disk (published: 3)"
    ]


def test_a_connection_that_breaks_is_made_again(server: Server, source: Source, tmp_path: Path) -> None:
    server.cut = 30_000
    fetch(source, tmp_path, SPLITS)
    assert_whole(source, tmp_path)
    size = len(server.files["/train2017.zip"])
    asked = [wanted for path, wanted in server.asked if path == "/train2017.zip"]
    assert asked == [None, *(f"bytes={start}-" for start in range(30_000, size, 30_000))]


def test_a_kill_loses_nothing(server: Server, source: Source, tmp_path: Path) -> None:
    server.cut, server.stall = 40_000, True
    script = f"""
from pathlib import Path
from for_eval.download.sources import Archive, Source, PublishedSplit
from for_eval.download.fetch import fetch
fetch({source!r}, Path({str(tmp_path)!r}), ("train2017",), ("images",))
"""
    part = tmp_path / "downloads" / "train2017.zip.part"
    with subprocess.Popen([sys.executable, "-c", script], cwd=REPOSITORY) as process:
        deadline = time.monotonic() + PATIENCE_S
        while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    have = part.stat().st_size
    assert 0 < have <= 40_000
    server.cut, server.stall = None, False
    assert f"{have / source.archives[1].n_bytes:.0%} there" in "\n".join(describe(source, tmp_path, SPLITS))
    fetch(source, tmp_path, SPLITS)
    assert ("/train2017.zip", f"bytes={have}-") in server.asked
    assert_whole(source, tmp_path)


def test_a_server_without_ranges_sends_all_again(server: Server, source: Source, tmp_path: Path) -> None:
    part = tmp_path / "downloads" / "train2017.zip.part"
    part.parent.mkdir()
    part.write_bytes(server.files["/train2017.zip"][:30_000])
    server.ranges = False
    fetch(source, tmp_path, SPLITS)
    assert ("/train2017.zip", "bytes=30000-") in server.asked
    assert_whole(source, tmp_path)


def test_a_part_longer_than_the_archive_starts_again(server: Server, source: Source, tmp_path: Path) -> None:
    part = tmp_path / "downloads" / "train2017.zip.part"
    part.parent.mkdir()
    part.write_bytes(bytes(500_000))
    fetch(source, tmp_path, SPLITS)
    assert ("/train2017.zip", None) in server.asked
    assert_whole(source, tmp_path)


def test_a_wrong_checksum_is_told_and_starts_again(server: Server, source: Source, tmp_path: Path) -> None:
    good = server.files["/annotations.zip"]
    server.files["/annotations.zip"] = good[:50] + b"X" + good[51:]
    with pytest.raises(DataError, match=r"has SHA-256 \w{64}, expected \w{64}: it was damaged on its way") as caught:
        fetch(source, tmp_path, SPLITS)
    assert source.archives[0].sha256 in str(caught.value)
    assert not (tmp_path / "annotations").exists()
    assert not list((tmp_path / "downloads").glob("*.part"))
    server.files["/annotations.zip"] = good
    fetch(source, tmp_path, SPLITS)
    assert_whole(source, tmp_path)


def test_an_archive_of_ones_own_is_used_or_refused_and_kept(server: Server, source: Source, tmp_path: Path) -> None:
    own = tmp_path / "downloads" / "annotations.zip"
    own.parent.mkdir()
    own.write_bytes(b"not yet whole")
    with pytest.raises(DataError, match=r"has 13 bytes, expected [\d,]+: delete it and run the same command again"):
        fetch(source, tmp_path, SPLITS, ("annotations",))
    assert own.exists()
    own.write_bytes(server.files["/annotations.zip"])
    fetch(source, tmp_path, SPLITS, ("annotations",))
    assert server.asked == []
    assert (tmp_path / "annotations" / "instances_val2017.json").read_bytes() == instances(3, "val2017")


def fails(source: Source, root: Path) -> str:
    with pytest.raises(DataError) as caught:
        fetch(source, root, SPLITS)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_a_server_can_answer(server: Server, source: Source, tmp_path: Path) -> None:
    body = server.files.pop("/annotations.zip")
    message = fails(source, tmp_path)
    assert f"{server.url}/annotations.zip answered 404 Not Found: download it another way to {tmp_path}" in message
    assert "http://page" in message
    server.files["/annotations.zip"] = body + b"more"
    assert f"has {len(body) + 4:,} bytes, expected {len(body):,}: it isn't the file that was published" in fails(
        source, tmp_path
    )
    server.files["/annotations.zip"], server.cut = body, 0
    assert f"stopped after 0 of {len(body):,} bytes (the server closed the connection)" in fails(source, tmp_path)


def test_without_a_network_there_is_one_line(
    server: Server, source: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = replace(source.archives[0], url="http://127.0.0.1:1/annotations.zip")
    monkeypatch.setitem(SOURCES, "tiny", replace(source, archives=(nowhere,)))
    assert main(["fetch", "tiny", "--root", str(tmp_path)]) == 2
    err = capsys.readouterr().err.splitlines()
    assert err[-1].startswith("error: http://127.0.0.1:1/annotations.zip can't be reached (")
    assert "check the network, or download it another way to" in err[-1]


def test_the_disk_is_looked_at_before(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [archive.n_bytes for archive in source.archives]
    needed = 4 * sizes[0] + sizes[1] + sizes[2] + max(sizes)
    assert space_needed(source.archives, tmp_path) == needed
    usage = type("Usage", (), {"free": needed - 1})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    assert "make room, choose another --root, or fetch less with --only or --splits" in fails(source, tmp_path)
    usage.free = needed
    fetch(source, tmp_path, SPLITS)


def test_a_disk_that_fills_up_is_named(source: Source, tmp_path: Path) -> None:
    part = tmp_path / "downloads" / "annotations.zip.part"
    part.parent.mkdir()
    part.symlink_to("/dev/full")
    assert fails(source, tmp_path) == (
        f"fetching into {tmp_path} stopped, the disk is full: the same command goes on from here"
    )


def test_a_root_that_is_a_file_and_a_second_fetch_are_refused(source: Source, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "can't be" in fails(source, tmp_path / "file")
    with (
        locked(tmp_path / "downloads" / ".lock", UsageError("held")),
        pytest.raises(UsageError, match="another fetch is running on"),
    ):
        fetch(source, tmp_path, SPLITS)


def test_unpacking_goes_on_where_it_stopped(server: Server, source: Source, tmp_path: Path) -> None:
    folder = tmp_path / "train2017"
    folder.mkdir()
    (folder / "0.jpg").write_bytes(b"y" * len(picture(0)))  # in full size: left alone
    (folder / "1.jpg").write_bytes(b"y")
    (folder / ".2.jpg.part").write_bytes(b"y")
    assert not is_there(source.archives[1], tmp_path)
    fetch(source, tmp_path, SPLITS)
    assert (folder / "0.jpg").read_bytes() == b"y" * len(picture(0))
    assert [(folder / f"{n}.jpg").read_bytes() == picture(n) for n in (1, 2, 3)] == [True] * 3
    assert sorted(path.name for path in folder.iterdir()) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]


def a_link(name: str) -> bytes:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(info, "/etc/passwd")
    return out.getvalue()


WHOLE = zipped({"val/1.jpg": b"picture" * 100})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (zipped({"val/../../evil.jpg": b"x"}), "which leads out of the folder"),
        (a_link("val/1.jpg"), "which leads out of the folder"),
        (zipped({"other/1.jpg": b"x"}), "holds 0 of the 1 files wanted"),
        (WHOLE.replace(b"picturepicture", b"picturepicturf", 1), "Bad CRC-32"),
        (WHOLE[:100], "is not a zip file"),
    ],
    # of their own: an archive's bytes hold the time, which differs between the processes that collect the tests
    ids=["outside", "link", "other files", "wrong checksum", "cut off"],
)
def test_an_archive_without_a_checksum_is_still_checked(
    server: Server, tmp_path: Path, body: bytes, message: str
) -> None:
    archive = replace(
        offer(server, "/val.zip", body, part="images", splits=("val",), holds=("val/",), n_files=1), sha256=""
    )
    source = Source("tiny", "Tiny", "page", "none", "coco", (PublishedSplit("val", 1, 1),), 1, (archive,))
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        fetch(source, tmp_path / "root", ("val",))
    assert "run the same command again" in str(caught.value)
    assert not list(tmp_path.rglob("*.jpg"))
    assert "no checksum is published" in "\n".join(describe(source, tmp_path, ("val",)))


def test_the_command(
    server: Server, source: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SOURCES, "tiny", source)
    command = ["fetch", "tiny", "--root", str(tmp_path)]
    assert main([*command, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Tiny, http://page\nlicence: none\n  to fetch ")
    assert "0.0 MB" in out
    assert server.asked == []
    assert not list(tmp_path.iterdir())
    assert main([*command, "--check"]) == 2
    assert "is not as published, see the lines with FAIL: 2" in capsys.readouterr().err
    assert main(command) == 0
    assert "val2017    OK    3 images, 3 annotations, 2 categories, 3 images on disk\n" in capsys.readouterr().out
    assert main([*command, "--check", "--splits", "val"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "val2017    OK    3 images, 3 annotations, 2 categories, 3 images on disk"
    ]
    assert main(["fetch", "cocoa", "--root", str(tmp_path)]) == 2
    assert "choose one of coco, coco2014, lvis, nuimages" in capsys.readouterr().err
    assert main([*command, "--splits", "val,dev"]) == 2
    assert "tiny has no split 'dev': choose from train2017, val2017" in capsys.readouterr().err


def test_a_check_counts(source: Source, tmp_path: Path) -> None:
    fetch(source, tmp_path, SPLITS)
    (tmp_path / "val2017" / "2.jpg").unlink()
    file = tmp_path / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    del content["annotations"][0]
    file.write_text(json.dumps(content))
    assert verdicts(source, tmp_path) == [
        ("train2017  FAIL  4 images, 3 annotations (published: 4), 2 categories, 4 images on disk", False),
        ("val2017    FAIL  3 images, 3 annotations, 2 categories, 2 images on disk (published: 3)", False),
    ]


@pytest.mark.parametrize("text", ["{", "[]", '{"images": 3}', "\x00"])
def test_a_check_names_a_damaged_file(source: Source, tmp_path: Path, text: str) -> None:
    fetch(source, tmp_path, SPLITS)
    file = tmp_path / "annotations" / "instances_val2017.json"
    file.write_text(text)
    line, ok = verdicts(source, tmp_path)[1]
    assert not ok
    assert f"FAIL  {file}" in line


def test_lvis_is_looked_for_in_both_places_and_in_cocos_folders(tmp_path: Path) -> None:
    source = replace(SOURCES["lvis"], splits=(PublishedSplit("val", 3, 3),), categories=2)
    (tmp_path / "train2017").mkdir()
    for n in range(3):
        (tmp_path / "train2017" / f"{n}.jpg").write_bytes(b"x")
    (tmp_path / "annotations").mkdir()
    for file in (tmp_path / "lvis_v1_val.json", tmp_path / "annotations" / "lvis_v1_val.json"):
        file.write_bytes(instances(3, "train2017"))
        assert [v.ok for v in check(source, tmp_path, ("val",))] == [True]
        assert is_there(archives_for(source, ("val",), ("annotations",))[0], tmp_path)
        file.unlink()
        assert [v.ok for v in check(source, tmp_path, ("val",))] == [False]
    assert [a.name for a in archives_for(SOURCES["lvis"], ("val",), ("images",))] == ["val2017.zip", "train2017.zip"]


def test_nuimages_is_explained_and_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "nuimages", "--root", str(tmp_path)]) == 2
    printed = capsys.readouterr().out
    assert "https://www.nuscenes.org/nuimages#download" in printed
    assert "nuimages-v1.0-all-samples.tgz" in printed
    assert "lacks attribute, calibrated_sensor" in printed

    write_nuimages(tmp_path, mini=[["vehicle.car", "animal"], []])
    source = replace(SOURCES["nuimages"], splits=(PublishedSplit("mini", 2, None),))
    whole = "mini       OK    2 images, 2 annotations, 23 categories, 2 images on disk"
    assert [v.line for v in check(source, tmp_path, ("mini",))] == [whole]
    assert [v.ok for v in check(source, tmp_path, ("mini",), ("images",))] == [True]
    next((tmp_path / "samples" / "CAM_FRONT").iterdir()).unlink()
    assert [v.ok for v in check(source, tmp_path, ("mini",))] == [False]
    assert [v.ok for v in check(source, tmp_path, ("mini",), ("annotations",))] == [True]
    (tmp_path / "v1.0-mini" / "sample.json").write_text("{}")
    assert "sample.json is damaged, it is not a list of records" in next(iter(check(source, tmp_path, ("mini",)))).line
    (tmp_path / "v1.0-mini" / "ego_pose.json").unlink()
    assert "lacks ego_pose of its tables" in next(iter(check(source, tmp_path, ("mini",)))).line
    assert main(["fetch", "nuimages", "--root", str(tmp_path), "--check", "--splits", "mini"]) == 2


def test_the_facts_agree_with_one_another() -> None:
    for source in SOURCES.values():
        names = {split.name for split in source.splits}
        for archive in source.archives:
            assert set(archive.splits) <= names
            assert re.fullmatch("[0-9a-f]{64}", archive.sha256)
            assert archive.n_bytes > 1e7
            assert archive.n_files == len(archive.holds) or archive.holds[0].endswith("/")
    # COCO 2014 and 2017 are the same images and annotations, split otherwise.
    for count in ("images", "annotations"):
        sums = {sum(getattr(split, count) for split in SOURCES[name].splits) for name in ("coco", "coco2014")}
        assert len(sums) == 1
    by_url = {a.url: {(b.sha256, b.n_bytes) for s in SOURCES.values() for b in s.archives if b.url == a.url}
              for s in SOURCES.values() for a in s.archives}  # fmt: skip
    assert all(len(facts) == 1 for facts in by_url.values())
    assert choose_splits(SOURCES["nuimages"], "") == ("train", "val")
    assert choose_splits(SOURCES["coco"], "val, train2017") == ("val2017", "train2017")
