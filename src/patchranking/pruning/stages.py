"""What happens before the blocks of a schedule: scored stages choose, those without a score cut the end off."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import zip_longest

import torch
from torch import Tensor

from patchranking.errors import UserError
from patchranking.pruning.attach import Reduction, Scorer
from patchranking.pruning.schedule import Schedule
from patchranking.pruning.select import best_first, gather_tokens, top_patches
from patchranking.towers import VisionTower

__all__ = ["Drop", "Survivors", "by_scores", "dropping", "staged"]

Choose = Callable[[Tensor, int], Tensor]
"""Maps scores ``(batch, patches)`` and a count to indices of patches: ``top_patches`` or ``best_first``."""

Drop = Callable[[Tensor, int, Choose], Tensor]
"""Maps tokens ``(batch, prefix + patches, width)`` and a count to those that stay, in the order of the choice."""


def dropping(scorer: Scorer, num_prefix_tokens: int) -> Drop:
    """Drops the patches a scorer puts last, and leaves the others as they are."""
    return lambda tokens, count, choose: gather_tokens(tokens, choose(scorer(tokens), count), num_prefix_tokens)


class Survivors:
    """Keeps track of which patches are still there.

    Attributes:
        places: Where the patches that are left were at first, ``(batch, left)``; None before the first stage.
    """

    def __init__(self) -> None:
        self.places: Tensor | None = None

    def __call__(self, first: bool, chosen: Tensor) -> None:
        """Notes the patches a stage has chosen of those that came to it, ``(batch, left)``."""
        self.places = chosen if first or self.places is None else self.places.gather(1, chosen)


def staged(
    schedule: Callable[[], Schedule],
    num_patches: int,
    num_prefix_tokens: int,
    drops: Mapping[int, Drop],
    watch: Survivors | None = None,
) -> dict[int, Reduction]:
    """Reductions for the blocks of a schedule.

    Where a stage without a drop of its own follows, patches go on in the order of their scores, and that stage cuts
    the end off; otherwise they keep their places.

    Args:
        schedule: Gives the schedule of the moment; its blocks stay the same.
        num_patches: Patches before the first stage.
        num_prefix_tokens: Tokens before the patches.
        drops: Block -> what chooses there; the first block needs one.
        watch: Told what every stage has chosen.

    Returns:
        Block -> reduction. Where all patches stay to the end, tokens pass as they are.
    """
    blocks = list(schedule().stages)

    def stage(block: int, following: int | None) -> Reduction:
        drop, first = drops.get(block), block == blocks[0]
        by_place = following is None or following in drops

        def choose(scores: Tensor, count: int) -> Tensor:
            chosen = top_patches(scores, count) if by_place else best_first(scores, count)
            if watch is not None:
                watch(first, chosen)
            return chosen

        def reduce(tokens: Tensor) -> Tensor:
            patches = tokens.shape[1] - num_prefix_tokens
            if first and patches != num_patches:
                raise UserError(
                    f"This pruner is for {num_patches} patches, and {patches} came: use one per image size."
                )
            if schedule().keep == 1:
                return tokens
            count = schedule().kept(num_patches)[block]
            if drop is not None:
                return drop(tokens, count, choose)
            if watch is not None:
                watch(first, torch.arange(count, device=tokens.device).expand(len(tokens), -1))
            return tokens[:, : num_prefix_tokens + count]

        return reduce

    return {block: stage(block, following) for block, following in zip_longest(blocks, blocks[1:])}


def by_scores(
    tower: VisionTower, schedule: Schedule, scorers: Mapping[int, Scorer], watch: Survivors | None = None
) -> dict[int, Reduction]:
    """Reductions that drop the patches a scorer puts last, and leave the others as they are.

    Args:
        tower: The image encoder.
        schedule: Where patches go and how many stay.
        scorers: Block -> what scores there; the first block needs one.
        watch: Told what every stage has chosen.
    """
    drops = {block: dropping(scorer, tower.num_prefix_tokens) for block, scorer in scorers.items()}
    return staged(lambda: schedule, tower.num_patches, tower.num_prefix_tokens, drops, watch)
