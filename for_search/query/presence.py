"""Is it there at all? How probable it is that an image holds what a text names, from the score that it was found by.

A cosine alone doesn't tell: 0.3 is much for one word and little for another. Three things do, each without a unit, so
that they mean about the same for every backbone: how far the image stands out from the others of its index for this
text (z), how high the text scores there in general (level), and how much its scores vary from image to image (spread),
the last two compared with the scores of random names in the same images. A word that means nothing scores about alike
everywhere. A logistic of the three says how probable the thing is in an image, if it is anywhere.

Among many images some stand out for any word. So that is multiplied by how probable it is that the thing is anywhere at
all: a logistic of the text's share in a softmax against the random names (eq. 4) in the images that it found first.
Both logistics are fitted by `python -m for_eval calibration`.

For one text the probability grows with the score, so it never changes the order of the images.
Shapes: S images of the sample, M images, N embeddings an image, Q texts, V random names, Co joint width.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from for_model.errors import DataError
from for_model.files import cache_dir, write_bytes
from for_model.methods.protocol import LazyMethod, MethodInfo
from for_search.index.index import SearchIndex

NUMBERS_FILE = Path(__file__).with_name("calibrations.json")
_RANDOM_NAMES = Path(__file__).with_name("random_names.txt")
FORMAT = "for-calibrations/2"
MIN_IMAGES = 30  # of fewer, the mean and spread of a text's scores say too little
N_FEATURES = 3  # z, level, spread
SHARE_SCALE = 20.0  # of the cosines in the softmax of `best_share`
BEST_IMAGES = 3  # of a text, the first ones, that tell whether what it names is anywhere

_MAX_SAMPLE = 1000  # images
_MAX_NUMBERS = 1 << 23  # of a sample, 32 MB
_BLOCK_NUMBERS = 1 << 22  # scores held at once
_LEAST_DEVIATION, _LEAST_SPREAD = 1e-6, 1e-3  # all images may score the same
_MAX_LOGIT = 30.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PresenceNumbers:
    """The numbers fitted for a method on a backbone.

    bias, weights: of the logistic; the weights are those of z, level and spread, see `features`.
    there: bias and weight of the logistic of `best_share`.
    cutoff: in 0..1, the least probability of a good match.
    fitted: whether they were fitted for this very method and backbone, or are the mean of others.
    """

    bias: float
    weights: tuple[float, float, float]
    there: tuple[float, float]
    cutoff: float
    fitted: bool = True

    def probability(self, features: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """[..., 3] features -> [...] float64 in 0..1: that an image holds what is somewhere."""
        return logistic(np.asarray(features, dtype=np.float64) @ np.array(self.weights) + self.bias)

    def probability_there(self, shares: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """What `best_share` gives, of any shape -> float64 in 0..1: that what the text names is anywhere."""
        bias, weight = self.there
        return logistic(bias + weight * np.asarray(shares, dtype=np.float64))


@dataclass(frozen=True)
class TextScale:
    """What the scores of one text mean in one index.

    mean, deviation: of its scores over the index's sample.
    level, spread: see `text_statistics`.
    there: how probable it is that what the text names is anywhere; 1 where that isn't asked.
    """

    mean: float
    deviation: float
    level: float
    spread: float
    numbers: PresenceNumbers
    there: float = 1.0

    def probability(self, scores: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Scores of images for the text, of any shape -> how probable it is that each holds what the text names."""
        z = (np.asarray(scores, dtype=np.float64) - self.mean) / self.deviation
        level, spread = np.full_like(z, self.level), np.full_like(z, self.spread)
        return self.there * self.numbers.probability(np.stack([z, level, spread], axis=-1))


class IndexScale:
    """What scores mean in one index: a sample of its images, and how random names score over it. Threads may share one.

    sample: [S, N, Co] float32.
    random: [V, Co] float32, unit-norm, the random names' embeddings.
    names: of the random names over the sample.
    numbers: of the index's method.
    """

    def __init__(
        self,
        sample: NDArray[np.float32],
        random: NDArray[np.float32],
        names: "NameScores",
        numbers: PresenceNumbers,
    ) -> None:
        self._sample, self._random, self._names = sample, random, names
        self.numbers = numbers

    def of_texts(self, embeddings: NDArray[np.float32]) -> list[TextScale]:
        """[Q, Co] float32, unit-norm, of Q texts -> the scale of each."""
        scales = []
        for scores in _sample_scores(embeddings, self._sample):
            mean, deviation, level, spread = text_statistics(scores, self._names)
            scales.append(TextScale(mean, deviation, level, spread, self.numbers))
        return scales

    def of_search(self, text: NDArray[np.float32], found: NDArray[np.float32]) -> TextScale:
        """The scale of a text that has been searched for.

        text: [1, Co] float32, unit-norm.
        found: [n, N, Co] float32, the embeddings of the BEST_IMAGES that it found first, or of fewer.
        """
        (scale,) = self.of_texts(text)
        own, random = (_sample_scores(texts, found) for texts in (text, self._random))
        return replace(scale, there=float(self.numbers.probability_there(best_share(own, random))[0]))


