"""The exact scan of every row.

Legend: Q queries, Co joint width, F rows fetched for a query.
"""

import logging
import struct
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import faiss
import numpy as np
from numpy.typing import NDArray

from for_search.index.checked_file import damaged
from for_search.index.engine_protocol import BuildOptions, RowEngine

_FIRST_FETCH = 1024  # rows; a scan of 250,000 rows takes nearly as long for 10 of them as for 1,024
SUM_ERROR = 1e-5  # bound of the relative error of a sum of products in float32, whatever its order

log = logging.getLogger(__name__)


class FlatEngine(RowEngine):
    """Exact inner product by a full scan (FAISS `IndexScalarQuantizer`, `QT_fp16`), memory-mapped.

    A store is float16, so the float16 quantizer keeps it bit for bit, in half the bytes of `IndexFlatIP` and at about
    twice its speed or more (10,000 x 25 x 512: `pytest tests/benchmarks/bench_index.py --benchmark-only`), as the scan
    is bound by memory. It also scores equal rows equally, wherever they lie and however many queries are asked at
    once, so that ties are true ties.
    """

    kind: ClassVar[str] = "flat"
    small_kind: ClassVar[str] = "flat"
    on_server: ClassVar[bool] = False
    file_names: ClassVar[tuple[str, ...]] = ("index.faiss",)
    resumes: ClassVar[bool] = False

    def __init__(self, index: faiss.IndexScalarQuantizer) -> None:
        self._index = index

    @classmethod
    def build(
        cls, blocks: Iterable[NDArray[np.float16]], n_rows: int, dim: int, folder: Path, options: BuildOptions
    ) -> None:
        # FAISS would have all rows in memory. Its file is the header of an empty index, which holds the number of rows
        # at byte 8 and ends with the number of their bytes, and then the rows.
        empty = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        header = bytearray(faiss.serialize_index(empty).tobytes())
        struct.pack_into("<q", header, 8, n_rows)
        struct.pack_into("<q", header, len(header) - 8, n_rows * 2 * dim)
        with (folder / cls.file_names[0]).open("wb") as stream:
            stream.write(header)
            for block in blocks:
                stream.write(np.ascontiguousarray(block, dtype="<f2").data)

    @classmethod
    def open(cls, folder: Path, n_rows: int, dim: int) -> "FlatEngine":
        path = folder / cls.file_names[0]
        try:
            # IO_FLAG_MMAP still reads the codes into memory for this type (0.1 s per 256 MB); IO_FLAG_MMAP_IFC maps.
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except (RuntimeError, MemoryError) as error:
            log.debug("faiss could not read %s", path, exc_info=error)
            raise damaged(path, "FAISS can't read it") from error
        if not isinstance(index, faiss.IndexScalarQuantizer) or index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise damaged(path, f"it holds a {type(index).__name__}, not a float16 inner-product index")
        if (index.ntotal, index.d, index.code_size) != (n_rows, dim, 2 * dim):
            raise damaged(path, f"it holds {index.ntotal} rows of width {index.d}; its manifest says {n_rows} of {dim}")
        return cls(index)

    def first_fetch(self, k: int) -> int:
        return max(_FIRST_FETCH, 2 * k)

    def search_rows(
        self,
        queries: NDArray[np.float32],
        n_rows: int,
        allowed: NDArray[np.bool_] | None = None,
        exact: bool = False,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        scores, rows = self._index.search(queries, n_rows, params=search_parameters(sel=selector(allowed)))
        return scores, rows

    def rows(self, start: int, count: int) -> NDArray[np.float32]:
        return widened(self._all_rows()[start : start + count].astype(np.float16))

    def half_rows(self, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        """Some rows as they are kept, [F, Co] float16, an array of its own."""
        return self._all_rows()[rows].astype(np.float16)

    def _all_rows(self) -> NDArray[np.float16]:
        """[R, Co] float16, as they lie in the file."""
        # The codes themselves: FAISS's own decoding of them takes three times as long as the scan of a search.
        n_rows, dim = self._index.ntotal, self._index.d
        codes = faiss.rev_swig_ptr(self._index.codes.data(), n_rows * self._index.code_size)
        return codes.view("<f2").reshape(n_rows, dim)


def score_rows(query: NDArray[np.float32], rows: NDArray[np.float16]) -> NDArray[np.float32]:
    """The inner products of a query [Co] with some rows [F, Co], [F] float32: the flat engine's own, to the bit.

    F is at least 1.
    """
    index = faiss.IndexScalarQuantizer(rows.shape[1], faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    index.add_sa_codes(np.ascontiguousarray(rows, dtype="<f2").view(np.uint8))
    found, order = index.search(query[None], len(rows))
    scores = np.empty(len(rows), np.float32)
    scores[order[0]] = found[0]
    return scores


def selector(allowed: NDArray[np.bool_] | None) -> Any:
    """FAISS's form of the rows to choose from; None for all."""
    bitmap: Any = faiss.IDSelectorBitmap  # its Python side takes the array, which its types don't say
    return None if allowed is None else bitmap(np.packbits(allowed, bitorder="little"))


def search_parameters(kind: Any = faiss.SearchParameters, **values: Any) -> Any:
    """FAISS's parameters of one search; that they take their values by name, its types don't say."""
    return kind(**values)


def widened(values: NDArray[np.float16]) -> NDArray[np.float32]:
    """float16 -> float32. torch does it eight times faster than numpy, if it is loaded; loading it takes seconds."""
    if "torch" not in sys.modules:
        return values.astype(np.float32)
    import torch  # waits if another thread is just loading it

    return torch.from_numpy(values).float().numpy()
