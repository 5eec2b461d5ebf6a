"""Words to text embeddings: category names, free-text queries, and a cache for large vocabularies.

Shapes: C categories, Q queries, Co joint width. Everything returned is float32 on the CPU and unit-norm. Names and
queries are put into the prompts as they are, whatever characters they hold.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from for_model.files import cache_dir, sha256_json
from for_model.prompts import check_texts, fill_prompts, prompted_name, prompts_of
from for_model.tensor_files import write_weights

if TYPE_CHECKING:
    from for_model.methods.protocol import Method

log = logging.getLogger(__name__)


class TextEncoder(Protocol):
    """What text embeddings need of a method or backbone.

    It may have an attribute `prompts`, templates of its own, each with one `{}`; an encoder without them gets
    `prompts.PROMPTS`.
    """

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Q texts -> [Q, Co] float32, unit-norm; [0, Co] for none."""
        ...


def embed_categories(
    encoder: TextEncoder,
    names: Sequence[str],
    batch_size: int = 32,
    progress: bool = False,
    report: Callable[[int], None] | None = None,
) -> Tensor:
    """Embed category names: the mean over the encoder's prompts of the unit-norm embeddings, made unit-norm again.

    encoder: a method or a backbone.
    names: C of them.
    batch_size: names at a time, each as many texts as there are prompts.
    progress: show a bar on stderr, if that is a terminal.
    report: called after each batch with the number of names that are done.

    Returns [C, Co] in the order of `names`; [0, Co] for none.
    Raises UsageError for an empty name.
    """
    check_texts(names, "category name")
    prompts = prompts_of(encoder)
    parts = [encoder.encode_texts([]).float().cpu()]
    starts = range(0, len(names), batch_size)
    for start in tqdm(starts, desc="embedding names", unit="batch", disable=None if progress else True):
        batch = [text for name in names[start : start + batch_size] for text in fill_prompts(name, prompts)]
        embeddings = F.normalize(encoder.encode_texts(batch).float().cpu(), dim=-1)  # [C' * prompts, Co]
        parts.append(F.normalize(embeddings.unflatten(0, (-1, len(prompts))).mean(dim=1), dim=-1))  # [C', Co]
        if report is not None:
            report(start + len(batch) // len(prompts))
    return torch.cat(parts)


def embed_queries(encoder: TextEncoder, texts: Sequence[str]) -> Tensor:
    """Embed free-text queries: names in the prompts, like categories, and sentences as they stand.

    encoder: a method or a backbone.
    texts: Q of them; `prompted_name` says which are names.

    Returns [Q, Co] in the order of `texts`; [0, Co] for none. Raises UsageError for an empty query.
    """
    check_texts(texts, "query")
    names = [prompted_name(text) for text in texts]
    prompted = [name for name in names if name is not None]
    plain = [text.strip() for text, name in zip(texts, names, strict=True) if name is None]
    from_names = iter(embed_categories(encoder, prompted))
    from_plain = iter(F.normalize(encoder.encode_texts(plain).float().cpu(), dim=-1))
    if not names:
        return embed_categories(encoder, [])
    return torch.stack([next(from_plain if name is None else from_names) for name in names])


def cached_category_embeddings(
    method: "Method", names: Sequence[str], cache: Path | None = None, report: Callable[[int], None] | None = None
) -> Tensor:
    """`embed_categories` with a progress bar and a cache on disk: for ImageNet-21K's 21,841 names, say.

    There is one safetensors file for each combination of text space, prompts and names (and their order). A damaged
    file is made again; a folder that can't be written costs a warning.

    method: encodes the names.
    names: C of them.
    cache: the folder; None for `text` in FOR's cache folder.
    report: called after each batch with the number of names that are done; not called when the embeddings are read from
        disk.

    Returns [C, Co] float32, unit-norm, on the CPU.
    """
    key = {"text_space": list(method.info.text_space), "prompts": list(prompts_of(method)), "names": list(names)}
    path = (cache_dir() / "text" if cache is None else cache) / f"{sha256_json(key)}.safetensors"
    return cached_embeddings(
        path, (len(names), method.info.dim), lambda: embed_categories(method, names, progress=True, report=report)
    )


def cached_embeddings(path: Path, shape: tuple[int, int], make: Callable[[], Tensor]) -> Tensor:
    """What `make` gives, [Q, Co] float32, unit-norm, on the CPU; kept in a safetensors file.

    A damaged file is made again; a folder that can't be written costs a warning.

    path: of the file.
    shape: [Q, Co], expected of the file.
    make: computes the embeddings when the file isn't there.
    """
    if path.is_file():
        embeddings = _read_cached(path, shape)
        if embeddings is not None:
            return embeddings
        log.warning("%s is damaged, making it again", path)
    embeddings = make().cpu()
    try:
        write_weights(path, {"embeddings": embeddings}, {})
    except (OSError, SafetensorError) as error:  # the latter of a full disk
        log.warning("text embeddings are not kept: %s can't be written (%s)", path, error)
    return embeddings


def _read_cached(path: Path, expected: tuple[int, int]) -> Tensor | None:
    """The embeddings in a cache file, or None when they aren't what is expected: unit-norm and of that shape."""
    try:
        with safe_open(path, framework="pt") as file:
            embeddings = file.get_tensor("embeddings")
    except (SafetensorError, OSError):
        return None
    if tuple(embeddings.shape) != expected or embeddings.dtype != torch.float32:
        return None
    sound = torch.allclose(embeddings.norm(dim=-1), torch.ones(expected[0]), atol=1e-3)  # False for NaN
    return embeddings if sound else None
