"""Images -> the embeddings of a shard: decoded in threads, encoded in batches, stamped as they were.

No batch crosses a shard, so a shard comes out the same in whichever run, or on whichever machine of a kind, it is made.
"""

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from for_model.data.dataset import Dataset, ImageId, ImageRecord
from for_model.data.decoding import Pixels, decoded
from for_model.errors import ImageError, StoreError
from for_model.methods.protocol import Method
from for_model.training.features import Kept
from for_search.store.changes import Stamp, full_stamps
from for_search.store.store import SkippedImage


@dataclass(frozen=True)
class MadeShard:
    """What became of a shard's images.

    embeddings: [m, N, Co] float32, of the m images that were usable.
    images: those m, in the order of the rows.
    skipped: the others.
    stamps: each image's file, skipped ones included.
    """

    embeddings: NDArray[np.float32]
    images: tuple[ImageRecord, ...]
    skipped: tuple[SkippedImage, ...]
    stamps: Mapping[ImageId, Stamp]


@dataclass(frozen=True)
class ShardMaker:
    """Makes shards of images.

    method: embeds them.
    image_root: the folder that their paths are relative to.
    batch_size: images a forward pass.
    workers: threads that decode; their number doesn't change the result.
    """

    method: Method
    image_root: Path
    batch_size: int
    workers: int

    @contextlib.contextmanager
    def decoding(self, records: Sequence[ImageRecord]) -> Iterator[Iterator[Pixels]]:
        """What becomes of some images, in their order, decoded ahead of whoever takes it."""
        # Twice the size that the method sees: reducing by DCT stays well below what its own resizing does.
        target, ahead = 2 * self.method.info.image_size, 2 * max(self.batch_size, self.workers)
        stream = decoded(records, self.image_root, target, self.method.preprocess, self.workers, ahead)
        with contextlib.closing(stream) as images:
            yield images

    def make(
        self,
        records: Sequence[ImageRecord],
        images: Iterator[Pixels],
        looked_at: Mapping[ImageId, Stamp],
        encode: Callable[[torch.Tensor], torch.Tensor] | None = None,
        saw: Callable[[Pixels], object] = lambda _: None,
    ) -> MadeShard:
        """Make one shard.

        records: its images.
        images: gives what became of them next.
        looked_at: image id -> its file as it was before.
        encode: makes embeddings of what is no ImageError; None for the method's own, of pixels.
        saw: called for each image.
        Raises StoreError when the method's output is of another shape than it says.
        """
        info = self.method.info
        encode = encode or self.method.encode_images
        blocks = [np.empty((0, info.n_embeddings, info.dim), dtype=np.float32)]
        batch: list[torch.Tensor] = []
        usable: list[ImageRecord] = []
        skipped: list[SkippedImage] = []
        for record in records:
            pixels = next(images)
            if isinstance(pixels, ImageError):
                skipped.append(SkippedImage(record.id, record.path, str(pixels)))
            else:
                usable.append(record)
                batch.append(pixels)
            if len(batch) == self.batch_size:
                blocks.append(self._encode(encode, batch))
                batch = []
            saw(pixels)
        if batch:
            blocks.append(self._encode(encode, batch))
        stamps = full_stamps(records, self.image_root, looked_at, self.workers)
        return MadeShard(np.concatenate(blocks), tuple(usable), tuple(skipped), stamps)

    def _encode(self, encode: Callable[[torch.Tensor], torch.Tensor], batch: list[torch.Tensor]) -> NDArray[np.float32]:
        """Pixels of b images, or their feature maps -> [b, N, Co] float32."""
        with torch.inference_mode():
            embeddings = encode(torch.stack(batch)).float().cpu().numpy()
        info = self.method.info
        expected = (len(batch), info.n_embeddings, info.dim)
        if embeddings.shape != expected:
            raise StoreError(
                f"method {info.method} gave embeddings of shape {list(embeddings.shape)}, expected {list(expected)}: "
                "its info and its output disagree"
            )
        return embeddings


def kept_maps(
    features: Kept, dataset: Dataset, records: Sequence[ImageRecord], batch_size: int
) -> Generator[Pixels, None, None]:
    """The kept feature maps of some of a dataset's images, [K, Ce] float32 each, in place of their pixels."""
    reasons = {skipped.row: skipped.reason for skipped in features.skipped}
    row_of = {image.id: row for row, image in enumerate(dataset.images)}
    rows = np.array([row_of[record.id] for record in records], np.int64)
    order = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    for wanted, (found, X) in zip(order, features.batches(order), strict=True):
        maps = dict(zip(found.tolist(), X, strict=True))
        for row in wanted.tolist():
            yield maps[row] if row in maps else ImageError(reasons[row])
