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


def _unwrapped(model: Any) -> Any:
    """The model inside the wrappers that share it.

    These are torch.compile's, DataParallel's, DistributedDataParallel's and PEFT's, those of transformers around timm,
    its pipelines, and sentence-transformers' models.

    Raises:
        UserError: If a wrapper copies or shards the model.
    """
    if isinstance(model, nn.DataParallel) and len(model.device_ids) > 1:
        raise UserError(
            "DataParallel copies the model to every GPU in every call, and a pruner cannot follow: use "
            "DistributedDataParallel, or one GPU."
        )
    if type(model).__name__ == "FullyShardedDataParallel":
        raise UserError("FullyShardedDataParallel splits the weights up: give the model before it is wrapped.")
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return _unwrapped(model.module)
    if isinstance(model, nn.Module) and hasattr(model, "_orig_mod"):
        return _unwrapped(model._orig_mod)
    if "peft" in sys.modules and isinstance(model, sys.modules["peft"].PeftModel):
        return _unwrapped(model.get_base_model())
    library, names = type(model).__module__.partition(".")[0], {kind.__name__ for kind in type(model).__mro__}
    if library == "transformers" and names & {"TimmWrapperModel", "TimmWrapperForImageClassification"}:
        return _unwrapped(model.timm_model)
    if library == "transformers" and "Pipeline" in names:
        return _unwrapped(model.model)
    if library == "sentence_transformers":
        return next((part for part in model.modules() if type(part).__module__.startswith("transformers.")), model)
    return model


def _tower(model: Any) -> VisionTower | None:
    return next((tower for views in _views() if (tower := views.wrap(model)) is not None), None)


def as_tower(model: nn.Module | VisionTower) -> VisionTower:
    """Returns the tower view of a model.

    Args:
        model: An open_clip ``CLIP``, ``CustomTextCLIP`` or ``CoCa`` (or its ``visual``), a transformers CLIP, SigLIP,
            ViT, DeiT, DINOv2, DINOv3, BLIP or another of ``towers.transformers.families.CLASSES``, a timm
            ``VisionTransformer`` or ``Eva``, one of these inside the wrapper of ``torch.compile``, ``DataParallel`` on
            one device, ``DistributedDataParallel``, PEFT, sentence-transformers, or transformers' ``TimmWrapperModel``
            and pipelines, or a tower, which is returned as it is.

    Raises:
        UserError: If the model is none of these; where it holds one, the sentence says how to get at it.
    """
    if isinstance(model, VisionTower):
        return model
    model = _unwrapped(model)
    if (tower := _tower(model)) is not None:
        return tower
    for name, part in model.named_modules() if isinstance(model, nn.Module) else ():
        if _tower(part) is not None:
            raise UserError(
                f"{type(model).__name__} is not supported, but holds a model that is: give "
                f"model.get_submodule('{name}'), a {type(part).__name__}."
            )
    raise UserError(
        f"{type(model).__name__} is not supported: patchranking works on open_clip CLIP, CustomTextCLIP and CoCa with "
        "a vision transformer, transformers CLIP, SigLIP, ViT, DINO and their kin, and timm VisionTransformer and Eva."
    )


def as_text_tower(model: nn.Module, tokenizer: Callable[..., Any]) -> TextTower:
    """Returns the text side of a model.

    Args:
        model: An open_clip ``CLIP``, ``CustomTextCLIP`` or ``CoCa``, or a transformers ``CLIPModel``, ``SiglipModel``
            or another that has ``get_text_features``.
        tokenizer: The one that belongs to it, ``open_clip.get_tokenizer(...)`` or
            ``AutoTokenizer.from_pretrained(...)``.

    Raises:
        UserError: If the model is none of these.
    """
    model = _unwrapped(model)
    for views in _views():
        if (tower := getattr(views, "wrap_text", lambda *_: None)(model, tokenizer)) is not None:
            return tower
    raise UserError(
        f"{type(model).__name__} has no text side that is supported: give an open_clip CLIP, CustomTextCLIP or CoCa, "
        "or a transformers CLIPModel, SiglipModel or another that has get_text_features."
    )
