"""Losses and measures that compare predicted with golden importance."""

from __future__ import annotations

from torch import Tensor

__all__ = ["listnet", "matching_rate", "standardise"]


def standardise(importance: Tensor) -> Tensor:
    """Z-scores of each image's patches, ``(batch, patches)``; a constant row becomes zeros."""
    centred = importance - importance.mean(-1, keepdim=True)
    return centred / centred.std(-1, keepdim=True, correction=0).clamp_min(1e-12)


def listnet(scores: Tensor, importance: Tensor) -> Tensor:
    """Softmax cross-entropy between the two lists (paper, Eq. 8 with softmax as in ListNet).

    Args:
        scores: Predicted ``(batch, patches)``.
        importance: Golden ``(batch, patches)``; z-scored here.

    Returns:
        Scalar mean over the batch; minimal when the scores equal the z-scores up to a constant.
    """
    return -(standardise(importance).softmax(-1) * scores.log_softmax(-1)).sum(-1).mean()


def matching_rate(scores: Tensor, importance: Tensor, count: int) -> float:
    """Share of the golden top ``count`` patches that the predicted top ``count`` holds; chance is count / patches."""
    predicted = scores.topk(count, dim=-1).indices
    golden = importance.topk(count, dim=-1).indices
    return (predicted.unsqueeze(-1) == golden.unsqueeze(-2)).any(-1).double().mean().item()
