"""What happens before the blocks of a schedule: scored stages choose, those without a score cut the end off."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from patchranking.pruning.attach import Reduced, Reduction, Scorer
from patchranking.pruning.schedule import Schedule
from patchranking.pruning.select import best_first, gather_tokens, top_patches
from patchranking.towers import VisionTower

__all__ = ["Choose", "Drop", "by_scores", "dropping", "kept", "staged"]

Choose = Callable[[Tensor, int], Tensor]
"""Maps scores ``(batch, patches)`` and a count to indices of patches: ``top_patches`` or ``best_first``."""

Drop = Callable[[Tensor, int, Choose, Tensor | None], Reduced]
"""Maps tokens ``(batch, prefix + patches, width)``, a count and sizes to what stays, in the order of the choice."""


def dropping(scorer: Scorer, num_prefix_tokens: int) -> Drop:
    """Drops the patches with the lowest scores, and leaves the others as they are."""

    def drop(tokens: Tensor, count: int, choose: Choose, sizes: Tensor | None) -> Reduced:
        return kept(tokens, choose(scorer(tokens), count), num_prefix_tokens, sizes)

    return drop


def kept(tokens: Tensor, keep_indices: Tensor, num_prefix_tokens: int, sizes: Tensor | None = None) -> Reduced:
    """The prefix tokens and the chosen patches, as they are; the others are lost."""
    if sizes is not None:
        sizes = gather_tokens(sizes.unsqueeze(-1), keep_indices, num_prefix_tokens).squeeze(-1)
    return Reduced(gather_tokens(tokens, keep_indices, num_prefix_tokens), keep_indices, sizes)


def staged(
    schedule: Callable[[], Schedule], num_patches: int, num_prefix_tokens: int, drops: Mapping[int, Drop]
) -> dict[int, Reduction]:
    """Reductions for the blocks of a schedule.

    Where a stage without a drop of its own follows, patches go on in the order of their scores, and that stage cuts
    the end off; otherwise they keep their places.

    Args:
        schedule: Gives the current schedule; its blocks stay the same.
        num_patches: Patches before the first stage; of images with more or fewer, stages keep the same shares.
        num_prefix_tokens: Tokens before the patches.
        drops: Block -> what chooses there; the first block needs one.

    Returns:
        Block -> reduction. Where all patches stay to the end, tokens pass as they are.
    """
    blocks = list(schedule().stages)

    def stage(earlier: int | None, block: int, following: int | None) -> Reduction:
        drop = drops.get(block)
        choose = top_patches if following is None or following in drops else best_first

        def reduce(tokens: Tensor, sizes: Tensor | None) -> Reduced:
            if schedule().keep == 1:
                return Reduced(tokens, None, sizes)
            counts, patches = schedule().kept(num_patches), tokens.shape[1] - num_prefix_tokens
            count, expected = counts[block], num_patches if earlier is None else counts[earlier]
            if patches != expected:
                count = max(1, round(patches * count / expected))
            if drop is not None:
                return drop(tokens, count, choose, sizes)
            first_ones, left = torch.arange(count, device=tokens.device), num_prefix_tokens + count
            sizes = None if sizes is None else sizes[:, :left]
            return Reduced(tokens[:, :left], first_ones.expand(tokens.shape[0], -1), sizes)

        return reduce

    around = zip([None, *blocks], blocks, [*blocks[1:], None], strict=False)
    return {block: stage(earlier, block, following) for earlier, block, following in around}


def by_scores(tower: VisionTower, schedule: Schedule, scorers: Mapping[int, Scorer]) -> dict[int, Reduction]:
    """Reductions that drop the patches with the lowest scores, and leave the others as they are.

    Args:
        tower: The image encoder.
        schedule: Where patches are dropped and how many stay.
        scorers: Block -> what scores there; the first block needs one.
    """
    drops = {block: dropping(scorer, tower.num_prefix_tokens) for block, scorer in scorers.items()}
    return staged(lambda: schedule, tower.num_patches, tower.num_prefix_tokens, drops)
