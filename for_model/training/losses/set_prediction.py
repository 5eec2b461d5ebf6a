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
    Y, texts = Y.float(), texts.float()
    loss = 0.0 * Y.sum()  # so that a batch with nothing to learn can be differentiated too
    if not len(Y):
        return loss
    phi = None if no_object is None else F.normalize(no_object.float(), dim=-1)
    weighted = phi is not None and no_object_weight > 0  # else only what is matched needs a gradient
    with torch.set_grad_enabled(weighted and torch.is_grad_enabled()):
        total = _log_total(Y, texts, scale, phi, None if known is None else known[:, None])  # [B, N]
    pairs = match(_probabilities(Y.detach(), texts, targets, scale, total.detach()))
    image = torch.arange(len(Y)).repeat_interleave(torch.tensor([len(embeddings) for embeddings, _ in pairs]))
    embedding = torch.from_numpy(np.concatenate([embeddings for embeddings, _ in pairs]))
    wanted = [categories[target] for categories, (_, found) in zip(targets, pairs, strict=True) for target in found]
    image, embedding = image.to(Y.device), embedding.to(Y.device)
    matched = Y[image, embedding]  # [P, Co], P pairs in all
    logits = scale * (matched * texts[torch.tensor(wanted, dtype=torch.long, device=Y.device)]).sum(-1)
    if phi is None or not weighted:
        total = _log_total(matched, texts, scale, phi, None if known is None else known[image])
        return loss - (logits - total).sum() / len(Y)
    free = torch.ones(Y.shape[:2], dtype=torch.bool, device=Y.device)
    free[image, embedding] = False
    nothing = (scale * Y @ phi - total)[free].sum()
    return loss - ((logits - total[image, embedding]).sum() + no_object_weight * nothing) / len(Y)


def _log_total(Y: Tensor, texts: Tensor, scale: float | Tensor, phi: Tensor | None, known: Tensor | None) -> Tensor:
    """The logarithm of the softmax's denominator. Y: [..., Co].  phi: [Co] or None.  known: [..., C] or None."""
    logits = (scale * Y) @ texts.T
    if known is not None:
        logits = logits.masked_fill(~known, -torch.inf)
    total = logits.logsumexp(-1)
    return total if phi is None else torch.logaddexp(total, scale * Y @ phi)


def _probabilities(
    Y: Tensor, texts: Tensor, targets: Sequence[Sequence[int]], scale: float | Tensor, total: Tensor
) -> list[NDArray[np.float64]]:
    """Of each image [N, T], how likely embedding i shows target j; in one transfer from the device."""
    padded = torch.zeros(len(Y), max(map(len, targets)), dtype=torch.long)
    for b, categories in enumerate(targets):
        padded[b, : len(categories)] = torch.tensor(list(categories), dtype=torch.long)
    logits = (scale * Y) @ texts[padded.to(Y.device)].transpose(1, 2)  # [B, N, T of the longest]
    found = (logits - total[..., None]).exp().double().cpu().numpy()
    return [p[:, : len(categories)] for p, categories in zip(found, targets, strict=True)]


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
