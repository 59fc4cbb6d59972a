"""What a model says about a picture, dense and pruned: classes that someone names, and a caption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

__all__ = ["Said", "named", "said", "similarity"]


@dataclass(frozen=True)
class Said:
    """The likeliest classes, best first, each with its share.

    Attributes:
        dense: Of the dense model.
        pruned: Of the pruned one.
    """

    dense: list[tuple[str, float]]
    pruned: list[tuple[str, float]]

    @property
    def changed(self) -> bool:
        """Whether the two name different classes first."""
        return self.dense[0][0] != self.pruned[0][0]


def named(text: str) -> list[str]:
    """Class names in a text, separated by commas or line breaks, each once."""
    found = (" ".join(part.split()) for part in text.replace("\n", ",").split(","))
    return list(dict.fromkeys(name for name in found if name))


def said(dense: Tensor, pruned: Tensor, classes: Tensor, names: Sequence[str], scale: float, most: int = 5) -> Said:
    """The likeliest classes by both features.

    Args:
        dense: The dense model's feature, ``(features,)``.
        pruned: The pruned one's, ``(features,)``.
        classes: Unit text features, ``(classes, features)``.
        names: Names of the classes.
        scale: Multiplier of cosines.
        most: Classes to name.
    """

    def likeliest(feature: Tensor) -> list[tuple[str, float]]:
        shares = (scale * (classes @ F.normalize(feature.float(), dim=-1))).softmax(-1)
        best = shares.topk(min(most, len(names)))
        return [(names[place], share) for share, place in zip(*(part.tolist() for part in best), strict=True)]

    return Said(likeliest(dense), likeliest(pruned))


def similarity(feature: Tensor, text: Tensor) -> float:
    """Cosine of a picture's and a text's feature, both ``(features,)``."""
    return float(F.cosine_similarity(feature.float(), text.float(), dim=-1))
