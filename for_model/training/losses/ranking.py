"""Losses made for retrieval: they rank the images of a batch for a name, as mAP does. Ours, not the paper's.

The set prediction loss (`set_prediction.py`) ranks the names of a vocabulary within an image instead.
Shapes: B images, N embeddings an image, C labelled names, V names of the teacher's vocabulary, M images of a dataset,
Co joint width.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from for_model.errors import UsageError


def best_cosines(Y: Tensor, texts: Tensor) -> Tensor:
    """What an image scores for a text: max_i cos(t, y_i).

    Y: [B, N, Co] float32, unit-norm.
    texts: [C, Co] float32, unit-norm.
    Returns [B, C] float32.
    """
    return (Y @ texts.T).amax(dim=1)


def ranking_loss(
    scores: Tensor,
    positive: Tensor,
    scale: float,
    negative: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Each image that shows a name against the batch's images that don't, the mean over all such pairs (b, c) of

        -log( exp(scale s_bc) / (exp(scale s_bc) + sum over images j without c of exp(scale s_jc)) )

    scores: [B, C] float32, cosines as `best_cosines` gives them.
    positive: [B, C] bool, which names are in which images.
    scale: 1 / temperature.
    negative: [B, C] bool, the images known to be without a name; None for all that aren't positive.
    weights: [C] float32, what a pair of each name counts; None for 1.
    Returns a scalar; 0 without a positive pair. A name without a negative in the batch adds 0.
    Raises UsageError for shapes that differ.
    """
    negative = ~positive if negative is None else negative
    if scores.ndim != 2 or positive.shape != scores.shape or negative.shape != scores.shape:
        raise UsageError(
            f"got scores {list(scores.shape)}, positive {list(positive.shape)}, negative {list(negative.shape)}; "
            "expected [B, C] of all"
        )
    logits = scale * scores
    others = logits.masked_fill(~negative, -torch.inf).logsumexp(dim=0)  # [C]
    image, name = positive.nonzero(as_tuple=True)
    each = F.softplus(others[name] - logits[image, name])
    return (each if weights is None else weights[name] * each).sum() / max(1, len(image))


def teacher_logits(parts: Sequence[Tensor], sharpness: float) -> Tensor:
    """What a soft teacher says of every image for every name: sharpness * z(sum over heads of z(best cosines)).

    z makes a name's scores over the dataset's M images have mean 0 and standard deviation 1, so that a name's own level
    and spread don't matter.

    parts: [M, V] float32 each, the best cosines of one untrained head (CLIP's, Dense-CLIP's) on one view of the images.
    sharpness: the spread of the result; the larger, the nearer to one hard label.
    Returns [M, V] float32.
    """
    return sharpness * _standardised(torch.stack([_standardised(part.float()) for part in parts]).sum(0))


def _standardised(scores: Tensor) -> Tensor:
    return (scores - scores.mean(dim=0)) / scores.std(dim=0, correction=0).clamp(min=1e-6)


def teacher_loss(scores: Tensor, teacher: Tensor, scale: float) -> Tensor:
    """KL(teacher || student), each name a distribution over the batch's images, the mean over the names.

    scores: [B, V] float32, cosines of the trained head; the student is their softmax over the images, times `scale`.
    teacher: [B, V] float32, the batch's rows of `teacher_logits`; the teacher is its softmax over the images.
    scale: 1 / temperature of the student.
    Returns a scalar; 0 for fewer than two images, which nothing is to be told apart of, or no names.
    Raises UsageError for shapes that differ.
    """
    if scores.ndim != 2 or teacher.shape != scores.shape:
        raise UsageError(
            f"got scores {list(scores.shape)} and a teacher {list(teacher.shape)}; expected [B, V] of both"
        )
    if len(scores) < 2 or not scores.shape[1]:
        return 0.0 * scores.sum()
    target = teacher.log_softmax(dim=0)
    student = (scale * scores).log_softmax(dim=0)
    return F.kl_div(student, target, reduction="sum", log_target=True) / scores.shape[1]
