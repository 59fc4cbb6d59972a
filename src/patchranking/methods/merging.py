"""What training-free merging shares: a pass that merges patches between every block's attention and MLP."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from patchranking.methods.method import Encoded, Encoding, Method
from patchranking.pruning.merge import Matching, merge
from patchranking.pruning.schedule import Schedule
from patchranking.towers import VisionTower

__all__ = ["Merging"]


class Merging(Method):
    """Merges patches between the attention and the MLP of every block, with the MACs of the reference."""

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

    def at(self, tower: VisionTower, schedule: Schedule, seed: int) -> Encoding:
        own = self.schedule(tower, schedule)
        return Encoding(tower, own, lambda batch: Encoded(self.encode(tower, batch.entering(0), own)), inside=True)

    def encode(self, tower: VisionTower, tokens: Tensor, schedule: Schedule) -> Tensor:
        """Features under merging, with proportional attention: a key counts by its size (Bolya et al., 2023, Eq. 1).

        Args:
            tower: The image encoder.
            tokens: Tokens that enter block 0, ``(batch, prefix + patches, width)``.
            schedule: Patches left inside blocks, in each at least half of those that enter it.

        Returns:
            ``(batch, features)``.
        """
        counts, prefix = schedule.kept(tower.num_patches), tower.num_prefix_tokens
        sizes, positions = None, torch.arange(tower.num_patches, device=tokens.device).expand(len(tokens), -1)
        for block in range(tower.depth):
            attended = tower.attend(tokens, block, None if sizes is None else sizes.log(), positions)
            tokens, patches = attended.tokens, tokens.shape[1] - prefix
            if (merged := patches - counts.get(block, patches)) > 0:
                sizes = tokens.new_ones(tokens.shape[:2]) if sizes is None else sizes
                matching = self.match(attended.keys.mean(1)[:, prefix:], merged, block / tower.depth)
                tokens, sizes = merge(tokens, sizes, matching, prefix)
                positions = positions.gather(1, matching.stays)
            tokens = tower.feed_forward(tokens, block)
        return tower.pool(tokens, gates=None if sizes is None else sizes[:, prefix:])
