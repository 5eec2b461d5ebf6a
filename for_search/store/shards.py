"""The shards of a store: files of embeddings, which are written once, mapped from disk and checked before first use.

    embeddings-00000.npy   [m, N, Co] float16, unit-norm

Legend: m images of a shard, N embeddings per image, Co joint width.
"""

import hashlib
import io
import mmap
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from for_model import files
from for_model.errors import StoreError

# Rounding to float16 changes the norm of a unit vector by at most one part in 2,048.
_NORM_TOLERANCE = 2e-3


@dataclass(frozen=True)
class Shard:
    """One file of embeddings: its name within the store, its rows and its hash."""

    file: str
    n_images: int
    sha256: str


@dataclass(frozen=True)
class ShardFiles:
    """The shards of a folder, in the order of their rows; their embeddings stay on disk until they are asked for.

    n_embeddings, dim: N and Co.
    """

    path: Path
    n_embeddings: int
    dim: int
    shards: tuple[Shard, ...]
    _maps: dict[str, NDArray[np.float16]] = field(default_factory=dict, compare=False, repr=False)
    _sound: set[str] = field(default_factory=set, compare=False, repr=False)

    @property
    def n_rows(self) -> int:
        """The rows of all shards."""
        return sum(shard.n_images for shard in self.shards)

    def map_all(self) -> None:
        """Map every shard, so that it stays readable when its file is removed. Raises StoreError when one is missing,
        can't be read, or isn't of the size and shape that are known of it; no embedding is read."""
        for shard in self.shards:
            self._mapped(shard)

    def shard(self, shard: Shard) -> NDArray[np.float16]:
        """The rows of one shard, [m, N, Co] float16, memory-mapped and read-only, its hash checked on first use.

        Raises StoreError when a byte differs from what was written.
        """
        array = self._mapped(shard)
        if shard.file not in self._sound:
            digest = hashlib.sha256(_npy_header(array.shape))
            digest.update(array.reshape(-1).view(np.uint8).data)
            if digest.hexdigest() != shard.sha256:
                raise StoreError(
                    f"{self.path / shard.file} is damaged, its hash is not the manifest's: "
                    "delete the store and embed again"
                )
            self._sound.add(shard.file)
        return array

    def let_go(self, shard: Shard) -> None:
        """Don't hold what was read of a shard in this process's memory any longer; it can be read again."""
        if shard.file in self._maps and hasattr(mmap, "MADV_DONTNEED"):
            self._maps[shard.file]._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        """Some rows, in the order in which they are asked for: [m, N, Co] float16. Raises as `shard` does."""
        ends = np.cumsum([shard.n_images for shard in self.shards])
        places = np.searchsorted(ends, rows, side="right")
        taken = np.empty((len(rows), self.n_embeddings, self.dim), dtype=np.float16)
        for place in np.unique(places).tolist():
            chosen = places == place
            taken[chosen] = self.shard(self.shards[place])[rows[chosen] - ends[place] + self.shards[place].n_images]
        return taken

    def verify(self) -> None:
        """Read every byte of every shard. Raises StoreError for the first that differs from what was written."""
        self._sound.clear()
        for shard in self.shards:
            self.shard(shard)

    def _mapped(self, shard: Shard) -> NDArray[np.float16]:
        """A shard's map, [m, N, Co] float16. Its header is compared, not parsed: nothing in a damaged one can mislead
        NumPy."""
        if shard.file in self._maps:
            return self._maps[shard.file]
        path = self.path / shard.file
        shape = (shard.n_images, self.n_embeddings, self.dim)
        header = _npy_header(shape)
        n_bytes = len(header) + 2 * shard.n_images * self.n_embeddings * self.dim
        try:
            with path.open("rb") as stream:
                found = path.stat().st_size
                if found != n_bytes or stream.read(len(header)) != header:
                    raise StoreError(
                        f"{path} is damaged, it isn't the {n_bytes} bytes of float16 {list(shape)} "
                        f"that were written (it has {found}): delete the store and embed again"
                    )
                self._maps[shard.file] = np.memmap(stream, np.dtype("<f2"), "r", len(header), shape)
        except FileNotFoundError:
            raise StoreError(f"{path} is missing: delete the store and embed again") from None
        except OSError as error:
            raise StoreError(f"{path} can't be read ({error.strerror or error}): check its permissions") from error
        return self._maps[shard.file]


def _npy_header(shape: tuple[int, ...]) -> bytes:
    """How a shard's file begins: NumPy writes the same bytes for the same shape."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f2", "fortran_order": False, "shape": tuple(shape)})
    return header.getvalue()


def shard_file(number: int) -> str:
    """The file name of a shard, by its number in the plan."""
    return f"embeddings-{number:05d}.npy"


def shard_number(file: str) -> int:
    """The number of a shard, by its file name."""
    return int(file.removeprefix("embeddings-").removesuffix(".npy"))


def write_shard(folder: Path, number: int, embeddings: NDArray[np.float32]) -> Shard:
    """Write one shard atomically, as float16.

    embeddings: [m, N, Co] float32, unit-norm; m at least 1.
    Raises StoreError when a value isn't finite or a vector isn't unit-norm after rounding to float16.
    """
    rounded = embeddings.astype(np.float16)
    norms = np.linalg.norm(rounded.astype(np.float32), axis=-1)  # [m, N]
    if not np.isfinite(norms).all():
        raise StoreError(f"shard {number}: the method gave embeddings that are not finite: check its weights")
    worst = float(np.abs(norms - 1).max())
    if worst > _NORM_TOLERANCE:
        raise StoreError(
            f"shard {number}: the method gave an embedding whose length is off 1 by {worst:.2g}, expected unit length"
        )
    path = folder / shard_file(number)
    with files.atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, rounded, allow_pickle=False)
    return Shard(path.name, len(rounded), files.sha256_file(path))
