"""An index of made-up embeddings in which some images hold a part that was planted."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from for_search.index.index import SearchIndex
from for_search.index.index_files import build_index
from tests.helpers.store_making import make_store, random_units


@dataclass(frozen=True)
class Planted:
    """An index of M images with N embeddings of width Co.

    text: [Co] float32, unit-norm; it points roughly at what was planted.
    relevant: [M] bool, the images that hold it.
    """

    index: SearchIndex
    text: NDArray[np.float32]
    relevant: NDArray[np.bool_]

    def marks(self, count: int) -> list[dict[str, object]]:
        """The text's `count` best images, marked as a user would who sees what was planted."""
        order = np.argsort(-self.index.score_images(self.text[None])[0], kind="stable")[:count]
        return [{"image": self.index.images[i].id, "right": bool(self.relevant[i])} for i in order.tolist()]


def make_planted(folder: Path, n_images: int = 300, n_embeddings: int = 4, dim: int = 24, **changes: object) -> Planted:
    """A third of the images hold something that looks like the text and isn't meant; a fifth hold what is meant."""
    generator = np.random.default_rng(5)
    meant, other = random_units((2, dim), seed=7)
    embeddings = random_units((n_images, n_embeddings, dim), seed=3)
    relevant = generator.random(n_images) < 0.2
    decoy = generator.random(n_images) < 0.33
    embeddings[relevant, 1] += 1.2 * meant
    embeddings[decoy, 2] += 1.2 * other
    embeddings /= np.linalg.norm(embeddings, axis=-1, keepdims=True)
    text = meant + 0.8 * other
    make_store(folder / "store", embeddings, **changes)
    index = build_index(folder / "store", folder / "index")
    return Planted(index, (text / np.linalg.norm(text)).astype(np.float32), relevant)
