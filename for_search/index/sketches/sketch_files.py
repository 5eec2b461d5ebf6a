"""The sketches of an index: a folder in each segment, which comes and goes with it.

    INDEX/segment-000001/sketches/
        sketches.bin         R * D bytes: of each 65,536 rows, one column of D after the other
        encoder.safetensors  what made them, see `sketch_encoder`; the same in all segments
        note.json            how many rows there are, the hashes of the two, and its own

An index needs none of it. It is written beside and renamed, so that it is there as a whole or not at all.

Legend: R rows of a segment, D numbers of a sketch, N embeddings an image.
"""

import contextlib
import logging
import shutil
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from for_model import files
from for_model.errors import StoreError, WeightsError
from for_search.index.checked_file import CheckedFile, FileHashes
from for_search.index.index import SearchIndex
from for_search.index.index_updating import writing_index
from for_search.index.segment import Segment
from for_search.index.sketches.box_scan import BoxBounds, count_members
from for_search.index.sketches.sketch_encoder import SketchEncoder, principal_encoder, read_sketch_encoder
from for_search.store.store import problem_of

FORMAT = "for-sketches/1"
_FOLDER, _NOTE, _BYTES, _ENCODER = "sketches", "note.json", "sketches.bin", "encoder.safetensors"
_BLOCK = 1 << 16  # rows whose columns lie together
_SAMPLE = 1 << 14  # embeddings that principal axes are found with
_SEED = 0
_making = threading.Lock()

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Sketches:
    """The sketches of all of an index's embeddings, mapped from disk. Several threads may share them.

    encoder: what made them.
    blocks: [D, m] uint8 each, of m rows that follow one another, segment after segment.
    images: [.] int64, of each image of each block's segment in the order of the rows, its place among the index's
        images; -1 for one that isn't in the index any more.
    n_embeddings: N.
    n_bytes: of all.
    """

    encoder: SketchEncoder
    blocks: tuple[NDArray[np.uint8], ...]
    images: NDArray[np.int64]
    n_embeddings: int
    n_bytes: int

    def counts(self, bounds: BoxBounds) -> NDArray[np.uint8]:
        """How many of the ensemble's members hold each row, [all rows] uint8."""
        return np.concatenate(count_members(self.blocks, bounds))

    def held(
        self, counts: NDArray[np.uint8], least: int
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.uint8]]]:
        """The rows that `least` members or more hold, by blocks: each one's image [F], sketch [F, D] and count [F].

        counts: as `counts` gives them.
        """
        start = 0
        for block in self.blocks:
            own = counts[start : start + block.shape[1]]
            rows = np.flatnonzero(own >= least)
            images = self.images[(start + rows) // self.n_embeddings]
            rows, images = rows[images >= 0], images[images >= 0]
            if len(rows):
                yield images, np.ascontiguousarray(block[:, rows].T), own[rows]
            start += block.shape[1]


def open_sketches(index: SearchIndex) -> Sketches | None:
    """The sketches of an index; None unless all its segments have them, by one encoder.

    All bytes are compared with those that were written. Raises StoreError for damaged ones.
    """
    notes = [_note(segment) for segment in index.segments]
    if None in notes or len({note["encoder"] for note in notes if note}) > 1:
        return None
    blocks: list[NDArray[np.uint8]] = []
    encoder = read_sketch_encoder(index.segments[0].folder / _FOLDER / _ENCODER)
    for segment, note in zip(index.segments, notes, strict=True):
        assert note is not None
        folder, n_rows = segment.folder / _FOLDER, len(segment.ranks) * segment.n_embeddings
        for name, hashes in note["files"].items():
            CheckedFile(folder / name, FileHashes(**hashes)).check()
        if note["n_rows"] != n_rows or note["encoder"] != encoder.sha256:
            raise _damaged(folder / _NOTE, "it is of other rows")
        values = np.memmap(folder / _BYTES, np.uint8, "r", shape=(n_rows * encoder.n_numbers,))
        for start in range(0, n_rows, _BLOCK):
            size = min(_BLOCK, n_rows - start)
            part = values[start * encoder.n_numbers : (start + size) * encoder.n_numbers]
            blocks.append(np.asarray(part).reshape(encoder.n_numbers, size))
    images = np.concatenate([segment.ranks for segment in index.segments])
    n_bytes = sum(block.nbytes for block in blocks)
    return Sketches(encoder, tuple(blocks), images, index.info.n_embeddings, n_bytes)


def make_sketches(index: SearchIndex, encoder: SketchEncoder | None = None) -> Sketches:
    """Write the sketches that an index lacks, and open all of them.

    encoder: what makes them; sketches by another, and damaged ones, are replaced. None for the one that has made some
        of them already, else the principal axes of the index's own embeddings.
    Raises StoreError for an encoder of another text space, when they can't be written, or somebody else is writing.
    """
    try:
        with _making, writing_index(index.path):
            sound = True
            try:
                found = open_sketches(index)
            except StoreError as error:
                _log.warning("%s; they are made anew", error)
                found, sound = None, False
            if found is not None and (encoder is None or found.encoder.sha256 == encoder.sha256):
                return found
            if encoder is None:
                encoder = kept_encoder(index.path) or _principal(index)
            encoder.check_space(index.info.text_space, str(index.path))
            for segment in index.segments:
                note = _note(segment) if sound else None
                if note is None or note["encoder"] != encoder.sha256:
                    _write(segment, encoder)
    except OSError as error:
        raise StoreError(f"can't write sketches to {index.path}: {error.strerror or error}") from error
    made = open_sketches(index)
    assert made is not None, "all segments have them now"
    return made


def kept_encoder(path: Path) -> SketchEncoder | None:
    """The encoder of the sketches that are in an index's folder, in whatever segment; None where there are none."""
    for file in sorted(path.glob(f"segment-*/{_FOLDER}/{_ENCODER}")):
        with contextlib.suppress(WeightsError):
            return read_sketch_encoder(file)
    return None


def check_sketches(path: Path) -> Iterator[tuple[str, StoreError | None]]:
    """Check every byte of the sketches in an index's folder: the name of each file, and what is wrong with it."""
    for folder in sorted(path.glob(f"segment-*/{_FOLDER}")):
        prefix = f"{folder.parent.name}/{_FOLDER}"
        try:
            note = _read_note(folder)
        except StoreError as error:
            yield f"{prefix}/{_NOTE}", error
            continue
        yield f"{prefix}/{_NOTE}", None
        for name, hashes in note["files"].items():
            yield f"{prefix}/{name}", problem_of(partial(_check, folder / name, FileHashes(**hashes), note["encoder"]))


def _check(path: Path, hashes: FileHashes, encoder_sha256: str) -> None:
    CheckedFile(path, hashes).check()
    if path.name == _ENCODER and read_sketch_encoder(path).sha256 != encoder_sha256:
        raise _damaged(path, "its hash isn't the note's")


def _note(segment: Segment) -> dict[str, Any] | None:
    """What a segment's note says; None where it has no sketches."""
    folder = segment.folder / _FOLDER
    return _read_note(folder) if folder.is_dir() else None


def _read_note(folder: Path) -> dict[str, Any]:
    try:
        return files.read_own_json(folder / _NOTE, FORMAT, _again(folder), StoreError)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _damaged(folder / _NOTE, type(error).__name__) from error


def _damaged(path: Path, reason: str) -> StoreError:
    return StoreError(f"{path} is damaged, {reason}: {_again(path.parent)}")


def _again(folder: Path) -> str:
    """What to do about damage."""
    return f"delete the folder {folder}, and make it anew with --answers"


def _principal(index: SearchIndex) -> SketchEncoder:
    n_embeddings = index.info.n_embeddings
    count = min(len(index.images), max(1, _SAMPLE // n_embeddings))
    chosen = np.sort(np.random.default_rng(_SEED).choice(len(index.images), count, replace=False))
    return principal_encoder(index.take(chosen).reshape(-1, index.info.dim), index.info.text_space)


def _write(segment: Segment, encoder: SketchEncoder) -> None:
    """Write a segment's sketches, in place of those that it has."""
    segment.check(whole=True)
    n_rows = len(segment.ranks) * segment.n_embeddings
    target = segment.folder / _FOLDER
    work = Path(tempfile.mkdtemp(dir=segment.folder, prefix=".sketches."))
    try:
        bar = tqdm(total=n_rows, desc="sketches", unit="row", unit_scale=True, disable=None)
        with bar, (work / _BYTES).open("wb") as stream:
            for start in range(0, n_rows, _BLOCK):
                rows = segment.engine.rows(start, min(_BLOCK, n_rows - start))
                stream.write(np.ascontiguousarray(encoder.sketches(rows).T).data)
                bar.update(len(rows))
        encoder.write(work / _ENCODER)
        listed = {name: asdict(FileHashes.of(work / name)) for name in (_BYTES, _ENCODER)}
        note = {"format": FORMAT, "encoder": encoder.sha256, "n_rows": n_rows, "files": listed}
        files.write_json(work / _NOTE, files.sealed(note))
        work.chmod(0o755)
        shutil.rmtree(target, ignore_errors=True)
        work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
