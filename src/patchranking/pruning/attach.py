"""Reduces tokens inside a model: by hooks on its blocks, or block by block through its tower."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

from torch import Tensor, nn

from patchranking.towers import VisionTower

__all__ = ["Reduced", "Reduction", "Scorer", "attach_reductions", "run_reduced"]

Scorer = Callable[[Tensor], Tensor]
"""Maps tokens ``(batch, prefix + patches, width)`` to importance ``(batch, patches)``, higher = keep."""


class Reduced(NamedTuple):
    """What a reduction leaves.

    Attributes:
        tokens: The tokens that go on, ``(batch, tokens, width)``.
        keep_indices: Which of the patches that came are kept, ``(batch, kept)``, in the order in which they go on;
            None where all are, or where patches were mixed.
    """

    tokens: Tensor
    keep_indices: Tensor | None = None


Reduction = Callable[[Tensor], Reduced]
"""Maps the tokens that enter a block, ``(batch, tokens, width)``, to those that go on, usually fewer."""


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

    def before(reduce: Reduction) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
        return lambda _, inputs: (reduce(inputs[0]).tokens, *inputs[1:])

    def after(reduce: Reduction) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        return lambda _, __, tokens: reduce(tokens).tokens

    hooks = ExitStack()
    for block, reduce in reductions.items():
        if block == tower.depth:
            hooks.callback(tower.blocks[-1].register_forward_hook(after(reduce)).remove)
        else:
            hooks.callback(tower.blocks[block].register_forward_pre_hook(before(reduce)).remove)
    return hooks


def run_reduced(
    tower: VisionTower, tokens: Tensor, start: int, reductions: Mapping[int, Reduction], stop: int | None = None
) -> Reduced:
    """Runs blocks ``start`` to ``stop - 1`` with reductions before them, as the model does once they are attached.

    Args:
        tower: The image encoder.
        tokens: Tokens that enter block ``start``, ``(batch, prefix + patches, width)``.
        start: First block.
        reductions: Block index, at least ``start`` -> reduction; the tower's depth stands for "after the last block".
        stop: One past the last block; the tower's depth when omitted.

    Returns:
        The tokens after block ``stop - 1``, and which patches of those in ``tokens`` are kept.
    """
    keep_indices = None
    for block, reduce in sorted(reductions.items()):
        tokens, chosen = reduce(tower.run(tokens, start, block))
        if chosen is not None:
            keep_indices = chosen if keep_indices is None else keep_indices.gather(1, chosen)
        start = block
    return Reduced(tower.run(tokens, start, stop), keep_indices)
