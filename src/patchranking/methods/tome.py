"""ToMe without training: in every block the most similar patches merge, and attention counts a token by its size."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from patchranking.methods.method import Encoded, Encoding, Method, Style
from patchranking.pruning.macs import nearest_in_macs
from patchranking.pruning.schedule import Schedule
from patchranking.towers import VisionTower

__all__ = ["ToMe", "merge", "tome", "tome_schedule"]


def merge(tokens: Tensor, sizes: Tensor, metric: Tensor, kept: int, num_prefix_tokens: int) -> tuple[Tensor, Tensor]:
    """Bipartite soft matching (Bolya et al., 2023, section 3): merges patches until ``kept`` are left.

    Patches at odd places propose to their most similar patch at an even place; the most similar pairs merge, to the
    mean of what they stand for.

    Args:
        tokens: ``(batch, prefix + patches, width)``.
        sizes: How many patches each token stands for, ``(batch, prefix + patches)``.
        metric: What similarity is measured by, ``(batch, prefix + patches, any)``.
        kept: Patches that stay, at least half of them, rounded up.
        num_prefix_tokens: Tokens before the patches; they never merge.

    Returns:
        Tokens ``(batch, prefix + kept, width)``, prefix first, then the odd places that stay, then the even ones; and
        their sizes.
    """
    metric = F.normalize(metric[:, num_prefix_tokens:], dim=-1)
    similarity, partner = (metric[:, 1::2] @ metric[:, ::2].transpose(1, 2)).max(-1)
    merged = metric.shape[1] - kept
    order = similarity.argsort(dim=1, descending=True, stable=True)
    gone, stays = order[:, :merged], order[:, merged:].sort(dim=1).values
    target = partner.gather(1, gone)

    def reduce(values: Tensor) -> Tensor:
        def pick(rows: Tensor, places: Tensor) -> Tensor:
            return rows.gather(1, places.unsqueeze(-1).expand(-1, -1, rows.shape[-1]))

        prefix, patches = values[:, :num_prefix_tokens], values[:, num_prefix_tokens:]
        odd, even = patches[:, 1::2], patches[:, ::2]
        into = target.unsqueeze(-1).expand(-1, -1, values.shape[-1])
        return torch.cat([prefix, pick(odd, stays), even.scatter_add(1, into, pick(odd, gone))], dim=1)

    weights = sizes.unsqueeze(-1)
    total = reduce(weights)
    return reduce(tokens * weights) / total, total.squeeze(-1)


def tome_schedule(tower: VisionTower, reference: Schedule) -> Schedule:
    """Spreads merging evenly over the blocks, at the MACs of another schedule.

    Args:
        tower: The image encoder.
        reference: How the methods it is compared with drop patches.

    Returns:
        Patches before each block but the first, as shares; the nearest whole numbers of merged patches.
    """
    patches = tower.num_patches

    def spread(merged: int) -> Schedule:
        last = max(1, tower.depth - 1)
        counts = {b: patches - round(merged * b / last) for b in range(1, tower.depth)}
        return Schedule({b: count / patches for b, count in counts.items()})

    return nearest_in_macs(tower, map(spread, range(patches)), reference)


def tome(tower: VisionTower, tokens: Tensor, schedule: Schedule) -> Tensor:
    """Features under ToMe: similarity by keys, proportional attention (section 3, Eq. 1).

    Patches merge where a block begins, by the keys they would have there; the original merges between attention and
    MLP, which no hook can do. The keys are computed a second time for it.

    Args:
        tower: The image encoder.
        tokens: Tokens that enter block 0, ``(batch, prefix + patches, width)``.
        schedule: Patches left before each block.

    Returns:
        ``(batch, features)``.
    """
    sizes = tokens.new_ones(tokens.shape[:2])
    counts = schedule.kept(tower.num_patches)
    prefix = tower.num_prefix_tokens
    for block in range(tower.depth):
        patches = tokens.shape[1] - prefix
        kept = max(counts.get(block, patches), (patches + 1) // 2)
        if kept < patches:
            tokens, sizes = merge(tokens, sizes, tower.keys(tokens, block), kept, prefix)
        proportional = sizes.log() if tokens.shape[1] < prefix + tower.num_patches else None
        tokens = tower.run(tokens, block, block + 1, key_bias=proportional)
    gates = sizes[:, prefix:] if tokens.shape[1] < prefix + tower.num_patches else None
    return tower.pool(tokens, gates=gates)


class ToMe(Method):
    """Merges patches in every block, with the MACs of the reference."""

    name = "tome"
    style = Style("#4fb3e8", "P")

    def at(self, tower: VisionTower, schedule: Schedule, seed: int) -> Encoding:
        own = tome_schedule(tower, schedule)
        return Encoding(tower, own, lambda batch: Encoded(tome(tower, batch.entering(0), own)))
