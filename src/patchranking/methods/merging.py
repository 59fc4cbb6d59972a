"""What training-free merging shares: a pass that merges patches between every block's attention and MLP."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial

import torch
from torch import Tensor

from patchranking.methods.method import BetweenHalves
from patchranking.pruning.inside import Inside, Left
from patchranking.pruning.merge import Matching, merge
from patchranking.pruning.schedule import Schedule
from patchranking.towers import VisionTower
from patchranking.towers.base import Attended

__all__ = ["Merging"]


class Merging(BetweenHalves):
    """Merges patches between the attention and the MLP of every block, with the MACs of the reference.

    Attention is proportional: a key counts by its size (Bolya et al., 2023, Eq. 1).
    """

    @abstractmethod
    def schedule(self, tower: VisionTower, reference: Schedule) -> Schedule:
        """Patches that every block's MLP sees, as shares, at the MACs of a reference."""

    @abstractmethod
    def match(self, keys: Tensor, merged: int, passed: float) -> Matching:
        """What merges inside a block.

        Args:
            keys: Of the block's attention, averaged over heads, ``(batch, patches, head width)``.
            merged: How many patches go, at most half of them.
            passed: Share of the blocks that have run before.
        """

    def reductions(self, tower: VisionTower, schedule: Schedule) -> dict[int, Inside]:
        """Block -> what merges inside it, for every block.

        Args:
            tower: The image encoder.
            schedule: Patches left inside blocks, in each at least half of those that enter it.
        """
        counts, prefix = schedule.kept(tower.num_patches), tower.num_prefix_tokens

        def inside(block: int) -> Inside:
            def reduce(attended: Attended, sizes: Tensor | None) -> Left:
                tokens, patches = attended.tokens, attended.tokens.shape[1] - prefix
                merged = patches - counts.get(block, patches)
                if merged <= 0:
                    return Left(tokens, None, sizes)
                sizes = tokens.new_ones(tokens.shape[:2]) if sizes is None else sizes
                matching = self.match(attended.keys.mean(1)[:, prefix:], merged, block / tower.depth)
                tokens, sizes = merge(tokens, sizes, matching, prefix)
                return Left(tokens, matching.stays, sizes, (partial(_into, matching, patches),))

            return reduce

        return {block: inside(block) for block in range(tower.depth)}


def _into(matching: Matching, patches: int) -> Tensor:
    """For every patch before merging, its place after it, ``(batch, patches)``."""
    stays = matching.stays
    places = torch.arange(stays.shape[1], device=stays.device).expand_as(stays)
    into = stays.new_zeros(stays.shape[0], patches).scatter(1, stays, places)
    return into.scatter(1, matching.sources, into.gather(1, matching.targets))
