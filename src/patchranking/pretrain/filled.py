"""Pictures of what a masked autoencoder sees, and of what it makes of the rest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from patchranking.data import ImageData, read_batches
from patchranking.pretrain.encoder import normalisation_of, preprocess_of
from patchranking.pretrain.mae import MAE
from patchranking.pretrain.objective import Normalisation
from patchranking.pretrain.pictures import drop_noise

__all__ = ["Reconstruction", "reconstructions"]


@dataclass(frozen=True)
class Reconstruction:
    """One picture.

    Attributes:
        key: Its key.
        image: As the model takes it.
        visible: Which patches the encoder sees, boolean ``(rows, columns)``.
        filled: The picture with the other patches as the decoder fills them in.
    """

    key: str
    image: Image.Image
    visible: np.ndarray
    filled: Image.Image


def reconstructions(model: MAE, data: ImageData, number: int, seed: int = 0) -> list[Reconstruction]:
    """What a model sees and makes of the first pictures that can be read.

    Args:
        model: The autoencoder; left in evaluation mode.
        data: The pictures.
        number: How many, at most.
        seed: Of the patches that are hidden.
    """
    found = next(read_batches(data, preprocess_of(model.encoder), number, {}), None)
    if found is None:
        return []
    indices, pixels = found
    model.eval()
    filled = model.fill(pixels.to(model.tower.device), drop_noise(seed, 0, len(pixels)))
    visible = filled.visible.view(-1, *model.tower.grid).cpu().numpy()
    shown = normalisation_of(model.encoder)
    return [
        Reconstruction(
            data.keys[index], _picture(pixels[row], shown), visible[row], _picture(filled.pixels[row], shown)
        )
        for row, index in enumerate(indices)
    ]


def _picture(pixels: Tensor, normalisation: Normalisation) -> Image.Image:
    """The RGB picture that normalised pixels ``(3, height, width)`` show."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (normalisation.mean, normalisation.std))
    levels = ((pixels.float().cpu() * std + mean) * 255).round().clamp(0, 255).byte()
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())
