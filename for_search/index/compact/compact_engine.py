"""An approximate engine: short codes choose rows, the rows on disk give their exact scores.

Legend: R rows in all, N rows an image, Q queries, Co joint width, F rows fetched for a query, P partitions.
"""

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import faiss
import numpy as np
from numpy.typing import NDArray

from for_model.files import write_json
from for_search.index.checked_file import damaged
from for_search.index.compact import codes as row_codes
from for_search.index.compact.calibration import Setting, choose, interpolated
from for_search.index.compact.rows_file import RowsFile
from for_search.index.engine_protocol import BuildOptions, Recall
from for_search.index.flat_engine import FlatEngine, search_parameters, selector

MIN_ROWS = 100_000  # below, the scan takes some 10 ms: there is little to gain
_SCAN_BELOW = 16  # when so small a part of the rows is allowed, scoring all of them is as fast, and exact
_SCAN_ABOVE = 40  # reading one row of its own takes as long as scanning so many


class CompactEngine:
    """Rows that are promising by their codes (see `codes`), scored exactly from disk (see `rows_file`).

    In memory are the codes, Co / 8 + 8 bytes a row, and nothing of the rows. The settings that give the asked recall
    are chosen by the build (see `calibration`). With fewer than MIN_ROWS rows there are no codes, and with an `allowed`
    that leaves few rows they aren't used: the answer is then the exact scan's.

    settings: None where there are no codes.
    """

    kind: ClassVar[str] = "compact"
    small_kind: ClassVar[str] = "flat"
    on_server: ClassVar[bool] = False
    file_names: ClassVar[tuple[str, ...]] = (*FlatEngine.file_names, "codes.faiss", "compact.json")
    resumes: ClassVar[bool] = True

    def __init__(
        self,
        flat: FlatEngine,
        rows: RowsFile,
        codes: faiss.IndexPreTransform | None,
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
        rows_path, trained, encoded = (work / name for name in (FlatEngine.file_names[0], "trained", "encoded"))
        if not rows_path.exists():
            (work / "rows").mkdir(exist_ok=True)
            FlatEngine.build(blocks, n_rows, dim, work / "rows", options)
            (work / "rows" / rows_path.name).replace(rows_path)
        rows = RowsFile(rows_path, n_rows, dim)
        settings: tuple[Setting, ...] = ()
        recall = None
        if n_rows >= MIN_ROWS:
            codes = row_codes.read(encoded, None, dim) or row_codes.read(trained, 0, dim)
            if codes is None:
                codes = row_codes.train_codes(rows)
                row_codes.write(codes, trained)
            row_codes.encode(codes, rows, lambda so_far: row_codes.write(so_far, encoded))
            row_codes.write(codes, encoded)
            row_codes.finish(codes)
            settings, recall = choose(
                rows,
                lambda queries, count, n_probe: _first_pass(codes, queries, count, n_probe, None),
                row_codes.partitioned(codes).nlist,
                max(1, n_rows // _SCAN_ABOVE),
                options,
            )
            row_codes.write(codes, folder / "codes.faiss")
        else:
            (folder / "codes.faiss").write_bytes(b"none\n")
        note = {
            "settings": [vars(setting) for setting in settings],
            "recall": recall.to_json() if recall else None,
        }
        write_json(folder / "compact.json", note)
        rows_path.replace(folder / rows_path.name)
        for path in (trained, encoded):
            path.unlink(missing_ok=True)
        for path in (work / "rows", work):
            with contextlib.suppress(OSError):  # the caller's, with a lock of its own in it
                path.rmdir()

    @classmethod
    def open(cls, folder: Path, n_rows: int, dim: int) -> "CompactEngine":
        flat = FlatEngine.open(folder, n_rows, dim)
        note_path, codes_path = folder / "compact.json", folder / "codes.faiss"
        try:
            note = json.loads(note_path.read_bytes())
            settings = tuple(Setting.from_json(value) for value in note["settings"])
            recall = None if note["recall"] is None else Recall(**note["recall"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise damaged(note_path, f"{type(error).__name__}") from error
        codes = row_codes.read(codes_path, n_rows, dim)
        if (codes is None) != (not settings) or (codes is None and not _is_none(codes_path)):
            raise damaged(codes_path, f"it doesn't hold the codes of {n_rows} rows of width {dim}")
        return cls(flat, RowsFile(folder / FlatEngine.file_names[0], n_rows, dim), codes, settings, recall)

    @classmethod
    def discard(cls, folder: Path) -> None:
        """Nothing is kept elsewhere."""

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
        # Where a part of the rows is allowed, as many of them lie in more partitions.
        n_probe = interpolated(self.settings, n_rows, "n_rows", "n_probe") * total // n_allowed
        chosen = _first_pass(self._codes, queries, n_rows, n_probe, allowed)
        scores, rows = np.empty((len(queries), n_rows), np.float32), np.empty((len(queries), n_rows), np.int64)
        for number, query in enumerate(queries):
            scores[number], rows[number] = self._scored(query, np.sort(chosen[number]))
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


def _first_pass(
    codes: faiss.IndexPreTransform,
    queries: NDArray[np.float32],
    n_rows: int,
    n_probe: int,
    allowed: NDArray[np.bool_] | None,
) -> NDArray[np.int64]:
    """The rows whose codes score highest, [Q, n_rows] int64, best first; at least `n_rows` must be allowed."""
    chosen_by = selector(allowed)
    partitions = row_codes.partitioned(codes).nlist
    while True:
        n_probe = min(n_probe, partitions)
        inner = search_parameters(faiss.SearchParametersIVF, nprobe=n_probe, sel=chosen_by)
        outer = search_parameters(faiss.SearchParametersPreTransform, index_params=inner)
        _, rows = codes.search(queries, n_rows, params=outer)
        if n_probe == partitions or rows.min() >= 0:
            return rows
        n_probe *= 2  # the partitions held fewer rows than wanted


def _is_none(path: Path) -> bool:
    try:
        return path.read_bytes() == b"none\n"
    except OSError:
        return False
