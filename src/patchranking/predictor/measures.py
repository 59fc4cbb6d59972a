"""How well predicted importance agrees with golden importance."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["kendall", "matching_rate", "spearman"]


def matching_rate(scores: Tensor, importance: Tensor, count: int) -> float:
    """Share of the golden top ``count`` patches that the predicted top ``count`` holds; chance is count / patches."""
    predicted = scores.topk(count, dim=-1).indices
    golden = importance.topk(count, dim=-1).indices
    return (predicted.unsqueeze(-1) == golden.unsqueeze(-2)).any(-1).double().mean().item()


def kendall(scores: Tensor, importance: Tensor) -> float:
    """Kendall's tau-b of each image's patches, ``(batch, patches)`` both, averaged over images; 0 where undefined."""
    first, second = (_signs(x) for x in (scores, importance))
    agreement = (first * second).sum((-1, -2))
    untied = first.abs().sum((-1, -2)) * second.abs().sum((-1, -2))
    return (agreement / untied.sqrt().clamp_min(1e-12)).mean().item()


def spearman(scores: Tensor, importance: Tensor) -> float:
    """Spearman's rho, tied patches at their mean rank, averaged over the images; 0 where undefined."""
    first, second = (_ranks(x) for x in (scores, importance))
    norm = first.norm(dim=-1) * second.norm(dim=-1)
    return ((first * second).sum(-1) / norm.clamp_min(1e-12)).mean().item()


def _ranks(values: Tensor) -> Tensor:
    """Centred mean ranks: half of (patches below minus patches above)."""
    return _signs(values).sum(-1) / 2


def _signs(values: Tensor) -> Tensor:
    """1, 0 or -1 for every ordered pair, ``(batch, patches, patches)``, float64."""
    values = values.double()
    return torch.sign(values.unsqueeze(-1) - values.unsqueeze(-2))
