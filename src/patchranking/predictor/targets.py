"""What of the dense model a pruned one is to preserve: its image feature, or the patch tokens that it hands on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from patchranking.errors import UserError
from patchranking.pruning.attach import Reduced
from patchranking.pruning.schedule import Schedule
from patchranking.pruning.select import gather_tokens
from patchranking.ranking.objectives import feature_damage
from patchranking.towers import VisionTower

__all__ = ["FEATURE", "Feature", "HandedOn", "Target", "check_handed_on", "handed_on_after", "token_damage"]


class Target(ABC):
    """What is computed once of the dense model, and how far a pruned one is from it.

    Attributes:
        stop: Blocks that run before it; None for all.
        stored: The type in which it is kept in a file.
    """

    stop: int | None = None
    stored: Any = np.float32

    @abstractmethod
    def check(self, tower: VisionTower) -> None:
        """Raises UserError when predictors cannot be distilled from it on this model, before any work is done."""

    @abstractmethod
    def shape(self, tower: VisionTower) -> tuple[int, ...]:
        """The shape of what is kept of one image."""

    @abstractmethod
    def dense(self, tower: VisionTower, tokens: Tensor) -> Tensor:
        """What is kept of the tokens that the dense model has after ``stop`` blocks, ``(batch, *shape)``."""

    @abstractmethod
    def damage(self, tower: VisionTower, found: Reduced, dense: Tensor) -> Tensor:
        """How far the tokens that a pruned model has there are from what ``dense`` gave, ``(batch,)``."""


class Feature(Target):
    """The image feature, by its cosine distance."""

    def check(self, tower: VisionTower) -> None:
        tower.check_gates()

    def shape(self, tower: VisionTower) -> tuple[int, ...]:
        return (tower.feature_size,)

    def dense(self, tower: VisionTower, tokens: Tensor) -> Tensor:
        return tower.pool(tokens)

    def damage(self, tower: VisionTower, found: Reduced, dense: Tensor) -> Tensor:
        """Patches that are half gone count half where patches are pooled, merged ones count once."""
        return feature_damage(tower.pool(found.tokens, gates=_gates(tower, found)), dense)


FEATURE = Feature()


class HandedOn(Target):
    """The patch tokens that enter a block, or leave the last one, without the final norm; prefix tokens do not count.

    Vision-language models read them so: ``hidden_states[stop]`` of transformers, LLaVA's ``vision_feature_layer``.

    They are kept as unit vectors, whose entries fit half precision whatever those of the tokens are.

    Args:
        stop: Blocks that run before.
    """

    stored = np.float16

    def __init__(self, stop: int) -> None:
        self.stop = stop

    def check(self, tower: VisionTower) -> None:
        tower.check_mask()

    def shape(self, tower: VisionTower) -> tuple[int, ...]:
        return tower.num_patches, tower.width

    def dense(self, tower: VisionTower, tokens: Tensor) -> Tensor:
        return F.normalize(tokens[:, tower.num_prefix_tokens :].float(), dim=-1)

    def damage(self, tower: VisionTower, found: Reduced, dense: Tensor) -> Tensor:
        patches = found.tokens[:, tower.num_prefix_tokens :]
        return token_damage(patches, dense, found.keep_indices, _gates(tower, found))


def token_damage(
    tokens: Tensor, dense: Tensor, keep_indices: Tensor | None = None, gates: Tensor | None = None
) -> Tensor:
    """Mean cosine distance of the patches that stay, each to the dense token of its own place.

    A patch that others merged into counts once, like any other, since a consumer reads it once. A patch whose gate is
    half open counts half, but its gate learns nothing from its own distance: a choice that did would favour patches
    that are easy to preserve. It learns by what the patch does to the others.

    Args:
        tokens: Patches that stay, ``(batch, kept, width)``.
        dense: Patches of the dense model, ``(batch, patches, width)``.
        keep_indices: The places of those that stay, ``(batch, kept)``; all in order when omitted.
        gates: How far each is open, 0 ... 1, ``(batch, kept)``; wide open when omitted.

    Returns:
        0 ... 2, float32, ``(batch,)``.
    """
    own = dense if keep_indices is None else gather_tokens(dense, keep_indices, 0)
    apart = feature_damage(tokens, own)
    if gates is None:
        return apart.mean(1)
    weights = gates.detach().to(apart)
    return (apart * weights).sum(1) / weights.sum(1)


def _gates(tower: VisionTower, found: Reduced) -> Tensor | None:
    """How far the gates of patches are open, by their sizes."""
    if found.sizes is None:
        return None
    return found.sizes[:, tower.num_prefix_tokens :].clamp(max=1).to(found.tokens)


def handed_on_after(layer: int, depth: int) -> int:
    """How many of ``depth`` blocks run before ``hidden_states[layer]``, in which 0 is what enters the first block.

    Raises:
        UserError: If there is no such hidden state, or no block runs before it.
    """
    blocks = layer if layer >= 0 else depth + 1 + layer
    if not 1 <= blocks <= depth:
        raise UserError(
            f"This model has {depth} blocks, and hidden_states[{layer}] is left by none of them: --layer is 1 to "
            f"{depth}, or -{depth} to -1 from the end."
        )
    return blocks


def check_handed_on(schedule: Schedule, layer: int, depth: int) -> None:
    """Raises UserError when patches are dropped too late for ``hidden_states[layer]``."""
    blocks = handed_on_after(layer, depth)
    if late := [block for block in schedule.stages if block >= blocks]:
        raise UserError(
            f"hidden_states[{layer}] is what block {blocks - 1} leaves, and patches that are dropped before block "
            f"{late[0]} are still in it: drop them before block {blocks - 1} at the latest."
        )
