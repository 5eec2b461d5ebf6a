"""A method's scores for everything that a study asks of a labelled split: its names, names and words that it lacks.

Legend: M images, C categories, A absent names, Z nonsense words, V random names.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from for_eval.metrics.score_matrix import score_matrix
from for_model.data.dataset import Dataset
from for_model.errors import DataError
from for_model.files import cache_dir, sha256_json
from for_model.methods.clip_method import ClipMethod
from for_model.methods.protocol import Method, MethodInfo
from for_model.text import cached_embeddings, embed_queries
from for_model.training.features import Kept, open_features
from for_search.query.presence import random_names, sample_positions
from for_search.query.ranking import BoolArray
from for_search.store.embed import embed
from for_search.store.store import open_store, store_path

# What nobody photographs, and what nobody means. A study measures on other words than it fits to.
NONSENSE_TO_FIT = (
    *("xqzt", "blorptang", "zzzzzz", "wrungle", "vshrdlu", "gfjkdl", "nfdkslw", "trelbish", "oooo", "kjh kjh"),
    *("monetary policy", "the square root of two", "fiscal austerity", "epistemology", "constitutional law"),
    *("yesterday's regret", "a lack of evidence", "moral relativism", "the subjunctive", "supply and demand"),
)
NONSENSE_TO_MEASURE = (
    *("asdfgh", "qwertyuiop", "hjkl", "flimberwick", "snorvel", "zxcvbn", "prrgh", "uvwxyz", "gnarfle", "lorem ipsum"),
    *("quantum bureaucracy", "democracy", "inflation rate", "a theory of justice", "metaphysics of tax"),
    *("existential doubt", "interest rate swap", "tomorrow afternoon", "legal precedent", "the past tense"),
)
_ABSENT_STEP = 100  # every so manieth name of ImageNet-21K, from the middle between two random names on


@dataclass(frozen=True, eq=False)
class Asked:
    """The scores of one method over one split, [names, M] float32 each.

    info: of the method.
    names: the C categories.
    relevance: [C, M] bool.
    present: of the categories.
    absent: of the A names that are in no image; A is 0 where nobody knows of any.
    nonsense: of the Z words.
    random: of the V random names.
    sample: the columns that are the index's sample, see `presence`.
    score: texts -> their scores, [texts, M].
    """

    dataset: str
    split: str
    info: MethodInfo
    names: tuple[str, ...]
    relevance: BoolArray
    present: NDArray[np.float32]
    absent: NDArray[np.float32]
    nonsense: NDArray[np.float32]
    random: NDArray[np.float32]
    sample: NDArray[np.int64]
    score: Callable[[Sequence[str]], NDArray[np.float32]]

    @property
    def groups(self) -> tuple[NDArray[np.float32], ...]:
        """The scores of categories, absent names and nonsense, in this order."""
        return self.present, self.absent, self.nonsense

    @property
    def truth(self) -> tuple[BoolArray, ...]:
        """Which images hold what each of `groups` names."""
        return self.relevance, np.zeros(self.absent.shape, bool), np.zeros(self.nonsense.shape, bool)


def ask(dataset: Dataset, method: Method, to_fit: bool) -> Asked:
    """Embed a split, unless that is done already, and score what a study asks of it.

    dataset: a labelled split.
    method: embeds it.
    to_fit: whether numbers are fitted to it, or measured on it; the words and absent names are others.

    Raises DataError for a split without labels.
    """
    if not dataset.categories or not dataset.labels:
        raise DataError(f"{dataset.name} {dataset.split} has no labels: use a labelled dataset")
    store = open_store(embed(dataset, method, store_path(dataset, method.info), features=_kept(dataset, method)).store)

    def score(texts: Sequence[str]) -> NDArray[np.float32]:
        key = sha256_json([method.info.text_space, "queries", list(texts)])
        shape = (len(texts), method.info.dim)
        made = cached_embeddings(
            cache_dir() / "text" / f"{key}.safetensors", shape, lambda: embed_queries(method, texts)
        )
        return score_matrix(store, made)

    names = tuple(category.name for category in dataset.categories)
    absent = _absent_names(names, to_fit) if dataset.name == "miniscenes" else []
    return Asked(
        dataset=dataset.name,
        split=dataset.split,
        info=method.info,
        names=names,
        relevance=dataset.relevance(store.ids),
        present=score(names),
        absent=score(absent) if absent else np.empty((0, len(store.images)), dtype=np.float32),
        nonsense=score(NONSENSE_TO_FIT if to_fit else NONSENSE_TO_MEASURE),
        random=score(random_names()),
        sample=sample_positions(len(store.images), store.info.n_embeddings, store.info.dim),
        score=score,
    )


def _kept(dataset: Dataset, method: Method) -> Kept | None:
    """The feature maps of a split, if they are kept already or can be: the trunk then runs once for all methods."""
    if not isinstance(method, ClipMethod):
        return None
    features = open_features(dataset, method.backbone, 4, exact=True)
    return features if isinstance(features, Kept) else None


def _absent_names(names: Sequence[str], to_fit: bool) -> list[str]:
    """Names of ImageNet-21K that share no word with the names of a drawn world, which are all that is in it."""
    from for_model.training.pseudo_labels import vocabulary

    words = {word for name in names for word in _words(name)}
    others = [name for name in vocabulary("imagenet21k")[_ABSENT_STEP // 2 :: _ABSENT_STEP] if not words & _words(name)]
    return others[int(not to_fit) :: 2]


def _words(name: str) -> set[str]:
    return set(re.findall(r"[^\W_]+", name.casefold()))
