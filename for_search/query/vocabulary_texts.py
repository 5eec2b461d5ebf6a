"""The text embeddings of whole vocabularies, made in the background so that nobody else waits for them.

ImageNet-21K's 20,099 names take RN-mini half a minute and a large model on a CPU an hour, once: they are kept on disk.
Lists that visitors type are kept in memory only, a few of them, as their number has no end.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from for_model.errors import UsageError
from for_model.files import sha256_json
from for_model.methods.protocol import Method
from for_model.prompts import prompts_of

if TYPE_CHECKING:
    from torch import Tensor

MAX_WAITING = 8  # vocabularies that are being made or wait for it
AT_ONCE = 2
KEPT = 16  # vocabularies in memory

_log = logging.getLogger(__name__)


@dataclass
class Embedding:
    """A vocabulary that is being embedded.

    total: how many names it has.
    done: how many of them are embedded so far.
    texts: the embeddings, once all are.
    """

    total: int
    done: int = 0
    texts: "Future[Tensor]" = field(default_factory=Future)  # [V, Co] float32, unit-norm, on the CPU


class VocabularyTexts:
    """Makes each vocabulary's embeddings once, whoever asks. Threads may share one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(AT_ONCE)
        self._known: OrderedDict[str, Embedding] = OrderedDict()

    def embedding(self, method: Method, names: Sequence[str], keep: bool = False) -> Embedding:
        """The embedding of a vocabulary, begun now or earlier; `.texts.result()` waits for it.

        method: encodes the names.
        names: the vocabulary.
        keep: whether to keep the embeddings on disk, and to look for them there first.

        Raises UsageError when too many others are waited for. What embedding raises comes from `.texts`, and the next
        call tries again.
        """
        key = sha256_json([list(method.info.text_space), list(prompts_of(method)), list(names)])
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
            finished = [old for old, embedding in self._known.items() if embedding.texts.done()]
            if len(self._known) - len(finished) >= MAX_WAITING:
                raise UsageError("too many vocabularies are being prepared just now: try again in a minute")
            for old in finished[: max(0, len(self._known) + 1 - KEPT)]:
                del self._known[old]
            begun = self._known[key] = Embedding(len(names))
        # a daemon: whoever stops the server doesn't wait for it
        threading.Thread(target=self._make, args=(key, begun, method, list(names), keep), daemon=True).start()
        return begun

    def _make(self, key: str, embedding: Embedding, method: Method, names: list[str], keep: bool) -> None:
        from for_model.text import cached_category_embeddings, embed_categories

        def report(done: int) -> None:
            embedding.done = done

        try:
            with self._slots:
                if keep:
                    texts = cached_category_embeddings(method, names, report=report)
                else:
                    texts = embed_categories(method, names, report=report)
        except BaseException as error:  # whoever waits must hear of it
            with self._lock:
                del self._known[key]
            embedding.texts.set_exception(error)
            return
        embedding.done = embedding.total
        embedding.texts.set_result(texts)
