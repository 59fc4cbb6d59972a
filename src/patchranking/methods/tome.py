"""ToMe without training: inside every block the most similar patches merge, and attention counts a token by its size.

As its authors run it: between attention and MLP, by the keys of that attention averaged over heads, the same number in
every block, with proportional attention (Bolya et al., 2023, section 3).
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor
from torch.nn import functional as F

from patchranking.methods.merging import Matching, Merging
from patchranking.methods.method import Style
from patchranking.pruning.macs import analytic_macs, nearest_in_macs
from patchranking.pruning.schedule import Schedule
from patchranking.towers import VisionTower

__all__ = ["ToMe", "bipartite", "tome_schedule"]


def bipartite(keys: Tensor, merged: int) -> Matching:
    """Bipartite soft matching (section 3): patches at odd places propose to their most similar one at an even place.

    Args:
        keys: What similarity is measured by, ``(batch, patches, any)``.
        merged: How many of the proposals, the most similar pairs, are accepted; at most half of the patches.

    Returns:
        The matching; the odd places that stay come before the even ones.
    """
    keys = F.normalize(keys, dim=-1)
    similarity, partner = (keys[:, 1::2] @ keys[:, ::2].transpose(1, 2)).max(-1)
    order = similarity.argsort(dim=1, descending=True, stable=True)
    gone, stays = order[:, :merged], order[:, merged:].sort(dim=1).values
    even = torch.arange(0, keys.shape[1], 2, device=keys.device).expand(len(keys), -1)
    return Matching(2 * gone + 1, 2 * partner.gather(1, gone), torch.cat([2 * stays + 1, even], dim=1))


def tome_schedule(tower: VisionTower, reference: Schedule) -> Schedule:
    """Merges the same number r of patches in every block, at the MACs of another schedule.

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


class ToMe(Merging):
    """Merges the most similar pairs of patches, r in every block."""

    name = "tome"
    style = Style("#4fb3e8", "P")

    def schedule(self, tower: VisionTower, reference: Schedule) -> Schedule:
        return tome_schedule(tower, reference)

    def match(self, keys: Tensor, merged: int, passed: float) -> Matching:
        return bipartite(keys, merged)
