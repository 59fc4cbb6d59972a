"""What every search returns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Ranking", "places"]


@dataclass(frozen=True)
class Ranking:
    """The golden ranking of a batch of images.

    Attributes:
        importance: ``(batch, patches)`` float32, higher = keep.
        removal_order: ``(batch, patches)`` int64, the patch to drop first comes first.
    """

    importance: Tensor
    removal_order: Tensor

    @classmethod
    def from_importance(cls, importance: Tensor) -> Ranking:
        """Orders removal by ascending importance; equal patches go by index."""
        return cls(importance, importance.argsort(dim=-1, stable=True))

    @classmethod
    def from_order(cls, removal_order: Tensor) -> Ranking:
        """Takes each patch's place in the removal order, between 0 and 1, as its importance."""
        return cls(places(removal_order), removal_order)


def places(order: Tensor) -> Tensor:
    """Place of each patch in an order, between 0 and 1.

    Args:
        order: Patch indices ``(batch, patches)``.

    Returns:
        ``(batch, patches)`` float32: ``(rank + 0.5) / patches``.
    """
    rank = torch.arange(order.shape[1], device=order.device, dtype=torch.float32).expand(order.shape)
    return torch.empty_like(rank).scatter_(1, order, (rank + 0.5) / order.shape[1])
