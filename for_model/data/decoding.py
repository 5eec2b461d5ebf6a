"""Images decoded and preprocessed in threads, ahead of the model that takes them."""

import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from PIL import Image
from torch import Tensor

from for_model.data.dataset import ImageRecord
from for_model.data.images import load_image
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
    """The images in order, each preprocessed, or why it can't be, with at most `ahead` of them waiting in memory.

    target: see `images.load_image`.  workers: threads; their number doesn't change the result.
    """

    def decode(record: ImageRecord) -> Pixels:
        try:
            return preprocess(load_image(root / record.path, target))
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
