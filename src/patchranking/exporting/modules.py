"""The two sides of a model as modules from tensors to tensors, and how they are traced."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.backends import mha
from torch.export import Dim, ExportedProgram
from torch.nn import functional as F

from patchranking.pruner import Pruner
from patchranking.pruning.attach import run_reduced
from patchranking.towers import TextTower, VisionTower

__all__ = ["ImageSide", "Side", "TextSide", "traced"]


class Side(nn.Module):
    """One side of a model.

    Attributes:
        names: Of its input and its outputs.
    """

    names: tuple[str, ...]


class ImageSide(Side):
    """An image encoder with all that its pruner does, predictors, corrections and visual tokens.

    Args:
        tower: The image encoder.
        pruner: At the keep rate that is wanted; None for the dense model.
        normalise: Whether features become unit vectors.
    """

    names = ("image", "features", "kept")

    def __init__(self, tower: VisionTower, pruner: Pruner | None = None, normalise: bool = False) -> None:
        super().__init__()
        self.tower, self.normalise = tower, normalise
        self.module, self.pruner = tower.module, pruner

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Features of pixels, and which patches reach the end.

        Args:
            image: Preprocessed images ``(batch, 3, height, width)``.

        Returns:
            Features ``(batch, features)``, and int64 ``(batch, kept)`` where patches are dropped.
        """
        reductions = {} if self.pruner is None else self.pruner.reductions()
        tokens, kept, _ = run_reduced(self.tower, self.tower.embed(image.to(self.tower.dtype)), 0, reductions)
        features = self.tower.pool(tokens).float()
        features = F.normalize(features, dim=-1) if self.normalise else features
        return (features,) if kept is None else (features, kept)


class TextSide(Side):
    """A text encoder, from ids ``(texts, length)``, int32, to unit features ``(texts, features)``."""

    names = ("text", "features")

    def __init__(self, text: TextTower) -> None:
        super().__init__()
        self.encode = text.encode

    def forward(self, text: Tensor) -> tuple[Tensor, ...]:
        """Unit features of ids."""
        return (self.encode(text.long()),)


@torch.no_grad()
def traced(side: Side, example: Tensor) -> ExportedProgram:
    """``torch.export`` of a module for batches of any size.

    Args:
        side: Takes one tensor, batch first.
        example: A batch of two or more.
    """
    fast_path = mha.get_fastpath_enabled()
    mha.set_fastpath_enabled(False)  # one operator that only PyTorch has
    try:
        return torch.export.export(side.eval(), (example,), dynamic_shapes=({0: Dim("batch", min=1)},), strict=False)
    finally:
        mha.set_fastpath_enabled(fast_path)
