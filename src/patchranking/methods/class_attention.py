"""Keeps the patches the class token attends to most, in the block that comes after pruning's place.

The training-free top-k of EViT (Liang et al., 2022), whose fused token is in ``evit.py``; attention is averaged over
heads.
"""

from __future__ import annotations

from torch import Tensor

from patchranking.pruning.attach import Scorer
from patchranking.towers import VisionTower

__all__ = ["class_attention"]


def class_attention(tower: VisionTower, block: int, seed: int) -> Scorer:
    """Returns a scorer that reads the attention of ``block`` on the tokens that enter it.

    Args:
        tower: The image encoder; it needs a class token.
        block: Patches are dropped before this block.
        seed: Unused; every baseline takes it.
    """

    def score(tokens: Tensor) -> Tensor:
        return tower.class_attention(tokens, block)

    return score
