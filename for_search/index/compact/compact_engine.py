"""An approximate engine: codes choose rows, the rows on disk give their exact scores.

Legend: R rows in all, N rows an image, Q queries, Co joint width, F rows fetched for a query.
"""

import contextlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import faiss
import numpy as np
import xxhash
from numpy.typing import NDArray

from for_model.files import write_json
from for_search.index.checked_file import damaged
from for_search.index.compact.calibration import Setting, alike_to_take, choose, interpolated, texts_apart
from for_search.index.compact.codes import Codes, one_thread
from for_search.index.compact.rows_file import RowsFile
from for_search.index.engine_protocol import BuildOptions, Recall, RowEngine
from for_search.index.flat_engine import FlatEngine

MIN_ROWS = 100_000  # below, the scan takes some 10 ms: there is little to gain
_SCAN_BELOW = 16  # when so small a part of the rows is allowed, scoring all of them is as fast, and exact
_SCAN_ABOVE = 40  # reading one row of its own takes as long as scanning so many
_NONE = b"none\n"  # in the place of each file of the codes, where there are none
_NOTE = "compact.json"


class CompactEngine(RowEngine):
    """Rows that are promising by their codes (see `codes`), scored exactly from disk (see `rows_file`).

    In memory are the codes, at most 110 bytes a row, and nothing of the rows. The settings that give the asked recall
    are chosen by the build (see `calibration`). With fewer than MIN_ROWS rows there are no codes, and with an `allowed`
    that leaves few rows they aren't used: the answer is then the exact scan's.

    settings: empty where there are no codes.
    """

    kind: ClassVar[str] = "compact"
    small_kind: ClassVar[str] = "flat"
    on_server: ClassVar[bool] = False
    file_names: ClassVar[tuple[str, ...]] = (*FlatEngine.file_names, *Codes.file_names, _NOTE)
    resumes: ClassVar[bool] = True

    def __init__(
        self,
        flat: FlatEngine,
        rows: RowsFile,
        codes: Codes | None,
        settings: tuple[Setting, ...],
        recall: Recall | None,
    ) -> None:
        self._flat, self._rows, self._codes = flat, rows, codes
        self.settings, self._recall = settings, recall

    @property
    def recall(self) -> Recall | None:
        return self._recall

    @property
    def read_in_parts(self) -> tuple[str, ...]:
        return () if self._codes is None else FlatEngine.file_names

    @classmethod
    def build(
        cls, blocks: Iterable[NDArray[np.float16]], n_rows: int, dim: int, folder: Path, options: BuildOptions
    ) -> None:
        work = options.partial or folder / "partial"
        work.mkdir(exist_ok=True)
        rows_path = work / FlatEngine.file_names[0]
        if not rows_path.exists():
            (work / "rows").mkdir(exist_ok=True)
            FlatEngine.build(blocks, n_rows, dim, work / "rows", options)
            (work / "rows" / rows_path.name).replace(rows_path)
            (work / "rows").rmdir()
        rows = RowsFile(rows_path, n_rows, dim)
        settings: tuple[Setting, ...] = ()
        recall = None
        if n_rows >= MIN_ROWS:
            codes = _encoded(rows, work, options)
            settings, recall = choose(rows, codes, max(1, n_rows // _SCAN_ABOVE), options)
            codes.write(folder)
        else:
            for name in Codes.file_names:
                (folder / name).write_bytes(_NONE)
        note = {
            "settings": [vars(setting) for setting in settings],
            "recall": recall.to_json() if recall else None,
            "n_embeddings": options.n_embeddings,
        }
        write_json(folder / _NOTE, note)
        rows_path.replace(folder / rows_path.name)
        for path in work.glob("codes-*"):
            shutil.rmtree(path)
        with contextlib.suppress(OSError):  # the caller's, with a lock of its own in it
            work.rmdir()

    @classmethod
    def open(cls, folder: Path, n_rows: int, dim: int) -> "CompactEngine":
        flat = FlatEngine.open(folder, n_rows, dim)
        note_path = folder / _NOTE
        try:
            note = json.loads(note_path.read_bytes())
            settings = tuple(Setting.from_json(value) for value in note["settings"])
            recall = None if note["recall"] is None else Recall(**note["recall"])
            n_embeddings = int(note["n_embeddings"])
            if n_embeddings < 1:
                raise ValueError("no embeddings")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise damaged(note_path, f"{type(error).__name__}") from error
        codes = None
        if settings:
            found = Codes.read(folder, n_rows, dim, n_embeddings)
            if isinstance(found, Path):
                raise damaged(found, f"it doesn't hold the codes of {n_rows} rows of width {dim}")
            codes = found
        else:
            for name in Codes.file_names:
                if not _is_none(folder / name):
                    raise damaged(folder / name, "it should hold nothing")
        return cls(flat, RowsFile(folder / FlatEngine.file_names[0], n_rows, dim), codes, settings, recall)

    def first_fetch(self, k: int) -> int:
        if self._codes is None:
            return self._flat.first_fetch(k)
        return interpolated(self.settings, k, "k", "n_rows")

    def search_rows(
        self,
        queries: NDArray[np.float32],
        n_rows: int,
        allowed: NDArray[np.bool_] | None = None,
        exact: bool = False,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        total = self._rows.n_rows
        n_allowed = total if allowed is None else int(np.count_nonzero(allowed))
        few = n_allowed * _SCAN_BELOW <= total or n_rows * _SCAN_ABOVE >= n_allowed
        if self._codes is None or exact or few:
            return self._flat.search_rows(queries, n_rows, allowed)
        n_first = min(total, max(n_rows, interpolated(self.settings, n_rows, "n_rows", "n_first")))
        chosen = self._codes.best(queries, n_first, n_rows, allowed)
        if chosen is None:
            return self._flat.search_rows(queries, n_rows, allowed)
        scores, rows = np.empty((len(queries), n_rows), np.float32), np.empty((len(queries), n_rows), np.int64)
        with one_thread():
            for number, query in enumerate(queries):
                scores[number], rows[number] = self._scored(query, chosen[number])
        return scores, rows

    def rows(self, start: int, count: int) -> NDArray[np.float32]:
        return self._flat.rows(start, count)

    def _scored(
        self, query: NDArray[np.float32], chosen: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The chosen rows [F], ascending, by descending exact score."""
        # The same class of FAISS as the flat engine's scan, so that the scores are the same to the bit.
        index = faiss.IndexScalarQuantizer(self._rows.dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        index.add_sa_codes(self._rows.at(chosen))
        scores, order = index.search(query[None], len(chosen))
        return scores[0], chosen[order[0]]


def _encoded(rows: RowsFile, work: Path, options: BuildOptions) -> Codes:
    """The codes of all rows; what an earlier build left in the folder `work` isn't done again."""
    texts, _ = texts_apart(options.texts())
    start = "codes-" + ("" if texts is None else xxhash.xxh3_64_hexdigest(texts.tobytes())) + "-"
    folder = next(work.glob(f"{start}*"), None)
    if folder is None:
        folder = work / f"{start}{alike_to_take(rows, texts, _SCAN_ABOVE, options)}"
        folder.mkdir()
    alike = float(folder.name.removeprefix(start))
    codes = Codes.read(folder, None, rows.dim, options.n_embeddings)
    if isinstance(codes, Path):
        codes = Codes.train(rows, texts, options.n_embeddings, alike)
        codes.write(folder)
    codes.encode(rows, alike, lambda so_far: so_far.write(folder))
    codes.write(folder)
    return codes


def _is_none(path: Path) -> bool:
    try:
        return path.read_bytes() == _NONE
    except OSError:
        return False
