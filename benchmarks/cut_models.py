"""Models of the real classes, cut to a few blocks and 4 x 4 patches, with weights that are drawn; no network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from patchranking.extras import declare_missing_operators

declare_missing_operators()

import open_clip  # noqa: E402
import timm  # noqa: E402
import transformers  # noqa: E402
from open_clip.model import _build_vision_tower  # noqa: E402

from patchranking.towers import as_tower  # noqa: E402
from patchranking.towers.open_clip import check_configuration  # noqa: E402

BLOCKS, CELLS = 3, 4
_TEXT = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}


@dataclass
class Cut:
    """A model that was cut, and its own image features.

    Attributes:
        model: In evaluation mode.
        encode: Pixels ``(batch, 3, height, width)`` -> ``(batch, features)``, by the library's own call.
    """

    model: nn.Module
    encode: Callable[[Tensor], Tensor]


def image_tower(library: str, name: str) -> str:
    """The class of a model's image tower."""
    if library == "transformers":
        return name
    with torch.device("meta"):
        if library == "timm":
            return type(timm.create_model(name)).__name__
        config = open_clip.get_model_config(name)
        visual = _build_vision_tower(config["embed_dim"], config["vision_cfg"])
    return type(getattr(visual, "trunk", visual)).__name__


def of_open_clip(name: str) -> Cut:
    """The model of a configuration of open_clip, with its image tower's widths and a small text side.

    Raises:
        UserError: If it is refused by its configuration.
    """
    config = open_clip.get_model_config(name)
    check_configuration(name, config)
    vision, text = dict(config["vision_cfg"]), config["text_cfg"]
    if trunk := vision.get("timm_model_name"):
        vision["timm_model_name"] = _cut_timm(trunk)
    else:
        vision |= {"layers": BLOCKS, "image_size": CELLS * vision["patch_size"]}
    parts: dict[str, Any] = {"vision_cfg": vision, "quick_gelu": config.get("quick_gelu", False)}
    if "multimodal_cfg" in config:
        captioning = {"embed_cls": True, "output_tokens": True}
        model = open_clip.CoCa(config["embed_dim"], _TEXT, _TEXT | captioning, **parts)
        return Cut(_drawn(model), lambda pixels: model.encode_image(pixels, normalize=False))
    custom = config.get("custom_text", False) or "hf_model_name" in text
    kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    model = kind(config["embed_dim"], text_cfg=_TEXT, **parts)
    return Cut(_drawn(model), model.encode_image)


def of_transformers(name: str) -> Cut:
    """The model of a class of transformers, by its usual configuration, with a small text side.

    Raises:
        UserError: If it is refused.
    """
    kind = getattr(transformers, name)
    config = kind.config_class()
    with torch.device("meta"):
        as_tower(kind(config))
    vision = getattr(config, "vision_config", config)
    vision.num_hidden_layers = BLOCKS
    if hasattr(vision, "num_patches"):
        vision.num_patches = CELLS**2
    else:
        vision.image_size = CELLS * vision.patch_size
    if vision is not config:
        config.text_config.update({"num_hidden_layers": 1, "vocab_size": 64, "pad_token_id": 0})
    model = kind(config)
    return Cut(_drawn(model), lambda pixels: _image_feature(model, pixels))


def of_timm(name: str) -> Cut:
    """A model of timm, with its widths.

    Raises:
        UserError: If it is refused.
    """
    with torch.device("meta"):
        as_tower(timm.create_model(name))
    model = timm.create_model(_cut_timm(name))
    return Cut(_drawn(model), model)


def _cut_timm(name: str) -> str:
    """The name, in timm's registry, of a model with few blocks and patches."""
    with torch.device("meta"):
        stem: Any = timm.create_model(name).patch_embed
    size = tuple(CELLS * pixels // cells for pixels, cells in zip(stem.img_size, stem.grid_size, strict=True))

    def make(**options: Any) -> nn.Module:
        options.pop("pretrained_cfg", None)
        return timm.create_model(name, **options | {"depth": BLOCKS, "img_size": size})

    make.__name__ = f"cut_{name}"
    if not timm.is_model(make.__name__):
        timm.models.register_model(make)
    return make.__name__


def _image_feature(model: Any, pixels: Tensor) -> Tensor:
    """The image feature as a user of transformers gets it."""
    given: dict[str, Any] = {"pixel_values": pixels}
    if type(model).__name__.startswith("Siglip2"):
        side = pixels.shape[-1] // CELLS
        flat = pixels.unflatten(3, (CELLS, side)).unflatten(2, (CELLS, side)).permute(0, 2, 4, 3, 5, 1)
        shapes = torch.tensor([[CELLS, CELLS]] * len(pixels))
        given = {"pixel_values": flat.flatten(3).flatten(1, 2), "spatial_shapes": shapes, "pixel_attention_mask": None}
    if hasattr(model, "get_image_features"):
        return model.get_image_features(**given).pooler_output
    found = model(**given)
    return next(found[name] for name in ("logits", "image_embeds", "pooler_output") if name in found)


@torch.no_grad()
def _drawn(model: nn.Module) -> nn.Module:
    """Draws all weights: at the start, libraries have heads of zeros, layer scales near zero and even attention."""
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.normal_(std=1.5 * (weight.shape[-1] if weight.ndim == 3 else weight[0].numel()) ** -0.5)
        else:
            weight.add_(0.1 * torch.randn_like(weight))
    return model.eval().requires_grad_(False)
