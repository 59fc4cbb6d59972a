"""Reduces tokens inside a model: by hooks on its blocks, or block by block through its tower."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from patchranking.towers import VisionTower
from patchranking.towers.base import TokenHook, token_hooks

__all__ = ["Hooks", "Reduced", "Reduction", "Scorer", "attach_reductions", "detach", "run_reduced"]

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


class Hooks:
    """The hooks of one pruner on one model; a context manager that takes them off again."""

    def __init__(self, handles: list[RemovableHandle]) -> None:
        self._handles = handles

    @property
    def on(self) -> bool:
        """Whether any of them still is on a model that is alive."""
        return any(handle.id in (handle.hooks_dict_ref() or ()) for handle in self._handles)

    def close(self) -> None:
        """Takes them off."""
        for handle in self._handles:
            handle.remove()
        _forget_compiled()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def attach_reductions(tower: VisionTower, reductions: Mapping[int, Reduction]) -> Hooks:
    """Hooks reductions before blocks of the model behind ``tower``.

    The model's classes, parameters and attention kernels stay untouched; a reduction that returns its argument leaves
    the output bit-identical. Where tokens need no gradient, a reduction adds none. The model can be copied and pickled
    if the reductions can: its copies have hooks of their own, which ``detach`` takes off. Code that ``torch.compile``
    made before is compiled anew, here and when the hooks come off.

    Args:
        tower: The image encoder.
        reductions: Block index -> reduction; the tower's depth stands for "after the last block".

    Returns:
        The hooks; their ``close()`` restores the model.
    """
    handles = [
        tower.blocks[-1].register_forward_hook(_After(reduce))
        if block == tower.depth
        else tower.blocks[block].register_forward_pre_hook(_Before(reduce))
        for block, reduce in reductions.items()
    ]
    _forget_compiled()
    return Hooks(handles)


def detach(model: nn.Module | VisionTower) -> None:
    """Restores a model exactly, whatever pruner was attached to it, also when that pruner is lost.

    Args:
        model: Any module; copies of attached models and wrappers of them too. One that is not pruned stays as it is.
    """
    for hooks, key in list(token_hooks(model.module if isinstance(model, VisionTower) else model)):
        del hooks[key]
    _forget_compiled()


def _forget_compiled() -> None:
    """Has compiled code look at the hooks again: it has no guards on them (pytorch/pytorch#117758)."""
    if "torch._dynamo" in sys.modules and not torch.compiler.is_compiling():
        torch.compiler.reset()


class _Hook(TokenHook):
    """Reduces tokens inside a model, without a graph where the tokens have none."""

    def __init__(self, reduce: Reduction) -> None:
        self.reduce = reduce

    def reduced(self, tokens: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and tokens.requires_grad):
            return self.reduce(tokens).tokens


class _Before(_Hook):
    """Reduces the tokens that enter a block."""

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self.reduced(inputs[0]), *inputs[1:])


class _After(_Hook):
    """Reduces the tokens that leave the last block."""

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], tokens: Tensor) -> Tensor:
        return self.reduced(tokens)


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
