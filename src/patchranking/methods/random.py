"""Keeps patches at random: the baseline every method must beat."""

from __future__ import annotations

import torch
from torch import Tensor

from patchranking.pruning.attach import Scorer
from patchranking.towers import VisionTower

__all__ = ["random"]


def random(tower: VisionTower, block: int, seed: int) -> Scorer:
    """Returns a scorer with uniform scores, drawn image after image from one seeded generator.

    Args:
        tower: The image encoder.
        block: Unused; every baseline takes it.
        seed: Seed of the generator.
    """
    generator = torch.Generator().manual_seed(seed)

    def score(tokens: Tensor) -> Tensor:
        return torch.rand(len(tokens), tower.num_patches, generator=generator).to(tokens.device)

    return score
