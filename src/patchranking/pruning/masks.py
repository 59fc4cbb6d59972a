"""The masks that a library hands to the blocks of a pruned model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from patchranking.errors import UserError
from patchranking.towers import VisionTower
from patchranking.towers.hooks import TokenHook

__all__ = ["check_no_mask", "take_masks_off"]


def check_no_mask(inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
    """Raises UserError where a block from whose tokens some are dropped is given a mask."""
    if _masked(inputs, named):
        raise UserError(
            "This model hides patches, as NaFlex models do for the padding of images of different shapes, and a pruner "
            "cannot follow: give images of one shape, or set its keep rate to 1."
        )


def take_masks_off(tower: VisionTower, first: int) -> list[RemovableHandle]:
    """Hooks that take masks off the blocks from ``first`` on where the caller gave none.

    While a model is exported, transformers makes some that hide nothing, of as many tokens as there were at first.
    """
    if not hasattr(tower.module, "config"):
        return []
    given = _Given()
    handles = [tower.module.register_forward_pre_hook(given, with_kwargs=True)]
    return handles + [part.register_forward_pre_hook(_Off(given), with_kwargs=True) for part in tower.blocks[first:]]


def _masked(inputs: tuple[Any, ...], named: dict[str, Any]) -> bool:
    masks = (value for key, value in named.items() if _is_mask(key))
    return any(isinstance(mask, Tensor) for mask in (*inputs[1:], *masks))


def _is_mask(name: str) -> bool:
    return name.endswith(("attention_mask", "attn_mask"))


class _Given(TokenHook):
    """Notes whether a model that is traced is called with a mask."""

    mask = False

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        if torch.compiler.is_compiling():
            self.mask = _masked(inputs, named)


class _Off(TokenHook):
    """Takes the mask off a block of a model that is traced, unless the model was called with one."""

    def __init__(self, given: _Given) -> None:
        self.given = given

    def __call__(
        self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not torch.compiler.is_compiling() or self.given.mask or not _masked(inputs, named):
            return None
        others = (None if isinstance(value, Tensor) else value for value in inputs[1:])
        return (inputs[0], *others), {key: None if _is_mask(key) else value for key, value in named.items()}
