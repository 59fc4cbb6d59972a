"""How much an image's feature suffers when patches go. Higher = the patches matter = keep."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

__all__ = ["feature_damage"]


def feature_damage(features: Tensor, reference: Tensor) -> Tensor:
    """Cosine distance of pruned features to the full feature (paper, feature preservation, sign flipped to importance).

    Computed as half the squared distance of the unit vectors, which keeps its digits where ``1 - cos`` cancels.

    Args:
        features: Features with patches removed, ``(..., features)``.
        reference: Full features, broadcastable to the same shape.

    Returns:
        ``1 - cos`` in 0 ... 2, float32, ``(...)``.
    """
    difference = F.normalize(features.float(), dim=-1) - F.normalize(reference.float(), dim=-1)
    return difference.square().sum(-1) / 2
