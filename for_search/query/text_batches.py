"""Texts of many threads, encoded by one: those that wait at the same time go through the encoder together.

Threads that each run a network on a processor slow one another down; a batch costs little more than one of its texts.
"""

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from for_model.methods.protocol import LazyMethod, Method
from for_model.prompts import check_texts

MAX_TEXTS = 32  # a batch

_Text: TypeAlias = "tuple[str, Future[NDArray[np.float32]]]"  # and its embedding, [Co]

_THREAD = ThreadPoolExecutor(1, thread_name_prefix="texts")  # of all methods: they share the processor


class TextBatches:
    """The text encoder of a method. Threads may share one."""

    def __init__(self, method: LazyMethod) -> None:
        self._method = method
        self._waiting: list[_Text] = []
        self._lock = threading.Lock()

    def embed(self, text: str) -> NDArray[np.float32]:
        """[Co] float32, unit-norm, of a free text, as `embed_queries` gives it. Waits until it is encoded.

        The method is loaded, unless its texts can be encoded without; see `LazyMethod.numpy_text`.
        Raises what loading the method and encoding this text raise.
        """
        quick = None if self._method.loaded else self._method.numpy_text
        if quick is not None:
            check_texts([text], "query")
            return quick.embed_query(text)
        method = self._method.get()
        embedding: Future[NDArray[np.float32]] = Future()
        with self._lock:
            self._waiting.append((text, embedding))
        _THREAD.submit(self._encode_waiting, method)
        return embedding.result()

    def _encode_waiting(self, method: Method) -> None:
        """Encode what waits: all of it the first time, so that most of the calls, one a text, find nothing to do."""
        with self._lock:
            batch, self._waiting = self._waiting[:MAX_TEXTS], self._waiting[MAX_TEXTS:]
        if batch and not _encode(method, batch):
            for each in batch:  # one text can't be encoded: tried alone, the others succeed
                _encode(method, [each])


def _encode(method: Method, batch: Sequence[_Text]) -> bool:
    """Encode some texts together and hand each its embedding.

    Returns False when several can't be encoded together; none of them is then told, and the caller tries each alone. A
    single text that can't be encoded is handed its error.
    """
    from for_model.text import embed_queries

    try:
        rows = embed_queries(method, [text for text, _ in batch]).numpy(force=True).astype(np.float32)  # [Q, Co]
    except Exception as error:
        if len(batch) > 1:
            return False
        batch[0][1].set_exception(error)
        return True
    for (_, embedding), row in zip(batch, rows, strict=True):
        embedding.set_result(row)
    return True
