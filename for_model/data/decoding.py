"""Images decoded and preprocessed in threads, ahead of the model that takes them."""

import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from PIL import Image
from torch import Tensor

from for_model.data.dataset import ImageRecord
from for_model.data.images import decoded_image
from for_model.errors import ImageError

Pixels = Tensor | ImageError  # [3, H, W] float32, or why there are none


def default_workers() -> int:
    """One thread for each core that this process may use, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, cores)


def decoded(
    records: Sequence[ImageRecord],
    root: Path,
    target: int,
    preprocess: Callable[[Image.Image], Tensor],
    workers: int,
    ahead: int,
) -> Generator[Pixels, None, None]:
    """Decode and preprocess images in threads.

    records: the images, in the order in which they are wanted.
    root: the folder that their paths are relative to.
    target: pixels, the size down to which a large JPEG may be decoded, see `images.load_image`.
    preprocess: makes [3, H, W] float32 of an image.
    workers: threads; their number doesn't change the result.
    ahead: at most so many images wait in memory, decoded before they are wanted.

    Yields each image's pixels, or the ImageError that says why there are none.
    """

    def decode(record: ImageRecord) -> Pixels:
        try:
            with decoded_image(root / record.path, target) as image:
                return preprocess(image)
        except ImageError as error:
            return error

    waiting: deque[Future[Pixels]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        for record in records:
            waiting.append(pool.submit(decode, record))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
