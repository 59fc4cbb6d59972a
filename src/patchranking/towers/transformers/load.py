"""Loads a model of transformers by what its configuration says it is, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import transformers
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from PIL import Image
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES
from transformers.utils import logging

from patchranking.errors import UserError
from patchranking.towers import VisionTower, as_text_tower, as_tower
from patchranking.towers.loaded import LoadedModel
from patchranking.towers.preprocessing import Preprocessing, read_preprocessing
from patchranking.towers.transformers.families import CLASSES, FAMILIES, family_name
from patchranking.towers.transformers.siglip2 import Siglip2Tower

__all__ = ["load"]

_WITH_A_WHOLE_ENCODER = ("clipseg", "deit", "dinov2", "dinov2_with_registers", "dinov3_vit", "owlv2", "owlvit", "vit")
"""Model types of which every class, say one for segmentation, holds what ``AutoModel`` loads."""


def load(name: str, path: str) -> LoadedModel:
    """Loads a model of the Hub or of a folder.

    Args:
        name: The MODEL argument, for messages.
        path: The name on the Hub, or the folder.

    Raises:
        UserError: If the configuration names a class that is not supported, before weights are downloaded, or if
            weights are missing.
    """
    config, _ = transformers.PreTrainedConfig.get_config_dict(path)
    model = _with_weights(name, path, _class(name, path, config))
    tower = as_tower(model)
    processor = transformers.AutoImageProcessor.from_pretrained(path)
    preprocess: Callable[[Image.Image], Tensor] = partial(_processed, processor)
    if isinstance(tower, Siglip2Tower):
        preprocess = partial(_squeezed, processor, tower.grid, tower.image_size)
    size = tuple(preprocess(Image.new("RGB", tower.image_size)).shape[1:])
    if size != tower.image_size:
        if not tower.any_size:
            raise UserError(
                f"'{name}' takes images of {tower.image_size} pixels, and its image processor makes {size}: correct "
                "its preprocessor_config.json."
            )
        tower.module.config.image_size = size
        tower = as_tower(model)
    text = None
    if hasattr(model, "get_text_features"):
        text = as_text_tower(model, transformers.AutoTokenizer.from_pretrained(path))
    scale = model.logit_scale.exp().item() if hasattr(model, "logit_scale") else 1.0
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ([0.0] * 3, [1.0] * 3)
    numbers = _numbers(processor, tower, mean, std)
    return LoadedModel(name, model, tower, preprocess, text, scale, mean, std, numbers)


def _class(name: str, path: str, config: Mapping[str, Any]) -> Any:
    """The class of transformers that a configuration stands for."""
    if "model_type" not in config:
        raise UserError(
            f"Could not load the model '{name}' (no config.json names its model_type): a model of open_clip is "
            "open_clip:hf-hub:NAME, or open_clip:local-dir:PATH in a folder."
        )
    kind, named = config["model_type"], list(config.get("architectures") or [])
    if kind == "timm_wrapper":
        raise UserError(f"'{name}' is a model of timm: give timm:hf_hub:{path}, or timm:local-dir:{path} for a folder.")
    family, usual = kind.removesuffix("_vision_model"), MODEL_MAPPING_NAMES.get(kind)
    what = f"'{name}' is a {(named or [usual or kind])[0]}, which is not supported"
    if family not in FAMILIES:
        raise UserError(f"{what}: of transformers, patchranking takes the model types {', '.join(FAMILIES)}.")
    fitting = [one for one in named if one in CLASSES and family_name(_of(one)) == family]
    if usual in CLASSES and (set(named) <= set(CLASSES) or kind in _WITH_A_WHOLE_ENCODER):
        fitting.append(usual)
    if not fitting:
        known = ", ".join(one for one in CLASSES if family_name(_of(one)) == family)
        raise UserError(f"{what}: of this model type, patchranking takes {known}.")
    return _of(fitting[0])


def _of(class_name: str) -> Any:
    return getattr(transformers, class_name)


def _with_weights(name: str, path: str, kind: Any) -> Any:
    """A model with its weights; a pooler that has none was never trained, and goes."""
    with _quiet():
        model, report = kind.from_pretrained(
            path, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
    missing = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    if missing and all(key.startswith("pooler.") for key in missing):
        model.pooler, missing = None, set()
    if missing:
        raise UserError(
            f"'{name}' is no complete {kind.__name__}: it lacks {len(missing)} weights such as {min(missing)}."
        )
    return model


def _processed(processor: Any, image: Image.Image) -> Tensor:
    return processor(images=image, return_tensors="pt")["pixel_values"][0]


def _squeezed(processor: Any, grid: tuple[int, int], size: tuple[int, int], image: Image.Image) -> Tensor:
    """Squeezes a picture into the square that a tower takes, as SigLIP 2 models of a fixed size do."""
    (rows, columns), (height, width) = grid, size
    square = image.resize((width, height), Image.Resampling.BILINEAR)
    found = processor(images=square, max_num_patches=rows * columns, return_tensors="pt")["pixel_values"][0]
    patches = found.view(rows, columns, height // rows, width // columns, 3)
    return patches.permute(4, 0, 2, 1, 3).reshape(3, height, width)


def _numbers(processor: Any, tower: VisionTower, mean: Sequence[float], std: Sequence[float]) -> Preprocessing | None:
    """What becomes of a picture, by numbers; None where they cannot say it."""
    about = {"size": tower.image_size, "mean": mean, "std": std, "resize_mode": "squash"}
    if isinstance(tower, Siglip2Tower):
        return read_preprocessing(about | {"interpolation": "bilinear"})
    about["interpolation"] = Image.Resampling(processor.resample).name.lower()
    given = dict(processor.size)
    if getattr(processor, "do_center_crop", False) and given.get("shortest_edge"):
        return read_preprocessing(
            about | {"resize_mode": "shortest", "short_side": given["shortest_edge"], "floors": True}
        )
    return read_preprocessing(about) if (given.get("height"), given.get("width")) == tower.image_size else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides transformers' weight-loading bar and report, and leaves the bars of downloads as they are."""
    verbosity, bar, no_downloads = (
        logging.get_verbosity(),
        logging.is_progress_bar_enabled(),
        are_progress_bars_disabled(),
    )
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if not no_downloads:
        enable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
        if no_downloads:
            disable_progress_bars()
