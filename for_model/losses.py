"""The set prediction loss of FOR (eq. 5-6), and LVIS's pseudo negatives (supplement A).

Shapes: B images, N embeddings an image, C categories, T targets of one image, Co joint width. Both branches, the
labelled and the pseudo-labelled, use the same loss, each with the text embeddings of its own vocabulary:
L = gamma_sup * set_prediction_loss(labels) + gamma_pse * set_prediction_loss(pseudo-labels).
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from for_model.errors import ForError, UsageError

Match = tuple[NDArray[np.int64], NDArray[np.int64]]


def match(probabilities: Sequence[NDArray[np.floating]]) -> list[Match]:
    """The bipartite matching of each image that has the largest sum of probabilities (eq. 5).

    probabilities: of each image [N, T], how likely embedding i shows target j.
    Returns for each image min(N, T) pairs (embeddings ascending, targets). With more targets than embeddings, those
    that fit best together are matched and the others left out; without targets, both are empty.
    Raises ForError for values that are not finite.
    """
    pairs = []
    for image in probabilities:
        if not np.isfinite(image).all():
            raise ForError("a probability is not finite: lower the learning rate, or train in float32")
        embeddings, targets = linear_sum_assignment(image, maximize=True)
        pairs.append((embeddings, targets))
    return pairs


def set_prediction_loss(
    Y: Tensor,
    texts: Tensor,
    targets: Sequence[Sequence[int]],
    scale: float | Tensor,
    no_object: Tensor | None = None,
    no_object_weight: float = 0.0,
    known: Tensor | None = None,
) -> Tensor:
    """Cross entropy over matched items (eq. 6): summed over the N embeddings of an image, averaged over images.

    Y: [B, N, Co] unit-norm.  texts: [C, Co] unit-norm.  targets: of each image, its distinct categories in 0..C-1.
    scale: factor of the cosines in the softmax, CLIP's own.
    no_object: [Co], any length but zero; a class of its own in the softmax, the target of embeddings without a match.
        None leaves it out.
    no_object_weight: w of those embeddings (0.1 on COCO, 0 on LVIS and nuImages).
    known: [B, C] bool, the categories that an image's softmax runs over; None for all. Its targets must be among them.

    The matching uses detached probabilities. An image without targets contributes its no-object terms only. Returns a
    scalar, 0 for a batch of no images.
    Raises UsageError when shapes or targets don't fit together, ForError when an embedding is not finite.
    """
    _check(Y, texts, targets, no_object, no_object_weight, known)
    loss = 0.0 * Y.float().sum()  # so that a batch with nothing to learn can be differentiated too
    if not len(Y):
        return loss
    logits = scale * Y.float() @ texts.float().T  # [B, N, C]
    if known is not None:
        logits = logits.masked_fill(~known[:, None], -torch.inf)
    total = logits.logsumexp(-1)  # [B, N]
    nothing = None
    if no_object is not None:
        nothing = scale * Y.float() @ F.normalize(no_object.float(), dim=-1)  # [B, N]
        total = torch.logaddexp(total, nothing)
    padded = torch.zeros(len(Y), max(map(len, targets)), dtype=torch.long)
    for b, categories in enumerate(targets):
        padded[b, : len(categories)] = torch.tensor(list(categories), dtype=torch.long)
    columns = padded.to(Y.device)[:, None].expand(-1, Y.shape[1], -1)
    log_p = logits.gather(-1, columns) - total[..., None]  # of each target, [B, N, T of the longest]
    probabilities = log_p.detach().exp().double().cpu().numpy()
    pairs = match([p[:, : len(t)] for p, t in zip(probabilities, targets, strict=True)])
    image = torch.arange(len(Y)).repeat_interleave(torch.tensor([len(embeddings) for embeddings, _ in pairs]))
    embedding, target = (torch.from_numpy(np.concatenate(side)) for side in zip(*pairs, strict=True))
    image, embedding, target = (index.to(Y.device) for index in (image, embedding, target))
    loss = loss - log_p[image, embedding, target].sum()
    free = torch.ones(Y.shape[:2], dtype=torch.bool, device=Y.device)
    free[image, embedding] = False
    if nothing is not None and no_object_weight:
        loss = loss - no_object_weight * (nothing - total)[free].sum()
    return loss / len(Y)


def _check(
    Y: Tensor,
    texts: Tensor,
    targets: Sequence[Sequence[int]],
    no_object: Tensor | None,
    no_object_weight: float,
    known: Tensor | None,
) -> None:
    if Y.ndim != 3 or texts.ndim != 2 or Y.shape[-1] != texts.shape[-1] or not len(texts):
        raise UsageError(f"got embeddings {list(Y.shape)} and texts {list(texts.shape)}; expected [B, N, Co], [C, Co]")
    if len(targets) != len(Y):
        raise UsageError(f"got the targets of {len(targets)} images for the embeddings of {len(Y)}")
    if no_object_weight < 0 or (no_object_weight and no_object is None):
        raise UsageError(f"no_object_weight {no_object_weight}: expected 0 or more, and a no_object vector if not 0")
    if known is not None and (known.shape != (len(Y), len(texts)) or known.dtype != torch.bool):
        raise UsageError(f"known is {list(known.shape)} {known.dtype}; expected [{len(Y)}, {len(texts)}] bool")
    for image, categories in enumerate(targets):
        if len(set(categories)) != len(categories) or not all(0 <= c < len(texts) for c in categories):
            raise UsageError(f"targets {list(categories)}: expected distinct categories in 0..{len(texts) - 1}")
        if known is not None and not known[image, list(categories)].all():
            raise UsageError(f"targets {list(categories)}: a target is not among the image's known categories")


def with_pseudo_negatives(
    rng: Generator, positives: Sequence[int], negatives: Sequence[int], frequencies: NDArray[np.floating], minimum: int
) -> NDArray[np.bool_]:
    """The categories that a federated image's softmax runs over: [C] bool, for `known` (supplement A).

    positives, negatives: the categories known to be in the image, and not to be.  frequencies: [C], how often each
    category occurs.  minimum: negatives and pseudo negatives together (50 in the paper).
    Pseudo negatives are drawn without replacement, by frequency, from the categories of which nothing is known; those
    of frequency 0 are never drawn, so there may be fewer than `minimum`.
    """
    known = np.zeros(len(frequencies), bool)
    known[list(positives)] = known[list(negatives)] = True
    weights = np.where(known, 0.0, frequencies)
    wanted = min(max(minimum - len(set(negatives) - set(positives)), 0), int((weights > 0).sum()))
    if wanted:
        known[rng.choice(len(weights), wanted, replace=False, p=weights / weights.sum())] = True
    return known
