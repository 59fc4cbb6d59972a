"""Keeps patches at random: the baseline every method must beat."""

from __future__ import annotations

import torch
from torch import Tensor

from patchranking.methods.method import Dropping, Style
from patchranking.pruning.attach import Scorer
from patchranking.towers import VisionTower

__all__ = ["Random"]


class Random(Dropping):
    """Uniform scores, drawn image after image from one seeded generator."""

    name = "random"
    style = Style("#8d939e", "d")

    def scorer(self, tower: VisionTower, block: int, seed: int) -> Scorer:
        generator = torch.Generator().manual_seed(seed)

        def score(tokens: Tensor) -> Tensor:
            return torch.rand(len(tokens), tower.num_patches, generator=generator).to(tokens.device)

        return score
