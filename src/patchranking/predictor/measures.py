"""How well predicted importance agrees with golden importance."""

from __future__ import annotations

from torch import Tensor

__all__ = ["matching_rate"]


def matching_rate(scores: Tensor, importance: Tensor, count: int) -> float:
    """Share of the golden top ``count`` patches that the predicted top ``count`` holds; chance is count / patches."""
    predicted = scores.topk(count, dim=-1).indices
    golden = importance.topk(count, dim=-1).indices
    return (predicted.unsqueeze(-1) == golden.unsqueeze(-2)).any(-1).double().mean().item()
