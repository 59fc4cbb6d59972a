"""ToMe without training: in every block the most similar patches merge, and attention counts a token by its size."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor
from torch.nn import functional as F

from patchranking.methods.method import Encoded, Encoding, Method, Style
from patchranking.pruning.macs import analytic_macs, nearest_in_macs
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
    """Merges the same number r of patches in every block (section 4), at the MACs of another schedule.

    A whole r costs up to one patch in every block too much. So the first blocks merge one patch more, and one later
    block may do so too: then the MACs differ by less than those of a patch in one block.

    Args:
        tower: The image encoder.
        reference: How the methods it is compared with drop patches.

    Returns:
        Patches that every block's MLP sees, as shares.
    """
    patches, depth, aim = tower.num_patches, tower.depth, analytic_macs(tower, 0, reference)

    def merging(r: int, more: Collection[int] = ()) -> Schedule:
        left, shares = patches, {}
        for block in range(depth):
            left -= min(r + (block in more), left // 2)
            shares[block] = left / patches
        return Schedule(shares)

    r = max(r for r in range(patches // 2 + 1) if analytic_macs(tower, 0, merging(r), inside=True) >= aim)
    more = [(), *({*range(first), later} for first in range(depth) for later in range(first, depth))]
    return nearest_in_macs(tower, (merging(r, blocks) for blocks in more), reference, inside=True)


def tome(tower: VisionTower, tokens: Tensor, schedule: Schedule) -> Tensor:
    """Features under ToMe: patches merge between a block's attention and its MLP (section 3).

    Similarity is that of the keys, averaged over heads; attention is proportional (Eq. 1).

    Args:
        tower: The image encoder.
        tokens: Tokens that enter block 0, ``(batch, prefix + patches, width)``.
        schedule: Patches left inside each block, at least half of those that enter it.

    Returns:
        ``(batch, features)``.
    """
    counts, prefix = schedule.kept(tower.num_patches), tower.num_prefix_tokens
    sizes = None
    for block in range(tower.depth):
        attended = tower.attend(tokens, block, None if sizes is None else sizes.log())
        tokens, patches = attended.tokens, tokens.shape[1] - prefix
        if (kept := counts.get(block, patches)) < patches:
            sizes = tokens.new_ones(tokens.shape[:2]) if sizes is None else sizes
            tokens, sizes = merge(tokens, sizes, attended.keys.mean(1), kept, prefix)
        tokens = tower.feed_forward(tokens, block)
    return tower.pool(tokens, gates=None if sizes is None else sizes[:, prefix:])


class ToMe(Method):
    """Merges patches inside every block, with the MACs of the reference."""

    name = "tome"
    style = Style("#4fb3e8", "P")

    def at(self, tower: VisionTower, schedule: Schedule, seed: int) -> Encoding:
        own = tome_schedule(tower, schedule)
        return Encoding(tower, own, lambda batch: Encoded(tome(tower, batch.entering(0), own)), inside=True)
