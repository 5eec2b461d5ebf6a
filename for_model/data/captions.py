"""Labels out of captions, for images without boxes: a category is in an image if a caption of the image names it."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from for_model.data.dataset import Dataset, ImageId
from for_model.data.instances import FormatError, check_annotations, image_records, read_lists
from for_model.errors import DataError

_LAYOUT = "COCO's captions there, for data.labels=captions; data.labels=annotations needs none"

_IRREGULAR = {
    **{"man": "men", "woman": "women", "child": "children", "person": "people", "foot": "feet", "tooth": "teeth"},
    **{"goose": "geese", "mouse": "mice", "ox": "oxen", "knife": "knives", "wife": "wives", "life": "lives"},
    **{"leaf": "leaves", "loaf": "loaves", "calf": "calves", "half": "halves", "wolf": "wolves", "elf": "elves"},
    **{"shelf": "shelves", "scarf": "scarves", "hoof": "hooves", "thief": "thieves"},
    **{"sheep": "sheep", "fish": "fish", "deer": "deer"},
}


def captions_path(dataset: Dataset) -> Path:
    """Where a dataset's captions lie: in ROOT/annotations, `captions_` and the name of the folder of its images."""
    return dataset.image_root.parent / "annotations" / f"captions_{dataset.image_root.name}.json"


def read_captions(path: Path) -> dict[ImageId, list[str]]:
    """The captions of images: image id -> captions in the file's order; images without captions are left out.

    path: a file in COCO's captions format.
    Raises DataError when it is missing, damaged or in another format.
    """
    content = read_lists(path, "COCO's captions", _LAYOUT, ("images", "annotations"))
    captions: dict[ImageId, list[str]] = {}
    try:
        images = image_records((item.get("id"), item.get("file_name")) for item in content["images"])
        check_annotations(content["annotations"], {image.id for image in images})
        for annotation in content["annotations"]:
            text = annotation.get("caption")
            if not isinstance(text, str):
                raise FormatError(f"annotation {annotation['id']!r} has caption {text!r}, not a text")
            captions.setdefault(annotation["image_id"], []).append(text)
    except FormatError as error:
        raise DataError(f"{path} is not in COCO's captions format: {error}; fetch it again") from error
    return captions


def labels_from_captions(dataset: Dataset, captions: Mapping[ImageId, Iterable[str]]) -> Dataset:
    """The dataset with other labels: of an image, the categories whose name, or its plural, is in any of its captions.

    dataset: whose images and categories these are. What it says of absent categories (a federated dataset's negatives)
        is dropped with its labels.
    captions: image id -> captions, as `read_captions` gives them.
    A name counts as a whole word, or as whole words in its own order, in upper or lower case. Words that are part of a
    longer name don't count for a shorter one: a hot dog is no dog. What captions don't mention is no label.
    """
    forms: dict[tuple[str, ...], set[int]] = {}
    for position, category in enumerate(dataset.categories):
        for form in _forms(category.name):
            forms.setdefault(form, set()).add(position)
    labels = {
        image.id: frozenset(number for caption in captions.get(image.id, ()) for number in _named(caption, forms))
        for image in dataset.images
    }
    return replace(dataset, labels={key: found for key, found in labels.items() if found}, negatives=None)


def nouns_of_captions(
    dataset: Dataset, captions: Mapping[ImageId, Iterable[str]], names: Sequence[str], minimum: int
) -> tuple[list[str], list[list[int]]]:
    """What captions name besides the dataset's categories: nouns that can be labels too.

    dataset: whose images and categories these are.
    captions: image id -> captions, as `read_captions` gives them.
    names: that are looked for, as `labels_from_captions` does. Left out are those that hold the name or plural of a
        category, of any group (a shopping cart where `cart` is one), and those that an earlier one is spelt like.
    minimum: of the images that a name must be found in.

    Returns the names that are found, in their order, and of each image the positions in them that it shows, ascending.
    A kind of a category under a name of its own (`greyhound` where `dog` is one) is found like any other thing.
    """
    category = -1
    blocked = {form: {category} for each in dataset.categories for form in _forms(each.name)}
    forms = dict(blocked)
    for number, name in enumerate(names):
        own = _forms(name)
        if own and own[0] not in forms and not any(_named(" ".join(form), blocked) for form in own):
            for form in own:
                forms.setdefault(form, set()).add(number)
    found = [
        {number for caption in captions.get(image.id, ()) for number in _named(caption, forms)} - {category}
        for image in dataset.images
    ]
    counts = Counter(number for numbers in found for number in numbers)
    kept = sorted(number for number, count in counts.items() if count >= minimum)
    place = {number: position for position, number in enumerate(kept)}
    labels = [sorted(place[number] for number in numbers if number in place) for numbers in found]
    return [names[number] for number in kept], labels


def _named(caption: str, forms: Mapping[tuple[str, ...], set[int]]) -> set[int]:
    """The numbers of what a caption names, where several names begin at one word the longest of them."""
    words = _words(caption)
    lengths = sorted({len(form) for form in forms}, reverse=True)
    found: set[int] = set()
    place = 0
    while place < len(words):
        for length in lengths:
            numbers = forms.get(tuple(words[place : place + length]))
            if numbers:
                found |= numbers
                place += length
                break
        else:
            place += 1
    return found


def _forms(name: str) -> list[tuple[str, ...]]:
    """A name and its plurals, as words. A name that is no word has none."""
    *first, last = _words(name) or [""]
    return [(*first, form) for form in (last, *_plurals(last))] if last else []


def _plurals(word: str) -> Sequence[str]:
    """How a noun's plural may be written. One that nobody writes does no harm."""
    plurals = [f"{word}s", *([_IRREGULAR[word]] if word in _IRREGULAR else [])]
    if word.endswith(("s", "x", "z", "ch", "sh", "o")):
        plurals.append(f"{word}es")
    if re.search("[^aeiou]y$", word):
        plurals.append(f"{word[:-1]}ies")
    return plurals


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.casefold())
