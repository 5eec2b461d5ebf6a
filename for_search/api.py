"""The page's functions for programs: JSON values in and out, without a web framework and without paths of this machine.

`index` is the name of one of the library's indexes, as `stats` lists them; an empty one is the first.
"""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from for_model.data.dataset import ImageId
from for_model.errors import UsageError
from for_search.library.label_service import default_vocabulary, label_image
from for_search.library.library import Library
from for_search.query.evidence import find_evidence
from for_search.query.image_labels import OWN
from for_search.query.searcher import Query, Searcher, clean_query
from for_search.query.side_by_side import ask_side_by_side

MAX_K = 1000


def search(library: Library, query: str, k: int = 12, index: str = "", where: str = "") -> dict[str, Any]:
    """The k images that match a text best: rank, id, score, number of the embedding that matched; and the latency.

    where: a condition over the images' columns, see docs/search.md; an empty one for all images.

    Raises UsageError for an empty text, an unknown index, k out of 1 to MAX_K, or a condition that can't be understood.
    """
    searcher = _searcher(library, index)
    return _answer(searcher, searcher.text_query(clean_query(query)), k, where)


def search_image(
    library: Library,
    image: Image.Image | ImageId,
    k: int = 12,
    index: str = "",
    embedding: int | None = None,
    where: str = "",
) -> dict[str, Any]:
    """The k images that show most of what an image shows, in the form in which `search` answers.

    library: of the index.
    image: an image, or the id of one of the index.
    k: how many images, 1 to MAX_K.
    index: its name; an empty one for the first.
    embedding: of an image of the index, search for what this one of its embeddings stands for; None for the whole.
    where: as for `search`.

    `Searcher.find` says what the score is. Raises UsageError for an unknown index, id or embedding, or k out of range.
    """
    searcher = _searcher(library, index)
    if isinstance(image, Image.Image):
        return _answer(searcher, searcher.image_query(image), k, where)
    return _answer(searcher, searcher.like_query(image, embedding), k, where)


def compare(library: Library, query: str, k: int = 12, index: str = "") -> dict[str, Any]:
    """A text through every method that has an index of the same images; see `SideBySide`.

    The index itself comes first. Where its labels are at hand and the text names a category, hits say whether they are
    right, and each method has its AP@50 for the query.
    """
    _check_k(k)
    name = index or library.default
    searchers = {each: library.searcher(each) for each in (name, *library.siblings(name))}
    return ask_side_by_side(searchers, clean_query(query), k, library.labels(name)).to_json()


def evidence(library: Library, query: str, image_id: ImageId, index: str = "") -> dict[str, Any]:
    """Where in an image the embedding comes from that matches a text best; see `Evidence`."""
    searcher = _searcher(library, index)
    return find_evidence(searcher, image_id, searcher.text_query(clean_query(query)).embeddings).to_json()


def pseudo_label(
    library: Library,
    image: Image.Image | ImageId,
    index: str = "",
    vocabulary: str = "",
    names: Sequence[str] = (),
    threshold: float | None = None,
) -> dict[str, Any]:
    """The names that Cluster-CLIP sees in an image; see `label_image`, and `ImageLabels` for the answer.

    library: of the index.
    image: an image, or the id of one of the index.
    index: its name; an empty one for the first.
    vocabulary: one of VOCABULARIES. An empty one stands for `own` if there are `names`, else for the names of the
        index's dataset, or ImageNet-21K where that isn't annotated.
    names: of the vocabulary `own`.
    threshold: in 0..1, the least probability of a label; None for the vocabulary's own.
    """
    name = index or library.default
    chosen = vocabulary or (OWN if names else default_vocabulary(library, name))
    return label_image(library, name, image, chosen, names, threshold)[1].to_json()


def stats(library: Library, index: str = "") -> dict[str, Any]:
    """What an index holds, and the names of all indexes."""
    name = index or library.default
    held = library.searcher(name).index
    return {
        "index": name,
        "indexes": list(library.names),
        "siblings": list(library.siblings(name)),
        "dataset": held.dataset,
        "split": held.split,
        "method": held.info.to_json(),
        "kind": held.kind,
        "n_images": len(held.images),
        "n_bytes": held.n_bytes,
        "skipped": [{"id": image.id, "reason": image.reason} for image in held.skipped],
    }


def _searcher(library: Library, index: str) -> Searcher:
    return library.searcher(index or library.default)


def _answer(searcher: Searcher, query: Query, k: int, where: str) -> dict[str, Any]:
    _check_k(k)
    return searcher.find(query, k, searcher.index.where(where)).to_json(paths=False)


def _check_k(k: int) -> None:
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= MAX_K:
        raise UsageError(f"k is {k!r}: ask for 1 to {MAX_K} images")
