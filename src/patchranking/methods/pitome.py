"""PiToMe without training: patches in large groups of similar ones merge, those that stand alone are protected.

Tran et al., "Accelerating Transformers with Spectrum-Preserving Token Merging", NeurIPS 2024.
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

__all__ = ["PiToMe", "energy", "pitome_schedule", "protecting"]

_MARGIN = 0.9
"""Margin of the energy in the first block; it falls in equal steps towards 0 after the last, as in the paper."""
_RATIOS = 2000


def energy(similarity: Tensor, margin: float) -> Tensor:
    """Energy of every patch: large for those that many others are like (section 3.2, Eq. 4, with alpha = 1).

    Args:
        similarity: Cosines between all patches, ``(batch, patches, patches)``.
        margin: Cosines under it count as unlike.

    Returns:
        ``(batch, patches)``.
    """
    return F.elu(similarity - margin).mean(-1)


def protecting(keys: Tensor, merged: int, margin: float) -> Matching:
    """Matches the patches with the most energy, and protects the others (Algorithm 1).

    Twice as many as are to go are candidates. Ordered by energy, every second one merges into the most similar of the
    rest of them.

    Args:
        keys: What similarity is measured by, ``(batch, patches, any)``.
        merged: How many patches go, at most half of them.
        margin: As in ``energy``.

    Returns:
        The matching; protected patches come first.
    """
    keys = F.normalize(keys, dim=-1)
    similarity = keys @ keys.transpose(1, 2)
    order = energy(similarity, margin).argsort(dim=1, descending=True, stable=True)
    sources, others = order[:, : 2 * merged : 2], order[:, 1 : 2 * merged : 2]
    rows = similarity.gather(1, sources.unsqueeze(-1).expand(-1, -1, keys.shape[1]))
    partner = rows.gather(2, others.unsqueeze(1).expand(-1, merged, -1)).argmax(-1)
    return Matching(sources, others.gather(1, partner), torch.cat([order[:, 2 * merged :], others], dim=1))


def pitome_schedule(tower: VisionTower, reference: Schedule) -> Schedule:
    """Keeps the same share of the patches in every block (section 3.2), at the MACs of another schedule.

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
        return protecting(keys, merged, _MARGIN * (1 - passed))
