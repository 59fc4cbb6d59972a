"""Keeps the patches nearest to the centre of the picture: a crop that does not look at it."""

from __future__ import annotations

import torch
from torch import Tensor

from patchranking.methods.method import Dropping, Style
from patchranking.pruning.attach import Scorer
from patchranking.towers import VisionTower

__all__ = ["CentreCrop"]


class CentreCrop(Dropping):
    """Scores are higher the nearer a patch is to the centre.

    Nearness is the larger of the two distances, each as a share of the grid, so that what stays is a rectangle of the
    picture's shape; the smaller one settles ties.
    """

    name = "centre-crop"
    style = Style("#7a8f2b", "p")

    def scorer(self, tower: VisionTower, block: int, seed: int) -> Scorer:
        rows, columns = ((torch.arange(size) - (size - 1) / 2).abs() / size for size in tower.grid)
        far, near = torch.maximum(rows[:, None], columns), torch.minimum(rows[:, None], columns)
        importance = -(far + 1e-3 * near).flatten()

        def score(tokens: Tensor) -> Tensor:
            return importance.to(tokens.device).expand(tokens.shape[0], -1)

        return score
