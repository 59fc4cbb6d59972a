"""Reduces tokens inside a running model: forward pre-hooks on its blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from patchranking.towers import VisionTower

__all__ = ["Reduction", "Scorer", "attach_reductions"]

Scorer = Callable[[Tensor], Tensor]
"""Maps tokens ``(batch, prefix + patches, width)`` to importance ``(batch, patches)``, higher = keep."""

Reduction = Callable[[Tensor], Tensor]
"""Maps the tokens that enter a block, ``(batch, tokens, width)``, to those that shall enter it, fewer as a rule."""


def attach_reductions(tower: VisionTower, reductions: Mapping[int, Reduction]) -> ExitStack:
    """Hooks reductions before blocks of the model behind ``tower``.

    The model's classes, parameters and attention kernels stay untouched; a reduction that returns its argument leaves
    the output bit-identical.

    Args:
        tower: The image encoder.
        reductions: Block index -> reduction; the tower's depth stands for "after the last block".

    Returns:
        The hooks; its ``close()`` restores the model.
    """

    def hook(reduce: Reduction) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
        return lambda _, inputs: (reduce(inputs[0]), *inputs[1:])

    def after(reduce: Reduction) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        return lambda _, __, tokens: reduce(tokens)

    hooks = ExitStack()
    for block, reduce in reductions.items():
        if block == tower.depth:
            hooks.callback(tower.blocks[-1].register_forward_hook(after(reduce)).remove)
        else:
            hooks.callback(tower.blocks[block].register_forward_pre_hook(hook(reduce)).remove)
    return hooks
