"""One view of the image encoders of open_clip, transformers and timm, and one of their text encoders."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from torch import nn

from patchranking.errors import UserError
from patchranking.towers.base import VisionTower
from patchranking.towers.text import TextTower

__all__ = ["TextTower", "VisionTower", "as_text_tower", "as_tower"]


def _views() -> Iterator[ModuleType]:
    """The views of those libraries that are imported; no model of any other can be there."""
    for library in ("open_clip", "transformers", "timm"):
        if library in sys.modules:
            yield importlib.import_module(f"patchranking.towers.{library}")


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
    for views in _views():
        if (tower := views.wrap(model)) is not None:
            return tower
    raise UserError(
        f"{type(model).__name__} is not supported: patchranking works on open_clip CLIP and CustomTextCLIP with the "
        "built-in VisionTransformer, transformers CLIPModel and CLIPVisionModelWithProjection, and timm "
        "VisionTransformer."
    )


def as_text_tower(model: nn.Module, tokenizer: Callable[..., Any]) -> TextTower:
    """Returns the text side of a model.

    Args:
        model: An open_clip ``CLIP`` or ``CustomTextCLIP``, or a transformers ``CLIPModel``.
        tokenizer: The one that belongs to it, ``open_clip.get_tokenizer(...)`` or
            ``AutoTokenizer.from_pretrained(...)``.

    Raises:
        UserError: If the model is none of these.
    """
    for views in _views():
        if (tower := getattr(views, "wrap_text", lambda *_: None)(model, tokenizer)) is not None:
            return tower
    raise UserError(
        f"{type(model).__name__} has no text side that is supported: give an open_clip CLIP or CustomTextCLIP, or a "
        "transformers CLIPModel."
    )
