"""Damage of many kept sets: the forward passes that leave-out and iterative search are made of."""

from __future__ import annotations

import torch
from torch import Tensor

from patchranking.pruning.select import gather_tokens
from patchranking.ranking.objectives import Damage
from patchranking.towers import VisionTower

__all__ = ["variant_damage"]

_TOKENS_PER_BATCH = {"cpu": 2304}
"""Few on a CPU, whose caches then hold the activations."""
_TOKENS_PER_BATCH_ELSEWHERE = 100_000


def variant_damage(tower: VisionTower, tokens: Tensor, block: int, kept: Tensor, damage: Damage) -> Tensor:
    """Runs every image with every one of its kept sets; the variants of all images share batches.

    Args:
        tower: The image encoder.
        tokens: Tokens that enter ``block``, ``(batch, prefix + patches, width)``.
        block: Patches are removed before this block.
        kept: Patch indices ``(batch, variants, kept)``.
        damage: What to measure.

    Returns:
        ``(batch, variants)`` float32.
    """
    count = kept.shape[1]
    budget = _TOKENS_PER_BATCH.get(tokens.device.type, _TOKENS_PER_BATCH_ELSEWHERE)
    per_batch = max(1, budget // (tower.num_prefix_tokens + kept.shape[2]))
    found = []
    for variants in torch.arange(len(tokens) * count, device=tokens.device).split(per_batch):
        image = variants // count
        patches = kept[image, variants % count]
        pruned = gather_tokens(tokens[image], patches, tower.num_prefix_tokens)
        found.append(damage(tower.pool(tower.run(pruned, block, positions=patches)), image))
    return torch.cat(found).view(len(tokens), count)
