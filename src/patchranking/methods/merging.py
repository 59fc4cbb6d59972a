"""What methods that merge patches share: the merging, and a pass with it between every block's attention and MLP."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from patchranking.methods.method import Encoded, Encoding, Method
from patchranking.pruning.schedule import Schedule
from patchranking.pruning.select import gather_tokens
from patchranking.towers import VisionTower

__all__ = ["Matching", "Merging", "merge"]


class Matching(NamedTuple):
    """Which patches merge into which, as numbers among the patches.

    Attributes:
        sources: Patches that go, ``(batch, merged)``.
        targets: The patch that each of them merges into, ``(batch, merged)``; one may take in several.
        stays: The other patches, targets among them, in the order in which they go on, ``(batch, kept)``.
    """

    sources: Tensor
    targets: Tensor
    stays: Tensor


def merge(tokens: Tensor, sizes: Tensor, matching: Matching, num_prefix_tokens: int) -> tuple[Tensor, Tensor]:
    """Merges patches to the mean of all that they stand for.

    Args:
        tokens: ``(batch, prefix + patches, width)``.
        sizes: How many patches each token stands for, ``(batch, prefix + patches)``.
        matching: What merges.
        num_prefix_tokens: Tokens before the patches; they never merge.

    Returns:
        Tokens ``(batch, prefix + kept, width)`` and their sizes.
    """
    sums = torch.cat([tokens * sizes.unsqueeze(-1), sizes.unsqueeze(-1)], dim=-1)
    into = (matching.targets + num_prefix_tokens).unsqueeze(-1).expand(-1, -1, sums.shape[-1])
    sums = sums.scatter_add(1, into, gather_tokens(sums, matching.sources, num_prefix_tokens)[:, num_prefix_tokens:])
    sums = gather_tokens(sums, matching.stays, num_prefix_tokens)
    return sums[..., :-1] / sums[..., -1:], sums[..., -1]


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
        sizes = None
        for block in range(tower.depth):
            attended = tower.attend(tokens, block, None if sizes is None else sizes.log())
            tokens, patches = attended.tokens, tokens.shape[1] - prefix
            if (merged := patches - counts.get(block, patches)) > 0:
                sizes = tokens.new_ones(tokens.shape[:2]) if sizes is None else sizes
                matching = self.match(attended.keys.mean(1)[:, prefix:], merged, block / tower.depth)
                tokens, sizes = merge(tokens, sizes, matching, prefix)
            tokens = tower.feed_forward(tokens, block)
        return tower.pool(tokens, gates=None if sizes is None else sizes[:, prefix:])
