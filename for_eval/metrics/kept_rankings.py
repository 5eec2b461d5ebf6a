"""The rankings behind a result, kept beside it: what comparing two results image by image needs.

    NAME.npz   order      [C, d] int32, the best images of each category
               relevance  [C, ceil(M / 8)] uint8, one bit an image
               known      the images judged for each category, in the same form; left out where all are for all
               about      dataset, split, protocol, k, categories, groups and image ids: JSON in UTF-8 as uint8

C are the scored categories, M the ranked images, in ascending order of their id. No array holds objects, so that
reading one never runs anything. Equal rankings give equal bytes.
"""

import io
import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from for_model.data.dataset import Group, ImageId
from for_model.errors import DataError
from for_model.files import write_bytes
from for_search.query.ranking import UNRANKED, BoolArray, Scores, top_k

FORMAT = "for-rankings/1"
DEPTH = 4  # times k: deep enough to fill k ranks in any resample of the images (see `bootstrap.Resampler`)


@dataclass(frozen=True, eq=False)
class Rankings:
    """The best images of every scored category, and which images are relevant to it.

    dataset, split, protocol: as in the result.
    k: the depth of its AP@k.
    categories, groups: C names, and the group of each.
    image_ids: M ids, ascending.
    relevance: [C, M] bool.
    known: [C, M] bool, the images judged for each category; None where every image is judged for every category.
    order: [C, d] int32, positions in image_ids, best first, ties by id; UNRANKED (-1) at the end where a category has
        fewer images than d.
    """

    dataset: str
    split: str
    protocol: str
    k: int
    categories: tuple[str, ...]
    groups: tuple[Group, ...]
    image_ids: tuple[ImageId, ...]
    relevance: BoolArray
    known: BoolArray | None
    order: NDArray[np.int32]

    @property
    def relevant(self) -> BoolArray:
        """[C, M] bool, the relevant images among those judged."""
        return self.relevance if self.known is None else self.relevance & self.known

    @property
    def n_known(self) -> NDArray[np.int64]:
        """[C]: how many images each category ranks."""
        if self.known is None:
            return np.full(len(self.categories), len(self.image_ids))
        return self.known.sum(axis=1, dtype=np.int64)


def rankings_of(
    scores: Scores,
    relevance: BoolArray,
    known: BoolArray | None = None,
    *,
    dataset: str,
    split: str,
    protocol: str,
    k: int,
    categories: Sequence[str],
    groups: Sequence[Group],
    image_ids: Sequence[ImageId],
) -> Rankings:
    """Rank the images of every category, DEPTH * k deep.

    scores: [C, M] floating point, higher is better.
    relevance: [C, M] bool.
    known: [C, M] bool, the images judged for each category; None for all.
    dataset, split, protocol: as in the result.
    k: the depth of its AP@k.
    categories, groups: C names, and the group of each.
    image_ids: M ids, ascending.

    Raises UsageError as `top_k` does.
    """
    order = top_k(scores, DEPTH * k, known).astype(np.int32)
    names, ids = tuple(categories), tuple(image_ids)
    return Rankings(dataset, split, protocol, k, names, tuple(groups), ids, relevance, known, order)


def write_rankings(path: Path, rankings: Rankings) -> None:
    """Write rankings to `path` atomically."""
    about = {
        "format": FORMAT,
        "dataset": rankings.dataset,
        "split": rankings.split,
        "protocol": rankings.protocol,
        "k": rankings.k,
        "categories": rankings.categories,
        "groups": rankings.groups,
        "image_ids": rankings.image_ids,
    }
    arrays: dict[str, NDArray[Any]] = {
        "about": np.frombuffer(json.dumps(about).encode(), dtype=np.uint8),
        "order": rankings.order,
        "relevance": np.packbits(rankings.relevance, axis=1),
    }
    if rankings.known is not None:
        arrays["known"] = np.packbits(rankings.known, axis=1)
    data = io.BytesIO()
    np.savez_compressed(data, **arrays)
    write_bytes(path, data.getvalue())


def read_rankings(path: Path) -> Rankings:
    """Read what `write_rankings` wrote.

    Raises DataError when there is no such file, or it is damaged or of another format.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return _from_arrays(arrays)
    except FileNotFoundError:
        raise DataError(f"{path} doesn't exist: run the leaderboard or the tables of its result again") from None
    except _DAMAGES as error:
        raise DataError(
            f"{path} holds no rankings ({_short(error)}): run the leaderboard or the tables of its result again"
        ) from error


_DAMAGES = (OSError, EOFError, KeyError, TypeError, ValueError, AttributeError, zipfile.BadZipFile, zlib.error)


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no details'}"


def _from_arrays(arrays: dict[str, NDArray[Any]]) -> Rankings:
    """Raises one of _DAMAGES for anything that `Rankings` doesn't promise."""
    about = json.loads(arrays["about"].tobytes())
    _check(about["format"] == FORMAT, f"format {about['format']!r}, expected {FORMAT}")
    categories, groups, ids = (tuple(about[name]) for name in ("categories", "groups", "image_ids"))
    _check(len(groups) == len(categories) and set(groups) <= set(get_args(Group)), "groups don't fit the categories")
    _check(len({type(i) for i in ids}) <= 1 and ids == tuple(sorted(set(ids))), "image ids don't ascend")
    _check(isinstance(about["k"], int) and about["k"] >= 1, f"k is {about['k']!r}")
    shape = (len(categories), len(ids))
    rankings = Rankings(
        dataset=about["dataset"],
        split=about["split"],
        protocol=about["protocol"],
        k=about["k"],
        categories=categories,
        groups=groups,
        image_ids=ids,
        relevance=_unpack(arrays["relevance"], shape),
        known=_unpack(arrays["known"], shape) if "known" in arrays else None,
        order=arrays["order"],
    )
    _check_order(rankings)
    return rankings


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


def _unpack(packed: NDArray[Any], shape: tuple[int, int]) -> BoolArray:
    expected = (shape[0], -(-shape[1] // 8))
    _check(packed.dtype == np.uint8 and packed.shape == expected, f"bits of shape {packed.shape}, not {expected}")
    return np.unpackbits(packed, axis=1, count=shape[1]).astype(bool)


def _check_order(rankings: Rankings) -> None:
    """Every category ranks as many of its known images as there is room for, each once."""
    order, n_images = rankings.order, len(rankings.image_ids)
    depth = min(DEPTH * rankings.k, n_images)
    expected = (len(rankings.categories), depth)
    _check(order.dtype == np.int32 and order.shape == expected, f"order of shape {order.shape}, not {expected}")
    ranked = order != UNRANKED
    _check(bool(((order >= UNRANKED) & (order < n_images)).all()), "order points outside the images")
    wanted = np.arange(depth) < rankings.n_known[:, None]  # [C, d]
    _check(np.array_equal(ranked, wanted), "order ranks another number of images than are known")
    seen = np.sort(order, axis=1)
    _check(not ((seen[:, 1:] == seen[:, :-1]) & (seen[:, 1:] != UNRANKED)).any(), "order ranks an image twice")
    if rankings.known is not None and n_images:
        known = np.take_along_axis(rankings.known, np.maximum(order, 0), axis=1)
        _check(bool((known | ~ranked).all()), "order ranks an image that isn't known")