@dataclass(frozen=True, eq=False)
class NameScores:
    """What the scores of random names are like in each image of a sample. mean, deviation: [S] float64."""

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]

    @classmethod
    def of(cls, scores: NDArray[np.floating[Any]]) -> "NameScores":
        """[V, S] scores of the names in the images."""
        deviation = scores.std(axis=0, dtype=np.float64)
        return cls(scores.mean(axis=0, dtype=np.float64), np.maximum(deviation, _LEAST_DEVIATION))


def text_statistics(scores: NDArray[np.floating[Any]], names: NameScores) -> tuple[float, float, float, float]:
    """What a text's scores over a sample of images are like.

    scores: [S].
    names: the scores of random names in the same images.

    Returns their mean and deviation; and, of the scores in deviations above the mean of the names in the same image,
    the mean (the level) and the logarithm of the deviation (the spread).
    """
    exact = np.asarray(scores, dtype=np.float64)
    above = (exact - names.mean) / names.deviation
    spread = np.log(max(float(above.std()), _LEAST_SPREAD))
    return float(exact.mean()), max(float(exact.std()), _LEAST_DEVIATION), float(above.mean()), float(spread)


def best_share(scores: NDArray[np.floating[Any]], random: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """How large a text's share is in a softmax against the random names (eq. 4), in the best of some images.

    scores: [Q, n], n at least 1, of the images that each text found first.
    random: [V, n], or [V, Q, n] where each text found others: the random names' scores in the same images.

    Returns [Q]: log p / (1 - p) of the largest share p.
    """
    others = np.logaddexp.reduce(SHARE_SCALE * np.asarray(random, dtype=np.float64), axis=0)  # [n] or [Q, n]
    best: NDArray[np.float64] = (SHARE_SCALE * np.asarray(scores, dtype=np.float64) - others).max(axis=-1)
    return best


def logistic(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of any shape -> probabilities, none of them 0 or 1."""
    return np.asarray(1 / (1 + np.exp(-np.clip(logits, -_MAX_LOGIT, _MAX_LOGIT))))


def features(scores: NDArray[np.floating[Any]], sample: NDArray[np.int64], names: NameScores) -> NDArray[np.float64]:
    """The three features of every image and text.

    scores: [Q, M].
    sample: the S columns that are the index's sample.
    names: the scores of random names in these.

    Returns [Q, M, 3]: z, level and spread.
    """
    found = np.empty((*scores.shape, N_FEATURES))
    for row, out in zip(scores, found, strict=True):
        mean, deviation, level, spread = text_statistics(row[sample], names)
        out[:, 0] = (row - mean) / deviation
        out[:, 1:] = level, spread
    return found


def sample_positions(n_images: int, n_embeddings: int, dim: int) -> NDArray[np.int64]:
    """The images of an index's sample, S ascending positions spread evenly over all: neighbours are often alike."""
    size = min(n_images, _MAX_SAMPLE, max(MIN_IMAGES, _MAX_NUMBERS // (n_embeddings * dim)))
    return np.linspace(0, n_images - 1, size).astype(np.int64)


@cache
def random_names() -> tuple[str, ...]:
    """The V names whose scores a text's are compared with: every hundredth of ImageNet-21K's, the first included."""
    return tuple(_RANDOM_NAMES.read_text(encoding="utf-8").splitlines())


def numbers_of(info: MethodInfo) -> PresenceNumbers:
    """The numbers of a method on a backbone.

    Where none were fitted they are the mean of those of the other methods on its backbone; of an unknown backbone the
    mean of all, with which probabilities are less right, see docs/search.md. Raises DataError when the file of the
    numbers is damaged.
    """
    known = read_numbers()
    if f"{info.backbone}/{info.method}" in known:
        return known[f"{info.backbone}/{info.method}"]
    kin = [each for name, each in known.items() if name.split("/")[0] == info.backbone]
    return mean_numbers(kin or list(known.values()))


def mean_numbers(known: Sequence[PresenceNumbers]) -> PresenceNumbers:
    """The mean of the numbers of several methods, at least one, for a method that none were fitted for."""
    z, level, spread = (float(each) for each in np.mean([each.weights for each in known], axis=0))
    there_bias, there_weight = (float(each) for each in np.mean([each.there for each in known], axis=0))
    bias, cutoff = (float(np.mean([getattr(each, field) for each in known])) for field in ("bias", "cutoff"))
    return PresenceNumbers(bias, (z, level, spread), (there_bias, there_weight), cutoff, fitted=False)


@cache
def read_numbers(path: Path = NUMBERS_FILE) -> dict[str, PresenceNumbers]:
    """The fitted numbers by `BACKBONE/METHOD`, at least one's. Raises DataError for a bad file."""
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}, expected {FORMAT!r}")
        known = {name: _parsed(each) for name, each in content["methods"].items()}
        if not known:
            raise ValueError("it holds no method")
        return known
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} can't be read ({error}): install FOR again, or run `python -m for_eval calibration --package`"
        ) from error


def _parsed(numbers: dict[str, Any]) -> PresenceNumbers:
    z, level, spread = (float(each) for each in numbers["weights"])
    there_bias, there_weight = (float(each) for each in numbers["there"])
    return PresenceNumbers(
        float(numbers["bias"]), (z, level, spread), (there_bias, there_weight), float(numbers["cutoff"])
    )


def index_scale(index: SearchIndex, encoder: LazyMethod) -> IndexScale | None:
    """What scores mean in an index; None for one of fewer than MIN_IMAGES images.

    The first call for an index encodes the random names, for which the method is loaded unless its weights come with
    FOR; it takes a large model on a processor some seconds. What comes of it is kept in FOR's cache: later calls read
    that and the sample.

    index: what is searched.
    encoder: its method, which encodes texts.

    Raises what loading the method raises.
    """
    if len(index.images) < MIN_IMAGES:
        return None
    info = index.info
    positions = sample_positions(len(index.images), info.n_embeddings, info.dim)
    sample = index.take(positions)  # [S, N, Co]
    path = _kept(info, sample)
    kept = _read_kept(path, len(sample), info.dim)
    if kept is None:
        random = _random_texts(encoder)
        kept = random, NameScores.of(_sample_scores(random, sample))
        tensors = {"random": random, "mean": kept[1].mean, "deviation": kept[1].deviation}
        try:
            write_bytes(path, save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}))
        except OSError as error:
            _log.warning("the next start takes longer: %s can't be written (%s)", path, error)
    return IndexScale(sample, *kept, numbers_of(info))


