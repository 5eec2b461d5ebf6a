"""What every image of a training is trained on: labels, and pseudo-labels.

Shapes: M images of the dataset, B of a batch, C base categories, V names of the vocabulary, W nouns of captions, Co
joint width.
"""

import logging
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from for_model.data.captions import captions_path, nouns_of_captions, read_captions
from for_model.data.dataset import Dataset
from for_model.errors import DataError
from for_model.files import cache_dir
from for_model.methods.clip_method import ClipMethod
from for_model.text import cached_category_embeddings
from for_model.training.config import PseudoLabelConfig, TrainConfig
from for_model.training.features import Features, Rows
from for_model.training.losses.set_prediction import with_pseudo_negatives
from for_model.training.pseudo_labels import StoredLabels, stored_labels, vocabulary
from for_model.training.teacher import Teacher, soft_teacher, survey

log = logging.getLogger(__name__)


class Targets:
    """What every image is trained on, by its row in the dataset; the same in every view of it.

    views: the feature maps of the dataset's images, and of their mirror images if those are trained on too.

    labelled: [M] bool, whose labels are used.  base: of each image, its base categories, positions in `base_texts`.
    base_texts: [C, Co].  frequencies: [C], in how many images each base category is.
    nouns: of each image, the things besides categories that its captions name, positions in `noun_texts`; None unless
        they are asked for.  noun_texts: [W, Co].
    absent: of each image of a federated dataset, the base categories known not to be in it; None elsewhere.
    pseudo: the pseudo-labels of the set objective, None without that branch.  pseudo_texts: [V, Co].
    surveys: of the ranking objective, what one look at all images found, in each view of them.
    teacher: the soft teacher of the ranking objective, None without that branch; it has the same `pseudo_texts`.
    """

    def __init__(self, config: TrainConfig, dataset: Dataset, views: Sequence[Features], method: ClipMethod) -> None:
        count, device = len(dataset.images), method.backbone.device
        base = [i for i, category in enumerate(dataset.categories) if category.group == "base"]
        if config.loss.sup and (not base or not dataset.labels):
            raise DataError(
                f"{dataset.name} {dataset.split} has no labelled base categories: give those of your own "
                '`"group": "base"` in the annotations\' "categories", or train on pseudo-labels alone with loss.sup=0'
            )
        self.labelled = labelled_images(count, config.data.labelled, config.data.fold)
        number = {position: n for n, position in enumerate(base)}
        self.base = [
            sorted(number[i] for i in dataset.labels.get(image.id, ()) if i in number) for image in dataset.images
        ]
        self.absent: list[list[int]] | None = None
        if dataset.negatives is not None:
            self.absent = [
                sorted(number[i] for i in dataset.negatives.get(image.id, ()) if i in number)
                for image in dataset.images
            ]
        self.frequencies = frequencies(self.base, len(base))
        self.base_texts = cached_category_embeddings(method, [dataset.categories[i].name for i in base]).to(device)
        self.nouns: list[list[int]] | None = None
        if config.data.nouns:
            words, self.nouns = _nouns(config, dataset)
            self.noun_texts = cached_category_embeddings(method, words).to(device)
        ranking = config.loss.objective == "ranking"
        self.surveys = [survey(features, method.backbone) for features in views] if ranking else []
        self.pseudo: StoredLabels | None = None
        self.teacher: Teacher | None = None
        if config.loss.pse:
            settings = config.pseudo_labels
            names = _names(settings, dataset)
            self.pseudo_texts = cached_category_embeddings(method, names).to(device)
            if ranking:
                looked_at = [(features, found.frozen) for features, found in zip(views, self.surveys, strict=True)]
                self.teacher = soft_teacher(looked_at, method.backbone, self.pseudo_texts, config.loss.sharpness)
            else:
                folder = cache_dir() / "pseudo-labels"
                self.pseudo = stored_labels(views[0], method, names, settings.threshold, folder, settings.scale)

    def known(self, rows: Rows, minimum: int, seed: tuple[int, int]) -> Tensor | None:
        """The base categories that the softmax of some images of a federated dataset runs over: their labels, known
        negatives and pseudo negatives, drawn anew for each seed, image by image. [B, C] bool; None elsewhere."""
        if self.absent is None:
            return None
        drawn = [
            with_pseudo_negatives(
                np.random.default_rng([*seed, row]), self.base[row], self.absent[row], self.frequencies, minimum
            )
            for row in rows.tolist()
        ]
        return torch.from_numpy(np.stack(drawn))


def _names(settings: PseudoLabelConfig, dataset: Dataset) -> list[str]:
    """The names that unlabelled images are taught with."""
    groups = {"novel": settings.without_novel, "base": settings.without_base}
    left_out = [category.name for category in dataset.categories if groups.get(category.group)]
    return vocabulary(settings.vocabulary, left_out)[:: settings.every][: settings.names or None]


def _nouns(config: TrainConfig, dataset: Dataset) -> tuple[list[str], list[list[int]]]:
    """See `nouns_of_captions`. No class of the vocabulary has a category among its lemmas."""
    names = vocabulary(config.pseudo_labels.vocabulary, [category.name for category in dataset.categories])
    words, labels = nouns_of_captions(dataset, read_captions(captions_path(dataset)), names, config.data.nouns)
    if not words:
        raise DataError(
            f"no name of {config.pseudo_labels.vocabulary} is in the captions of {config.data.nouns} images of "
            f"{dataset.name} {dataset.split}: lower data.nouns, or leave it out"
        )
    log.info("%d nouns of the captions are labels too, %d labels in all", len(words), sum(map(len, labels)))
    return words, labels


def frequencies(labels: Sequence[Sequence[int]], count: int) -> NDArray[np.float64]:
    """[count] float64: how many images have each label. labels: of each image, positions below `count`, each once."""
    return np.bincount([n for found in labels for n in found], minlength=count).astype(float)


def labelled_images(count: int, share: float, fold: int) -> NDArray[np.bool_]:
    """[M] bool: the images whose labels are used, at least one of them, drawn by the fold."""
    chosen = np.zeros(count, bool)
    chosen[np.random.default_rng([fold, 7]).permutation(count)[: max(1, round(share * count))]] = True
    return chosen
