"""Keeps consumers of the whole grid of patches from taking a pruned model's tokens for one."""

from __future__ import annotations

import sys
import warnings
from types import FrameType

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from patchranking.errors import UserError
from patchranking.towers import VisionTower
from patchranking.towers.hooks import TokenHook

__all__ = ["check_grid", "watch_hidden_states"]

_MAPS = ("forward_intermediates", "get_intermediate_layers", "image_embedder", "image_text_embedder")
"""Functions of open_clip, timm and transformers that lay tokens out as a map of the picture."""
_HEADS = ("ObjectDetection", "Segmentation", "DepthEstimation", "Backbone")
"""Ends of the names of models of transformers that do so."""


def check_grid() -> None:
    """Raises UserError where fewer patches go on and the caller lays them out as a map.

    These callers run the blocks like any other and give a hook no sign, so they are told by their names.
    """
    frame: FrameType | None = None if torch.compiler.is_compiling() else sys._getframe(1)
    while frame is not None:
        if (caller := _mapping(frame)) is not None:
            raise UserError(
                f"{caller} needs every patch of the picture, and this model is pruned: detach the pruner first, "
                "patchranking.detach(model), or set its keep rate to 1."
            )
        frame = frame.f_back


def _mapping(frame: FrameType) -> str | None:
    """The name of what runs in a frame, where it lays tokens out as a map."""
    name = frame.f_code.co_name
    if name == "forward":
        kind = type(frame.f_locals.get("self"))
        known = kind.__module__.startswith("transformers.") and kind.__name__.endswith(_HEADS)
        return kind.__name__ if known else None
    return name if name in _MAPS else None


def watch_hidden_states(tower: VisionTower) -> list[RemovableHandle]:
    """Hooks a warning to the model behind a tower that comes where it returns hidden states of some patches only."""
    return [tower.module.register_forward_hook(_HiddenStates())] if hasattr(tower.module, "config") else []


class _HiddenStates(TokenHook):
    """Warns where not all hidden states have as many tokens."""

    def __call__(self, module: nn.Module, inputs: object, output: object) -> None:
        states = getattr(output, "hidden_states", None) or ()
        numbers = [state.shape[1] for state in states if state is not None]  # those that were asked for
        if len(set(numbers)) > 1 and not torch.compiler.is_compiling():
            warnings.warn(
                f"This model is pruned: its hidden states have {numbers[0]} tokens at first and {min(numbers)} later, "
                "of the patches that stay, so they are no map of the picture.",
                stacklevel=2,
            )
