"""Prunes inside a running model: a forward pre-hook on one block scores, selects and gathers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from patchranking.errors import UserError
from patchranking.pruning.schedule import Schedule
from patchranking.pruning.select import gather_tokens, top_patches
from patchranking.towers import VisionTower

__all__ = ["Scorer", "attach_scorer", "scorer_attached"]

Scorer = Callable[[Tensor], Tensor]
"""Maps tokens ``(batch, prefix + patches, width)`` to importance ``(batch, patches)``, higher = keep."""


def attach_scorer(tower: VisionTower, schedule: Callable[[], Schedule], scorer: Scorer) -> RemovableHandle:
    """Hooks a scorer before a block of the model behind ``tower``.

    The model's classes, parameters and attention kernels stay untouched; with keep 1 the hook does nothing.

    Args:
        tower: The image encoder.
        schedule: Called on every forward, so the keep rate can change while attached; the block must not.
        scorer: Scores the tokens that enter the block.

    Returns:
        The handle whose ``remove()`` restores the model.

    Raises:
        UserError: If the tower has no such block.
    """
    schedule().check(tower)

    def prune(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        tokens, *others = inputs
        patches = tokens.shape[1] - tower.num_prefix_tokens
        if patches != tower.num_patches:
            raise UserError(
                f"This pruner is for {tower.num_patches} patches, and {patches} came: use one per image size."
            )
        kept = schedule().kept(patches)
        if kept == patches:
            return None
        return (gather_tokens(tokens, top_patches(scorer(tokens), kept), tower.num_prefix_tokens), *others)

    return tower.blocks[schedule().block].register_forward_pre_hook(prune)


@contextmanager
def scorer_attached(tower: VisionTower, schedule: Schedule, scorer: Scorer) -> Iterator[None]:
    """Attaches a scorer for the length of a ``with`` block."""
    handle = attach_scorer(tower, lambda: schedule, scorer)
    try:
        yield
    finally:
        handle.remove()
