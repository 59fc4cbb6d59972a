"""The paper's three scores, as the damage that is done to an image when patches go: higher = they matter = keep."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

__all__ = ["Damage", "Objective", "confidence", "feature_damage", "label", "preservation"]

Damage = Callable[[Tensor, Tensor], Tensor]
"""Damage ``(variants,)`` float32 of features ``(variants, features)``, given each variant's image ``(variants,)``."""

Objective = Callable[[Tensor], Damage]
"""Makes the damage of a batch from the features of its whole images, ``(images, features)``."""


def feature_damage(features: Tensor, reference: Tensor) -> Tensor:
    """Cosine distance of pruned features to the full feature.

    Computed as half the squared distance of the unit vectors, which keeps its digits where ``1 - cos`` cancels.

    Args:
        features: Features with patches removed, ``(..., features)``.
        reference: Full features, broadcastable to the same shape.

    Returns:
        ``1 - cos`` in 0 ... 2, float32, ``(...)``.
    """
    difference = F.normalize(features.float(), dim=-1) - F.normalize(reference.float(), dim=-1)
    return difference.square().sum(-1) / 2


def preservation(full: Tensor) -> Damage:
    """Feature preservation, the paper's choice (Eq. 3): the cosine distance to the full image feature.

    Args:
        full: Features of the whole images, ``(images, features)``.
    """
    return lambda features, images: feature_damage(features, full[images])


def label(classes: Tensor, logit_scale: float, labels: Tensor) -> Objective:
    """Label-driven score (paper, Eq. 1): minus the log-probability of the true class.

    Args:
        classes: Unit text features ``(classes, features)``.
        logit_scale: The model's multiplier of cosines.
        labels: True class of each image of the batch, ``(images,)``.
    """

    def damage(features: Tensor, images: Tensor) -> Tensor:
        return -_log_probabilities(features, classes, logit_scale).gather(1, labels[images, None])[:, 0]

    return lambda full: damage


def confidence(classes: Tensor, logit_scale: float) -> Objective:
    """Maximum-confidence score (paper, Eq. 2): minus the log-probability of the likeliest class, whichever it is.

    Args:
        classes: Unit text features ``(classes, features)``.
        logit_scale: The model's multiplier of cosines.
    """

    def damage(features: Tensor, images: Tensor) -> Tensor:
        return -_log_probabilities(features, classes, logit_scale).amax(1)

    return lambda full: damage


def _log_probabilities(features: Tensor, classes: Tensor, logit_scale: float) -> Tensor:
    return (logit_scale * F.normalize(features.float(), dim=-1) @ classes.float().T).log_softmax(-1)
