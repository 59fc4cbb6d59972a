"""A-ViT without training: tokens halt once their halting scores add up to the most."""

from __future__ import annotations

import torch
from torch import Tensor

from patchranking.methods.method import Encoded, Encoding, Method, Style
from patchranking.pruning.schedule import Schedule
from patchranking.pruning.select import gather_tokens, top_patches
from patchranking.towers import VisionTower

__all__ = ["AViT", "a_vit", "halting"]

_GAMMA, _BETA = 5.0, -10.0
"""Scale and shift of the halting score, as in the paper."""


def halting(tokens: Tensor) -> Tensor:
    """Halting score of every token after a block: the sigmoid of its first channel (Yin et al., 2022, Eq. 4).

    Args:
        tokens: ``(batch, tokens, width)``.

    Returns:
        ``(batch, tokens)``, float32, between 0 and 1.
    """
    return torch.sigmoid(_GAMMA * tokens[..., 0].float() + _BETA)


def a_vit(tower: VisionTower, tokens: Tensor, schedule: Schedule) -> Encoded:
    """Features under A-ViT's halting, at fixed counts.

    The scores of a token add up over the blocks (section 3.2, Eq. 6). The paper halts a token when its sum reaches
    1 - epsilon; here those with the largest sums halt at each stage of the schedule, so that counts are those of the
    other methods. The paper trains the model for its halting; this model is as it is, and its class token is read
    after the last block.

    Args:
        tower: The image encoder.
        tokens: Tokens that enter block 0, ``(batch, prefix + patches, width)``.
        schedule: Where patches are dropped and how many stay.

    Returns:
        Features ``(batch, features)`` and the patches that reach the end.
    """
    prefix, counts = tower.num_prefix_tokens, schedule.kept(tower.num_patches)
    keep_indices = torch.arange(tower.num_patches, device=tokens.device).expand(len(tokens), -1)
    total = torch.zeros(len(tokens), tower.num_patches, device=tokens.device)
    for block in range(tower.depth):
        if counts.get(block, total.shape[1]) < total.shape[1]:
            patches = top_patches(-total, counts[block])
            tokens, total = gather_tokens(tokens, patches, prefix), total.gather(1, patches)
            keep_indices = keep_indices.gather(1, patches)
        tokens = tower.run(tokens, block, block + 1, positions=keep_indices)
        total = total + halting(tokens[:, prefix:])
    return Encoded(tower.pool(tokens), keep_indices)


class AViT(Method):
    """Halts tokens by their halting scores, before the blocks and at the counts of the schedule."""

    name = "a-vit"
    style = Style("#9a63c9", "v")

    def at(self, tower: VisionTower, schedule: Schedule, seed: int) -> Encoding:
        return Encoding(tower, schedule, lambda batch: a_vit(tower, batch.entering(0), schedule))
