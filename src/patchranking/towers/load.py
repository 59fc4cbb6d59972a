"""Turns a MODEL argument into a model ready to encode images and texts."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import torch

from patchranking.errors import UserError, reason
from patchranking.extras import import_extra
from patchranking.towers import as_text_tower, as_tower
from patchranking.towers.loaded import LoadedModel
from patchranking.towers.preprocessing import read_preprocessing

__all__ = ["MODEL_HELP", "LoadedModel", "load_model", "load_on_worker"]

Loaded = TypeVar("Loaded")

MODEL_HELP = "demo, open_clip:NAME/TAG, open_clip:local-dir:PATH, hf:NAME_OR_PATH or timm:NAME"


def load_model(name: str, device: str | torch.device = "cpu") -> LoadedModel:
    """Loads a model by its MODEL argument.

    Args:
        name: ``demo``, ``open_clip:NAME/TAG``, ``open_clip:local-dir:PATH``, ``hf:NAME_OR_PATH`` or ``timm:NAME``.
        device: Where to put it.

    Raises:
        UserError: If the name is unknown, its library is missing, the weights cannot be loaded or there is no such
            device.
    """
    library, _, rest = name.partition(":")
    rest = re.sub(r"^(local-dir:|)(~.*)", lambda found: found[1] + os.path.expanduser(found[2]), rest)
    loaders = {"demo": _load_demo, "open_clip": _load_open_clip, "hf": _load_transformers, "timm": _load_timm}
    if library not in loaders or (library == "demo") != (not rest):
        raise UserError(f"Unknown model '{name}': give {MODEL_HELP}.")
    _check_device(device)
    try:
        with torch.device("cpu"):
            loaded = loaders[library](name, rest)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"Could not load the model '{name}' ({reason(error, 300)}).") from error
    loaded.model.eval().requires_grad_(False).to(device)
    return loaded


def load_on_worker(load: Callable[[str, str], Loaded], name: str, device: str) -> Loaded:
    """Loads a model in a worker of a Ray cluster, which the sentence then names.

    Args:
        load: ``load_model``, or a function like it.
        name: As there.
        device: As there.
    """
    try:
        return load(name, device)
    except UserError as error:
        raise UserError(f"A Ray worker could not load the model. {error}") from error


def _check_device(device: str | torch.device) -> None:
    try:
        torch.empty(0, device=device)
    except Exception as error:
        said = str(error).strip().partition("\n")[0].partition(". ")[0].rstrip(".")
        raise UserError(f"The device '{device}' cannot be used: {said}.") from error


def _check_folder(path: str) -> None:
    if not Path(path).is_dir():
        raise UserError(f"There is no folder '{path}' to load the model from.")


def _library(module: str, extra: str) -> ModuleType:
    return import_extra(module, f"This model needs {module}", extra)


def _load_demo(name: str, _: str) -> LoadedModel:
    from patchranking.demo import MODEL_DIR

    return _load_transformers(name, str(MODEL_DIR))


def _load_open_clip(name: str, rest: str) -> LoadedModel:
    open_clip = _library("open_clip", "open-clip")
    architecture, tag = (rest, None) if ":" in rest else (rest.partition("/")[0], rest.partition("/")[2] or None)
    if tag is None and ":" not in rest:
        raise UserError(f"'{name}' names no weights: give open_clip:NAME/TAG, for example open_clip:ViT-B-16/openai.")
    from patchranking.towers.open_clip import check_configuration

    if rest.startswith("local-dir:"):
        _check_folder(rest.removeprefix("local-dir:"))
    if (configuration := open_clip.get_model_config(architecture)) is not None:
        check_configuration(architecture, configuration)
    model, preprocess = open_clip.create_model_from_pretrained(architecture, pretrained=tag)
    text = as_text_tower(model, open_clip.get_tokenizer(architecture))
    shown = open_clip.get_model_preprocess_cfg(model)
    scale = model.logit_scale.exp().item()
    normal = (shown["mean"], shown["std"])
    return LoadedModel(name, model, as_tower(model), preprocess, text, scale, *normal, read_preprocessing(shown))


def _load_transformers(name: str, rest: str) -> LoadedModel:
    _library("transformers", "transformers")
    if rest.startswith(("/", ".", "~")):
        _check_folder(rest)
    loaded: LoadedModel = importlib.import_module("patchranking.towers.transformers.load").load(name, rest)
    return loaded


def _load_timm(name: str, rest: str) -> LoadedModel:
    timm = _library("timm", "timm")
    with torch.device("meta"):
        as_tower(timm.create_model(rest))  # before anything is downloaded
    model = timm.create_model(rest, pretrained=True)
    shown = timm.data.resolve_model_data_config(model)
    preprocess = timm.data.create_transform(**shown, is_training=False)
    mode = {"center": "shortest", "squash": "squash"}.get(shown["crop_mode"])
    numbers = read_preprocessing(shown | {"size": shown["input_size"][1:], "resize_mode": mode})
    return LoadedModel(name, model, as_tower(model), preprocess, None, 1.0, shown["mean"], shown["std"], numbers)
