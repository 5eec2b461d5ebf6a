"""Flickr8k with the boxes of Flickr30k Entities, in COCO's layout, and two more splits, made out of its train split."""

from dataclasses import replace
from pathlib import Path

from for_model.data.coco import load_coco
from for_model.data.dataset import Dataset

_PUBLISHED = "train"  # the split that the other two are made of
_EVERY = 5


def load_flickr8k(root: Path, split: str) -> Dataset:
    """A split of Flickr8k: `train`, `val`, or one of two parts of train, to train on and to choose settings by.

    With train's images in ascending order of id, `dev` is every fifth, at the positions 0, 5, 10, ..., and `fit` the
    others; the published train of 5,000 images has 1,000 and 4,000. Both have train's images and annotations.
    See `load_coco` for the arguments and errors.
    """
    if split not in ("fit", "dev"):
        return load_coco(root, split, name="flickr8k")
    whole = load_coco(root, _PUBLISHED, name="flickr8k")
    images = tuple(image for place, image in enumerate(whole.images) if (place % _EVERY == 0) == (split == "dev"))
    labels = {image.id: whole.labels[image.id] for image in images if image.id in whole.labels}
    return replace(whole, split=split, images=images, labels=labels)
