"""Copies of a model that need no memory of their own."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["copied"]


def copied(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of a model in a floating type, on the same weights where they have that type already; hooks are its own.

    Args:
        model: Any model.
        dtype: Of the copy's weights.
    """
    weights: Sequence[Tensor] = (*model.parameters(), *model.buffers())
    if all(weight.dtype == dtype for weight in weights if weight.is_floating_point()):
        return copy.deepcopy(model, {id(weight): weight for weight in weights})
    return copy.deepcopy(model).to(dtype)
