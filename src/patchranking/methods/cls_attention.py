"""Keeps the patches that the class token attends to most, in the block that patches are dropped before.

The training-free top-k of EViT (Liang et al., 2022), whose fused token is in ``evit.py``; attention is averaged over
heads.
"""

from __future__ import annotations

from patchranking.methods.method import Dropping, Style
from patchranking.pruning.attach import Scorer
from patchranking.towers import VisionTower

__all__ = ["ClsAttention"]


class ClsAttention(Dropping):
    """Scores are the class token's attention in a block, on the tokens that enter it; every stage scores again.

    Not so in a rotary model, where attention depends on where the patches are from, which a scorer is not told.
    """

    name = "cls-attention"
    style = Style("#2f7fd0", "s")
    rescore, shown, needs_class_token = True, True, True
    places = (2, 5, 8)

    def scorer(self, tower: VisionTower, block: int, seed: int = 0) -> Scorer:
        return lambda tokens: tower.class_attention(tokens, block)
