"""One view, ``VisionTower``, of the image encoders of open_clip, transformers and timm."""

from __future__ import annotations

import importlib
import sys

from torch import nn

from patchranking.errors import UserError
from patchranking.towers.base import VisionTower

__all__ = ["VisionTower", "as_tower"]

_LIBRARIES = ("open_clip", "transformers", "timm")


def as_tower(model: nn.Module | VisionTower) -> VisionTower:
    """Returns the tower view of a model.

    Args:
        model: An open_clip ``CLIP`` or ``CustomTextCLIP`` (or its ``visual``), a transformers ``CLIPModel`` or
            ``CLIPVisionModelWithProjection``, a timm ``VisionTransformer``, or a tower, which is returned as it is.

    Raises:
        UserError: If the model is none of these.
    """
    if isinstance(model, VisionTower):
        return model
    for library in _LIBRARIES:
        if library in sys.modules:
            tower = importlib.import_module(f"patchranking.towers.{library}").wrap(model)
            if tower is not None:
                return tower
    raise UserError(
        f"{type(model).__name__} is not supported: patchranking works on open_clip CLIP and CustomTextCLIP with the "
        "built-in VisionTransformer, transformers CLIPModel and CLIPVisionModelWithProjection, and timm "
        "VisionTransformer."
    )
