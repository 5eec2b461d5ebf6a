"""Labels out of captions: which names are found in which words, and what a captions file must hold."""

import json
from pathlib import Path
from typing import Any

import pytest

from for_model.data.captions import captions_path, labels_from_captions, nouns_of_captions, read_captions
from for_model.data.dataset import Category, Dataset, ImageRecord
from for_model.data.registry import load_dataset
from for_model.errors import DataError
from tests.helpers.paths import SHARED

REAL = SHARED / "flickr8k"


def named(name: str, *captions: str) -> bool:
    """Whether an image with these captions has the label."""
    dataset = Dataset("mine", "val", Path("val"), (ImageRecord(1, "1.jpg"),), (Category(name, "base"),))
    return labels_from_captions(dataset, {1: captions}).labels == {1: frozenset({0})}


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("dog", "A dog runs ."),
        ("dog", "Two DOGS, running"),
        ("Dog", "the dog's ball"),
        ("bus", "two buses"),
        ("box", "boxes of fruit"),
        ("bench", "benches"),
        ("brush", "brushes"),
        ("photo", "old photos"),
        ("potato", "potatoes"),
        ("baby", "babies crying"),
        ("toy", "toys"),
        ("man", "three men"),
        ("woman", "women"),
        ("child", "the children"),
        ("person", "people ride"),
        ("knife", "knives"),
        ("leaf", "leaves fall"),
        ("scarf", "scarves"),
        ("sheep", "many sheep"),
        ("pants", "in red pants"),
        ("hot dog", "he eats hot-dogs"),
        ("t-shirt", "a blue T-shirt"),
    ],
)
def test_a_name_or_its_plural_is_a_label(name: str, caption: str) -> None:
    assert named(name, "nothing of the kind", caption)


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("car", "a cart and a scarf"),
        ("man", "a woman"),
        ("hot dog", "a dog in the hot sun"),
        ("ski", "a skier"),
        ("toy", "toies"),
        ("dog", ""),
        ("!", "what !"),
    ],
)
def test_other_words_are_not(name: str, caption: str) -> None:
    assert not named(name, caption)


def test_nouns_are_what_captions_name_besides_the_categories() -> None:
    names = ("snow", "dog house", "greyhound", "ski", "hot dog stand", "Snow", "sand", "ball", "cart wheel")
    dataset = Dataset(
        "mine",
        "val",
        Path("val"),
        tuple(ImageRecord(key, f"{key}.jpg") for key in (1, 2, 3)),
        (
            Category("dog", "base"),
            Category("skis", "novel"),
            Category("cart", "other"),
            Category("tennis ball", "base"),
        ),
    )
    captions = {
        1: ["A greyhound in the snow", "a ski and a dog house on sand"],
        3: ["hot dog stand by a cart wheel", "Snow, two tennis balls, greyhounds"],
    }
    assert nouns_of_captions(dataset, captions, names, 1) == (["snow", "greyhound", "sand"], [[0, 1, 2], [], [0, 1]])
    assert nouns_of_captions(dataset, captions, names, 2) == (["snow", "greyhound"], [[0, 1], [], [0, 1]])
    assert nouns_of_captions(dataset, {}, names, 1) == ([], [[], [], []])


def test_the_labels_are_those_of_all_captions_and_take_the_place_of_the_datasets_own() -> None:
    names = ("dog", "hot dog", "man", "ball", "dog house")
    dataset = Dataset(
        "mine",
        "val",
        Path("val"),
        tuple(ImageRecord(key, f"{key}.jpg") for key in (1, 2, 3)),
        tuple(Category(name, "base") for name in names),
        {1: frozenset({3}), 3: frozenset({3})},
        {1: frozenset({0})},
    )
    found = labels_from_captions(
        dataset, {1: ["A man .", "A dog and a man"], 2: ["one hot dog, please", "by two dog houses"], 9: ["a ball"]}
    )
    assert found.labels == {1: frozenset({0, 2}), 2: frozenset({1, 4})}  # neither is a dog
    assert found.negatives is None
    assert (found.images, found.categories) == (dataset.images, dataset.categories)


def content() -> dict[str, Any]:
    return {
        "images": [{"id": 7, "file_name": "7.jpg"}, {"id": 3, "file_name": "3.jpg"}],
        "annotations": [
            {"id": 1, "image_id": 7, "caption": "A dog ."},
            {"id": 2, "image_id": 7, "caption": "A black dog ."},
        ],
    }


def test_a_file_in_cocos_format(tmp_path: Path) -> None:
    path = tmp_path / "captions_val.json"
    path.write_text(json.dumps(content()))
    assert read_captions(path) == {7: ["A dog .", "A black dog ."]}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"annotations": None}, "no list 'annotations'"),
        ({"images": [{"id": 7, "file_name": "../7.jpg"}]}, "not a path within"),
        ({"annotations": [{"id": 1, "image_id": 8, "caption": "A dog"}]}, "image_id 8, which isn't listed"),
        ({"annotations": [{"id": 1, "image_id": 7}]}, "caption None, not a text"),
        ({"annotations": [{"image_id": 7, "caption": "A dog"}]}, "no id"),
    ],
)
def test_another_format_is_one_clear_line(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    path = tmp_path / "captions_val.json"
    path.write_text(json.dumps({**content(), **change}))
    with pytest.raises(DataError, match=says) as error:
        read_captions(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_without_a_file_the_error_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"captions_val\.json doesn't exist: expected .*data\.labels=annotations"):
        read_captions(captions_path(Dataset("mine", "val", tmp_path / "val", ())))


@pytest.mark.data
@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/data/flickr8k")
def test_on_real_captions_nine_labels_of_ten_are_right_and_found() -> None:
    """Of base and novel names alike; wrong are verbs (to swing, to slide) and what is said of a camera."""
    dataset = load_dataset("flickr8k", REAL, "val")
    found = labels_from_captions(dataset, read_captions(captions_path(dataset)))
    for group in ("base", "novel"):
        wanted = {place for place, category in enumerate(dataset.categories) if category.group == group}
        pairs = [
            {(image, place) for image, places in each.labels.items() for place in places & wanted}
            for each in (dataset, found)
        ]
        right = len(pairs[0] & pairs[1])
        assert 0.9 < right / len(pairs[1]) < 1
        assert 0.9 < right / len(pairs[0]) < 1
