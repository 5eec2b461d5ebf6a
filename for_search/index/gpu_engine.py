"""The exact scan on a GPU: the flat engine's file, scanned there, with the flat engine's scores and order.

Legend: Q queries, Co joint width, R rows in all, F rows fetched for a query, m rows of a chunk.
"""

import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from for_model.errors import StoreError
from for_search.index.engine_protocol import BuildOptions, RowEngine
from for_search.index.flat_engine import SUM_ERROR, FlatEngine, score_rows

if TYPE_CHECKING:
    import torch

_SHARE = 0.7  # of the device's free memory, for rows; the network that encodes texts needs some too
_SCORE_BYTES = 1 << 30  # of scores at once, 4 for each query and row
_CHUNK_BYTES = 1 << 28  # of rows sent to the device at once
_LEAST_FETCH = 256
_SCALE = 2048


class GpuEngine(RowEngine):
    """Rows are chosen by products on the device, and scored again by the flat engine's own sums.

    The product is one of float16 matrices, summed in float32. So that queries lose nothing, each goes there twice:
    rounded to float16, and what the rounding took away. What is left of error is that of float32 sums, whose order
    differs; all rows that could be among the best within it are scored again, so that scores, order and ties are the
    flat engine's, to the bit.

    Rows stay on the device as far as they fit; the others are sent there chunk by chunk, for every search.
    """

    kind: ClassVar[str] = "gpu"
    small_kind: ClassVar[str] = "gpu"
    on_server: ClassVar[bool] = False
    file_names: ClassVar[tuple[str, ...]] = FlatEngine.file_names
    resumes: ClassVar[bool] = False

    def __init__(self, flat: FlatEngine, n_rows: int, dim: int, device: "torch.device") -> None:
        self._flat, self._n_rows, self._dim, self._device = flat, n_rows, dim, device
        self._kept: list[torch.Tensor] | None = None  # the first rows, in chunks; None before the first search
        self._longest = 0.0  # norm of a row
        self._lock = threading.Lock()  # two scans at once would take the memory of two, and no less time

    @classmethod
    def build(
        cls, blocks: Iterable[NDArray[np.float16]], n_rows: int, dim: int, folder: Path, options: BuildOptions
    ) -> None:
        scan_device()  # rather than after all has been written
        FlatEngine.build(blocks, n_rows, dim, folder, options)

    @classmethod
    def open(cls, folder: Path, n_rows: int, dim: int) -> "GpuEngine":
        return cls(FlatEngine.open(folder, n_rows, dim), n_rows, dim, scan_device())

    def first_fetch(self, k: int) -> int:
        return max(_LEAST_FETCH, 4 * k)

    def search_rows(
        self,
        queries: NDArray[np.float32],
        n_rows: int,
        allowed: NDArray[np.bool_] | None = None,
        exact: bool = False,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        scores = np.zeros((len(queries), n_rows), np.float32)
        rows = np.full((len(queries), n_rows), -1, np.int64)
        for number, (query, chosen) in enumerate(zip(queries, self._chosen(queries, n_rows, allowed), strict=True)):
            if not len(chosen):
                continue
            found = score_rows(query, self._flat.half_rows(chosen))
            order = np.argsort(-found, kind="stable")[:n_rows]
            scores[number, : len(order)], rows[number, : len(order)] = found[order], chosen[order]
        return scores, rows

    def rows(self, start: int, count: int) -> NDArray[np.float32]:
        return self._flat.rows(start, count)

    def _chosen(
        self, queries: NDArray[np.float32], n_rows: int, allowed: NDArray[np.bool_] | None
    ) -> Iterator[NDArray[np.int64]]:
        """The rows that can be among the best `n_rows` of each query, ascending; fewer where fewer are allowed."""
        import torch

        lengths = np.linalg.norm(queries, axis=1, keepdims=True)
        units = torch.from_numpy(queries / np.where(lengths > 0, lengths, 1)).to(self._device)
        forbidden = None if allowed is None else torch.from_numpy(~allowed).to(self._device)
        step = max(1, _SCORE_BYTES // (4 * self._n_rows))
        for start in range(0, len(queries), step):
            with self._lock, torch.inference_mode():
                scores = self._products(units[start : start + step])  # [q, R]
                if forbidden is not None:
                    scores.masked_fill_(forbidden, -torch.inf)
                last = scores.topk(n_rows, dim=1).values[:, -1:]
                # A row may be wrong by `SUM_ERROR`, and so may be the one that it has to beat.
                near = (scores >= last - 2 * SUM_ERROR * self._longest) & (scores > -torch.inf)
                found = [row.nonzero()[:, 0].cpu().numpy() for row in near]
            yield from found

    def _products(self, queries: "torch.Tensor") -> "torch.Tensor":
        """The scores [q, R] float32 of all rows for unit queries [q, Co] float32."""
        import torch

        rounded = queries.half()
        # What was taken away is small: multiplied by a power of 2, it isn't below what float16 holds well.
        halves = torch.cat([rounded, (_SCALE * (queries - rounded.float())).half()])  # [2 q, Co]
        scores = torch.empty((len(queries), self._n_rows), device=self._device)
        first = 0
        for chunk in self._chunks():
            part = scores[:, first : first + len(chunk)]
            product = _product(halves, chunk)  # [2 q, m]
            torch.add(product[: len(queries)], product[len(queries) :], alpha=1 / _SCALE, out=part)
            first += len(chunk)
        return scores

    def _chunks(self) -> "Iterator[torch.Tensor]":
        """All rows on the device, [m, Co] float16 at a time; those that fit stay there from the first search on."""
        size = max(1, _CHUNK_BYTES // (2 * self._dim))
        starts = range(0, self._n_rows, size)
        if self._kept is None:
            room = _room(self._device)
            kept: list[torch.Tensor] = []
            longest = 0.0
            for number, start in enumerate(starts):
                chunk = self._sent(start, size)
                longest = max(longest, float(chunk.float().norm(dim=1).max()))
                if number == len(kept) and sum(each.nbytes for each in kept) + chunk.nbytes <= room:
                    kept.append(chunk)
            self._kept, self._longest = kept, longest
        yield from self._kept
        for start in starts[len(self._kept) :]:
            yield self._sent(start, size)

    def _sent(self, start: int, size: int) -> "torch.Tensor":
        import torch

        rows = self._flat.half_rows(np.arange(start, min(start + size, self._n_rows)))
        return torch.from_numpy(rows).to(self._device)


def scan_device() -> "torch.device":
    """The device to scan on. Raises StoreError, in one line, on a machine without one."""
    import torch

    if not torch.cuda.is_available():
        raise StoreError(
            "the engine gpu needs a GPU that torch can use (CUDA), and this machine has none: index the store with "
            "--engine flat or compact"
        )
    return torch.device("cuda")


def _room(device: "torch.device") -> int:
    """How many bytes of rows may stay on the device."""
    import torch

    return int(_SHARE * torch.cuda.mem_get_info(device)[0])


def _product(halves: "torch.Tensor", rows: "torch.Tensor") -> "torch.Tensor":
    """[q, Co] and [m, Co] float16 -> [q, m], summed in float32."""
    import torch

    if rows.is_cuda:
        return torch.mm(halves, rows.T, out_dtype=torch.float32)
    return halves.float() @ rows.float().T
