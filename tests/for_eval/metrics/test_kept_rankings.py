"""Rankings on disk: what is read is what was written, and nothing damaged is read."""

import json
import pickle
import zipfile

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from for_eval.metrics.kept_rankings import DEPTH, rankings_of, read_rankings, write_rankings
from for_model.errors import DataError
from for_search.query.ranking import UNRANKED
from tests.helpers.slow_metrics import random_case, slow_ranking

GROUPS = ("base",) * 4 + ("novel",) * 3


def make_rankings(known=None, ids=None, k=5, n_images=90, seed=0):
    scores, relevance = random_case(seed, n_images=n_images, levels=5)
    return rankings_of(
        scores,
        relevance,
        known,
        dataset="tiny",
        split="val",
        protocol="all" if known is None else "federated",
        k=k,
        categories=[f"thing {c}" for c in range(7)],
        groups=GROUPS,
        image_ids=range(100, 100 + n_images) if ids is None else ids,
    )


def some_known(n_images=90):
    known = np.random.default_rng(1).random((7, n_images)) < 0.15
    known[3] = False
    return known


@pytest.mark.parametrize("with_known", [False, True])
@pytest.mark.parametrize("n_images", [0, 1, 90])
@pytest.mark.parametrize("words", [False, True])
def test_what_is_read_is_what_was_written(tmp_path, with_known, n_images, words):
    ids = sorted(f"übung/{i}.jpg" for i in range(n_images)) if words else range(10**20, 10**20 + n_images)
    written = make_rankings(some_known(n_images) if with_known else None, ids, n_images=n_images)
    write_rankings(tmp_path / "a.npz", written)
    read = read_rankings(tmp_path / "a.npz")
    for name in ("dataset", "split", "protocol", "k", "categories", "groups", "image_ids"):
        assert getattr(read, name) == getattr(written, name)
    for name in ("order", "relevance", "relevant", "n_known"):
        assert_array_equal(getattr(read, name), getattr(written, name))
        assert getattr(read, name).dtype == getattr(written, name).dtype
    assert (read.known is None) == (not with_known)


def test_order_is_the_slow_ranking_of_the_known_images():
    scores, _ = random_case(0, n_images=90, levels=5)
    known = some_known()
    order = make_rankings(known).order
    assert order.shape == (7, DEPTH * 5)
    for category, row in enumerate(order):
        expected = slow_ranking(scores[category], known[category])[: DEPTH * 5]
        assert list(row) == expected + [UNRANKED] * (DEPTH * 5 - len(expected))


def test_equal_rankings_are_equal_bytes(tmp_path):
    write_rankings(tmp_path / "a.npz", make_rankings(some_known()))
    write_rankings(tmp_path / "b.npz", make_rankings(some_known()))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def rewrite(path, **changes):
    """Write the file again with some of its arrays changed; those that are None are left out."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    changed = {name: change(arrays[name]) for name, change in changes.items()}
    np.savez_compressed(path, **{n: a for n, a in {**arrays, **changed}.items() if a is not None})


def say(**fields):
    def change(about):
        return np.frombuffer(json.dumps({**json.loads(about.tobytes()), **fields}).encode(), dtype=np.uint8)

    return change


def put(row, column, value):
    def change(order):
        order = order.copy()
        order[row, column] = value
        return order

    return change


DAMAGES = {
    "format": ({"about": say(format="for-rankings/9")}, "for-rankings/9"),
    "no JSON": ({"about": lambda a: a[:-5]}, "JSONDecodeError"),
    "no fields": ({"about": lambda a: np.frombuffer(b"{}", np.uint8)}, "format"),
    "a list": ({"about": lambda a: np.frombuffer(b"[]", np.uint8)}, "TypeError"),
    "groups": ({"about": say(groups=["base"] * 6)}, "groups don't fit"),
    "unknown group": ({"about": say(groups=["rare"] * 7)}, "groups don't fit"),
    "ids twice": ({"about": say(image_ids=[100] * 90)}, "ids don't ascend"),
    "ids of two types": ({"about": say(image_ids=["a", *range(89)])}, "ids don't ascend"),
    "k": ({"about": say(k=0)}, "k is 0"),
    "another k": ({"about": say(k=6)}, "order of shape"),
    "missing order": ({"order": lambda a: None}, "order"),
    "missing relevance": ({"relevance": lambda a: None}, "relevance"),
    "short relevance": ({"relevance": lambda a: a[:, 1:]}, "bits of shape"),
    "short known": ({"known": lambda a: a[1:]}, "bits of shape"),
    "known of another type": ({"known": lambda a: a.astype(bool)}, "bits of shape"),
    "wide order": ({"order": lambda a: a.astype(np.int64)}, "order of shape"),
    "outside": ({"order": put(0, 0, 90)}, "outside the images"),
    "below": ({"order": put(0, 0, -2)}, "outside the images"),
    "a gap": ({"order": put(0, 0, -1)}, "another number of images"),
    "twice": ({"order": lambda a: put(0, 1, a[0, 0])(a)}, "twice"),
    "unknown image": ({"known": lambda a: np.roll(a, 1, axis=1)}, "order ranks"),
    "known dropped": ({"known": lambda a: None}, "another number of images"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_refused(tmp_path, name):
    changes, said = DAMAGES[name]
    path = tmp_path / "a.npz"
    write_rankings(path, make_rankings(some_known()))
    read_rankings(path)
    rewrite(path, **changes)
    with pytest.raises(DataError, match=said) as caught:
        read_rankings(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_file_half_a_file_and_other_files_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    with pytest.raises(DataError, match="doesn't exist"):
        read_rankings(path)
    write_rankings(path, make_rankings())
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for content in (b"", whole[: len(whole) // 2], bytes(flipped), b"not an archive", pickle.dumps([1])):
        path.write_bytes(content)
        with pytest.raises(DataError, match="run the leaderboard"):
            read_rankings(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("about.npy", b"nothing of numpy's")
    with pytest.raises(DataError, match="run the leaderboard"):
        read_rankings(path)


def test_a_pickle_is_never_loaded(tmp_path):
    path = tmp_path / "a.npz"
    write_rankings(path, make_rankings())
    rewrite(path, order=lambda a: np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="allow_pickle=False"):
        read_rankings(path)
