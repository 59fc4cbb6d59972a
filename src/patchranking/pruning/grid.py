"""Keeps consumers of the whole grid of patches from taking a pruned model's tokens for one."""

from __future__ import annotations

import sys
from types import FrameType

import torch

from patchranking.errors import UserError

__all__ = ["check_grid"]

_MAPS = ("forward_intermediates", "get_intermediate_layers")
"""Functions of open_clip and timm that lay the tokens of every block out as a map of the picture."""


def check_grid() -> None:
    """Raises UserError where fewer patches go on and the caller lays them out as a map.

    These callers run the blocks like any other and give a hook no sign, so they are told by their names.
    """
    if torch.compiler.is_compiling():
        return
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name in _MAPS:
            raise UserError(
                f"{frame.f_code.co_name} needs every patch of the picture, and this model is pruned: detach the pruner "
                "first, patchranking.detach(model), or set its keep rate to 1."
            )
        frame = frame.f_back
