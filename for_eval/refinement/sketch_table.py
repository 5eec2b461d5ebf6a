"""What 32 bytes an embedding keep: mAP@50 by full embeddings, by sketches and by product quantisation of that size.

The trained sketches learn from another split, by its captions or labels; principal axes and product quantisation are
found with the embeddings that they then describe, without any text. `OUT/results/sketches/*.json` are the source of
truth, `OUT/sketches.csv` is made from them.

Legend: C categories, M images, N embeddings an image, Co joint width.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from for_eval.leaderboard.columns import Column
from for_eval.leaderboard.studies import Study
from for_eval.metrics.retrieval import GROUPS, retrieval_scores
from for_eval.refinement.refine_table import Searches, searches, title_of
from for_model.data.dataset import Dataset
from for_model.errors import UsageError
from for_model.methods.protocol import Method
from for_search.index.sketches.sketch_encoder import NUMBERS, SketchEncoder, principal_encoder
from for_search.index.sketches.training import SketchTraining
from for_search.library.sketch_texts import known_texts, train_on_index

_IMAGES_AT_ONCE = 256


def study_sketches(
    method: Method, to_fit: Dataset, to_measure: Dataset, source: str, stores: Path | None = None
) -> dict[str, Any]:
    """A result: for each representation its bytes an embedding and mAP@50.

    to_fit: the split that the encoder is trained on.
    to_measure: another one.
    source: of the texts to train with, see `known_texts`.
    stores: see `store_path`.
    Raises UsageError for one and the same split, and as `searches` and `known_texts` do.
    """
    if to_fit.split == to_measure.split:
        raise UsageError(f"the encoder would be trained and measured on {to_fit.split}: give another --fit-split")
    settings = SketchTraining()
    known = known_texts(source, to_fit)
    with searches(to_fit, method, stores) as learnt_from:
        start = time.process_time()
        trained = train_on_index(learnt_from.index, method, known, source, settings)
        seconds = time.process_time() - start
    with searches(to_measure, method, stores) as found:
        n_images, dim = len(found.index.images), found.index.info.dim
        n_bytes = min(NUMBERS, dim)  # of a sketch that isn't trained
        Y = found.index.take(range(n_images)).reshape(-1, dim)  # [M * N, Co]
        rows = [
            {"representation": name, "bytes": size, "scores": _scores(found, scores)}
            for name, size, scores in (
                ("float16", 2 * dim, _best(found.texts, Y, n_images)),
                ("32 x 8 bits, trained", trained.n_numbers, _by_sketches(trained, found, Y)),
                (
                    "32 x 8 bits, principal axes",
                    n_bytes,
                    _by_sketches(principal_encoder(Y, method.info.text_space), found, Y),
                ),
                ("product quantisation", n_bytes, _best(found.texts, _quantised(Y, n_bytes), n_images)),
            )
        ]
        return {
            "format": SKETCHES.format,
            "dataset": to_measure.name,
            "split": to_measure.split,
            "fit_split": to_fit.split,
            "n_images": n_images,
            "n_fitted": len(to_fit.images),
            "texts": source,
            "training": asdict(settings),
            "training_cpu_seconds": round(seconds, 1),
            "encoder_sha256": trained.sha256,
            "method": method.info.to_json(),
            "rows": rows,
        }


def _scores(found: Searches, scores: NDArray[np.float32]) -> dict[str, float | None]:
    """mAP@50 of the groups of names."""
    result = retrieval_scores(scores, found.relevance)
    groups = np.array([category.group for category in found.categories])
    return {group: result.mean(None if group == "all" else groups == group).ap for group in GROUPS}


def _best(texts: NDArray[np.float32], rows: NDArray[np.float32], n_images: int) -> NDArray[np.float32]:
    """The inner product of each text with each image's best row, [C, M]."""
    images = rows.reshape(n_images, -1, rows.shape[1])
    parts = range(0, n_images, _IMAGES_AT_ONCE)
    return np.concatenate([(images[i : i + _IMAGES_AT_ONCE] @ texts.T).max(axis=1).T for i in parts], axis=1)


def _by_sketches(encoder: SketchEncoder, found: Searches, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    sketches = encoder.sketches(rows)
    scores = [encoder.scores(sketches, text) for text in found.texts]
    return np.stack(scores).reshape(len(found.texts), len(found.index.images), -1).max(axis=2)


def _quantised(rows: NDArray[np.float32], n_bytes: int) -> NDArray[np.float32]:
    """What a product quantiser of so many bytes makes of rows [R, Co]."""
    dim = rows.shape[1]
    padded = np.pad(rows, ((0, 0), (0, -dim % n_bytes)))  # its parts are equally wide
    quantiser = faiss.IndexPQ(padded.shape[1], n_bytes, 8)
    quantiser.pq.cp.min_points_per_centroid = 1
    quantiser.train(padded)
    return np.ascontiguousarray(quantiser.sa_decode(quantiser.sa_encode(padded))[:, :dim])


_COLUMNS = (
    Column("dataset", ("dataset",)),
    Column("split", ("split",)),
    Column("method", ("title",)),
    Column("embeddings an image", ("method", "n_embeddings")),
    Column("texts trained with", ("texts",)),
    Column("representation", ("row", "representation")),
    Column("bytes an embedding", ("row", "bytes")),
    *(Column(f"{group} mAP@50", ("row", "scores", group), 2, True) for group in GROUPS),
)


def _lines(result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for row in result["rows"]:
        yield {**result, "title": title_of(result), "row": row}


SKETCHES = Study("sketches", "for-sketch-rows/1", "sketches", _COLUMNS, _lines)
