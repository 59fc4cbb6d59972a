"""Losses that teach a predictor golden importance: each takes ``(batch, patches)`` scores and importance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["LOSSES", "LossName", "bce", "listnet", "margin", "standardise", "top_list"]

LossName = Literal["listnet", "bce", "margin", "top-list"]
_TOP_SHARES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


def standardise(importance: Tensor) -> Tensor:
    """Z-scores of each image's patches, ``(batch, patches)``; a constant row becomes zeros."""
    centred = importance - importance.mean(-1, keepdim=True)
    scores = centred / centred.std(-1, keepdim=True, correction=0).clamp_min(1e-12)
    constant = importance.amax(-1, keepdim=True) == importance.amin(-1, keepdim=True)
    return scores.masked_fill(constant, 0)


def listnet(scores: Tensor, importance: Tensor) -> Tensor:
    """Softmax cross-entropy between the two lists (paper, Eq. 8 with softmax as in ListNet).

    Args:
        scores: Predicted ``(batch, patches)``.
        importance: Golden ``(batch, patches)``; z-scored here.

    Returns:
        Scalar mean over the batch; minimal when the scores equal the z-scores up to a constant.
    """
    return -(standardise(importance).softmax(-1) * scores.log_softmax(-1)).sum(-1).mean()


def bce(scores: Tensor, importance: Tensor) -> Tensor:
    """Binary cross-entropy on the sigmoid of the z-scored importance (both halves of what the paper's Eq. 8 begins).

    Args:
        scores: Predicted ``(batch, patches)``, logits.
        importance: Golden ``(batch, patches)``; z-scored here.

    Returns:
        Scalar mean over batch and patches; minimal when the scores equal the z-scores.
    """
    return F.binary_cross_entropy_with_logits(scores, standardise(importance).sigmoid())


def margin(scores: Tensor, importance: Tensor) -> Tensor:
    """Hinge on every pair: the more important patch is to score at least 1 more (RankSVM; the reference code's loss).

    Args:
        scores: Predicted ``(batch, patches)``.
        importance: Golden ``(batch, patches)``; equal values make no pair.

    Returns:
        Scalar mean over all ordered pairs of the batch.
    """
    ordered = importance.unsqueeze(-1) > importance.unsqueeze(-2)
    short = F.relu(1 - (scores.unsqueeze(-1) - scores.unsqueeze(-2)))
    return (short * ordered).sum() / ordered.sum().clamp_min(1)


def top_list(scores: Tensor, importance: Tensor) -> Tensor:
    """List loss weighted to the top: only who is in the golden top k counts, for k from 30 to 80 % of the patches.

    For each k, the cross-entropy between the uniform distribution over the golden top k and the softmax of the scores;
    a patch thus weighs more the more of these top lists it belongs to, and the order far below every k does not count.

    Args:
        scores: Predicted ``(batch, patches)``.
        importance: Golden ``(batch, patches)``; equal values prefer the lower index.

    Returns:
        Scalar mean over the batch.
    """
    patches = importance.shape[-1]
    counts = torch.tensor([max(1, round(share * patches)) for share in _TOP_SHARES], device=scores.device)
    place = importance.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    target = ((place.unsqueeze(-1) < counts) / counts).mean(-1).to(scores.dtype)
    return -(target * scores.log_softmax(-1)).sum(-1).mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "listnet": listnet,
    "bce": bce,
    "margin": margin,
    "top-list": top_list,
}
