"""PiToMe without training: patches in large groups of similar ones merge, those that stand alone are protected.

Tran et al., "Accelerating Transformers with Spectrum-Preserving Token Merging", NeurIPS 2024. As its authors run it on
classifiers off the shelf: in the first half of the blocks patches only pair up in the order of their energy, and are
protected in the second half.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from patchranking.methods.merging import Matching, Merging
from patchranking.methods.method import Style
from patchranking.pruning.macs import nearest_in_macs
from patchranking.pruning.schedule import Schedule
from patchranking.towers import VisionTower

__all__ = ["PiToMe", "by_energy", "energy", "pitome_schedule"]

_MARGIN = 0.9
"""The paper's margin of the energy, in the first block; it falls by equal steps to 0 after the last one."""
_RATIOS = 2000
"""Ratios between a half and one that are tried."""


def energy(similarity: Tensor, margin: float) -> Tensor:
    """Energy of every patch: large for those that many others are like (Eq. 4, with alpha = 1).

    Args:
        similarity: Cosines between all patches, ``(batch, patches, patches)``.
        margin: Cosines under it count as unlike.

    Returns:
        ``(batch, patches)``.
    """
    return F.elu(similarity - margin).mean(-1)


def by_energy(keys: Tensor, merged: int, margin: float, protect: bool) -> Matching:
    """Matches patches in the order of their energy (Algorithm 1).

    Every second of them proposes to the most similar of the others, and the most similar pairs merge.

    Args:
        keys: What similarity is measured by, ``(batch, patches, any)``.
        merged: How many patches go, at most half of them.
        margin: As in ``energy``.
        protect: Whether only patches of the most energy, twice as many as are to go, take part: then all proposals are
            accepted. Otherwise all patches do.

    Returns:
        The matching; protected patches come first.
    """
    keys = F.normalize(keys, dim=-1)
    similarity = keys @ keys.transpose(1, 2)
    order = energy(similarity, margin).argsort(dim=1, descending=True, stable=True)
    candidates = 2 * merged if protect else order.shape[1]
    proposing, others = order[:, :candidates:2], order[:, 1:candidates:2]
    rows = similarity.gather(1, proposing.unsqueeze(-1).expand(-1, -1, order.shape[1]))
    nearest, partner = rows.gather(2, others.unsqueeze(1).expand(-1, proposing.shape[1], -1)).max(-1)
    accepted, declined = nearest.argsort(dim=1, descending=True, stable=True).tensor_split([merged], dim=1)
    targets = others.gather(1, partner.gather(1, accepted))
    stays = torch.cat([order[:, candidates:], proposing.gather(1, declined), others], dim=1)
    return Matching(proposing.gather(1, accepted), targets, stays)


def pitome_schedule(tower: VisionTower, reference: Schedule) -> Schedule:
    """Keeps the same share of the patches in every block, at the MACs of another schedule.

    The paper rounds to whole patches block by block; here the share left since the start is rounded, so that the MACs
    can be met.

    Args:
        tower: The image encoder.
        reference: How the methods it is compared with drop patches.

    Returns:
        Patches that every block's MLP sees, as shares of all.
    """
    patches = tower.num_patches

    def keeping(ratio: float) -> Schedule:
        left, shares = patches, {}
        for block in range(tower.depth):
            left = max(round(patches * ratio ** (block + 1)), (left + 1) // 2)
            shares[block] = left / patches
        return Schedule(shares)

    ratios = (1 - step / (2 * _RATIOS) for step in range(_RATIOS + 1))
    return nearest_in_macs(tower, map(keeping, ratios), reference, inside=True)


class PiToMe(Merging):
    """Merges patches of high energy, the same share in every block."""

    name = "pitome"
    style = Style("#a0694f", "H")

    def schedule(self, tower: VisionTower, reference: Schedule) -> Schedule:
        return pitome_schedule(tower, reference)

    def match(self, keys: Tensor, merged: int, passed: float) -> Matching:
        return by_energy(keys, merged, _MARGIN * (1 - passed), protect=passed >= 0.5)
