"""A model ready to encode images and texts, with what belongs to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn

from patchranking.towers import TextTower, VisionTower
from patchranking.towers.identity import fingerprint
from patchranking.towers.preprocessing import Preprocessing

__all__ = ["LoadedModel"]


@dataclass
class LoadedModel:
    """A model with what belongs to it.

    Attributes:
        name: The MODEL argument it was loaded from.
        model: The library's model, in evaluation mode.
        tower: The view of its image encoder.
        preprocess: Turns an RGB picture into pixels ``(3, height, width)``, float32, as the library does.
        text: The view of its text encoder, which turns texts into normalised features; None for image-only models.
        logit_scale: Multiplier of cosines, e.g. 100; 1 for image-only models.
        mean: Channel means of the normalisation, of pictures in 0 ... 1.
        std: Channel standard deviations of the normalisation.
        preprocessing: What ``preprocess`` does, by numbers; None where they cannot say it.
    """

    name: str
    model: nn.Module
    tower: VisionTower
    preprocess: Callable[[Image.Image], Tensor]
    text: TextTower | None
    logit_scale: float
    mean: Sequence[float]
    std: Sequence[float]
    preprocessing: Preprocessing | None = None

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the pixels."""
        return self.tower.image_size

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.tower.device

    @property
    def fingerprint(self) -> list[float | None]:
        """What tells its weights from others."""
        return fingerprint(self.tower)

    def picture(self, pixels: Tensor) -> Image.Image:
        """The RGB picture that preprocessed pixels ``(3, height, width)`` show."""
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (self.mean, self.std))
        levels = ((pixels.float().cpu() * std + mean) * 255).round().clamp(0, 255).byte()
        return Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())
