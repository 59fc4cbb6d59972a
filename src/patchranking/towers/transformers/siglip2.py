"""View of the SigLIP 2 of transformers that takes images of any shape (NaFlex), on a fixed grid."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from patchranking.towers.transformers.tower import TransformersTower

__all__ = ["Siglip2Tower"]


class Siglip2Tower(TransformersTower):
    """The image side of a SigLIP 2 on the square grid that it has positions for; images come as they do elsewhere."""

    def _size(self, config: Any) -> int:
        return int(config.num_patches**0.5) * config.patch_size

    def _embed(self, pixels: Tensor) -> Tensor:
        (rows, columns), (height, width) = self.grid, self.image_size
        cells = pixels.reshape(-1, 3, rows, height // rows, columns, width // columns)
        patches = cells.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        return self.module.embeddings(patches, torch.tensor(self.grid).expand(pixels.shape[0], -1))
