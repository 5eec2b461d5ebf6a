"""What every reader returns: images with ids, and which categories each contains."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from for_model.errors import DataError

ImageId = int | str  # one type within a dataset; images are ordered by it everywhere
Group = Literal["base", "novel", "other"]


@dataclass(frozen=True)
class ImageRecord:
    """One image: its id in the dataset, and its path relative to the dataset's `image_root`."""

    id: ImageId
    path: str


@dataclass(frozen=True)
class Category:
    """A category: its name as it is written in prompts, and its group.

    `base` categories are labelled in training, `novel` ones are kept for evaluation, `other` ones are neither: they
    are outside the benchmark's split and no score counts them.
    """

    name: str
    group: Group


@dataclass(frozen=True)
class Dataset:
    """A split of a dataset.

    name: of the dataset, as stores and results record it.
    split: its name.
    image_root: the folder that the images' paths are relative to.
    images: in ascending order of id, ids unique and all of one type.
    categories: C of them, in an order that stays.
    labels: image id -> positions in `categories` of those present in it (image level, from instance annotations).
        Empty for a dataset without labels.
    negatives: of a federated dataset (LVIS), image id -> positions of the categories that were judged and found not to
        be in it. An image is judged for its labels and its negatives, and for no other category. None where every image
        is judged for every category, and so holds what its labels say and nothing else.
    """

    name: str
    split: str
    image_root: Path
    images: tuple[ImageRecord, ...]
    categories: tuple[Category, ...] = ()
    labels: Mapping[ImageId, frozenset[int]] = field(default_factory=dict)
    negatives: Mapping[ImageId, frozenset[int]] | None = None

    def __post_init__(self) -> None:
        ids = [image.id for image in self.images]
        if len({type(i) for i in ids}) > 1:
            raise DataError(f"{self.name} {self.split}: image ids mix integers and strings; use one of the two")
        if ids != sorted(ids) or len(set(ids)) != len(ids):
            raise DataError(f"{self.name} {self.split}: image ids must be unique and ascending")

    def relevance(self, image_ids: Sequence[ImageId]) -> NDArray[np.bool_]:
        """Which categories are present in which images.

        image_ids: M ids of this dataset, in any order (those of a store, say).

        Returns [C, M] bool. Raises DataError for an id that the dataset doesn't have.
        """
        return self._matrix(image_ids, self.labels)

    def known(self, image_ids: Sequence[ImageId]) -> NDArray[np.bool_] | None:
        """For which categories each image is judged: known to hold an object of the category, or known not to.

        image_ids: M ids of this dataset, in any order.

        Returns [C, M] bool, True for the labels and the negatives of an image; None where all are judged for all.
        Raises DataError for an id that the dataset doesn't have.
        """
        if self.negatives is None:
            return None
        return self._matrix(image_ids, self.labels) | self._matrix(image_ids, self.negatives)

    def _matrix(self, image_ids: Sequence[ImageId], found: Mapping[ImageId, frozenset[int]]) -> NDArray[np.bool_]:
        known = {image.id for image in self.images}
        matrix = np.zeros((len(self.categories), len(image_ids)), dtype=bool)
        for column, image_id in enumerate(image_ids):
            if image_id not in known:
                raise DataError(f"image {image_id!r} is not in {self.name} {self.split}: store and dataset differ")
            matrix[list(found.get(image_id, ())), column] = True
        return matrix

    def check_files(self, how_to_go_on: str) -> None:
        """Raise DataError when images' files aren't there: a download that stopped half way should show before a long
        run. Nothing is opened.

        how_to_go_on: the end of the error's line, what to do to leave the missing images out.
        """
        folders: dict[Path, set[str]] = {}
        missing = []
        for image in self.images:
            folder, name = (self.image_root / image.path).parent, PurePosixPath(image.path).name
            if folder not in folders:
                try:
                    folders[folder] = {file.name for file in folder.iterdir()}
                except OSError:
                    folders[folder] = set()
            if name not in folders[folder]:
                missing.append(image.path)
        if missing:
            raise DataError(
                f"{len(missing):,} of the {len(self.images):,} images of {self.name} {self.split} are not under "
                f"{self.image_root}, {missing[0]} for one: fetch them; {how_to_go_on}"
            )