def _random_texts(encoder: LazyMethod) -> NDArray[np.float32]:
    """[V, Co], the embeddings of the random names."""
    if not encoder.loaded and encoder.numpy_text is not None:
        return encoder.numpy_text.embed_names(random_names())
    from for_model.text import cached_category_embeddings

    return np.asarray(cached_category_embeddings(encoder.get(), random_names()).numpy(force=True))


def _kept(info: MethodInfo, sample: NDArray[np.float32]) -> Path:
    """The file of an index's numbers, which depend on its sample, the text encoder and the random names."""
    what = json.dumps([list(info.text_space), list(sample.shape), random_names()]).encode()
    return cache_dir() / "calibration" / f"{hashlib.sha256(what + sample.tobytes()).hexdigest()}.safetensors"


def _read_kept(path: Path, n_images: int, dim: int) -> tuple[NDArray[np.float32], NameScores] | None:
    """The random names' embeddings, and their scores over a sample; None where that isn't there or is damaged."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="np") as file:
            random, mean, deviation = (file.get_tensor(name) for name in ("random", "mean", "deviation"))
        if random.shape != (len(random_names()), dim) or not mean.shape == deviation.shape == (n_images,):
            raise ValueError(f"it holds {random.shape}, {mean.shape} and {deviation.shape}")
        if not (np.isfinite(random).all() and np.isfinite(mean).all() and (deviation > 0).all()):
            raise ValueError("it holds numbers that are none")
    except (SafetensorError, OSError, ValueError) as error:
        _log.warning("%s can't be read (%s), making it again", path, error)
        return None
    return random, NameScores(mean, deviation)


def _sample_scores(texts: NDArray[np.float32], sample: NDArray[np.float32]) -> NDArray[np.float32]:
    """[Q, Co] and [S, N, Co] -> [Q, S], an image's score the best of its N embeddings."""
    n_images, n_embeddings, dim = sample.shape
    rows = sample.reshape(-1, dim)
    step = max(1, _BLOCK_NUMBERS // len(rows))
    parts = [
        (texts[start : start + step] @ rows.T).reshape(-1, n_images, n_embeddings).max(axis=2)
        for start in range(0, len(texts), step)
    ]
    return np.concatenate(parts) if parts else np.empty((0, n_images), dtype=np.float32)
