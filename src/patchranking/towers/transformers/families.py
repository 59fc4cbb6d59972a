"""What patchranking knows of each image encoder of transformers: a few names a family, and one line a class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from patchranking.towers.transformers import pooling
from patchranking.towers.transformers.pooling import Pool

__all__ = ["CLASSES", "FAMILIES", "Family", "Kind", "family_name", "kind_of"]


@dataclass(frozen=True)
class Family:
    """Where an image encoder keeps its parts: dotted names from the encoder, and from each of its blocks.

    Attributes:
        blocks: The blocks.
        pre_norm: What runs between the embeddings and the blocks, if anything.
        norm: The norm after the blocks.
        patches: The layer that embeds patches.
        positions: The position embedding, a parameter or an ``nn.Embedding``; None where blocks rotate instead.
        prefix: Tokens before the patches, apart from registers.
        norms: In a block, the norms before the attention and before the MLP.
        attention: In a block, the attention.
        projections: In the attention, those of queries, keys and values, or the one that makes all three.
        out: In the attention, the projection of what it mixed.
        after: In a block, what passes the output of the attention and what that of the MLP, before they are added.
        maskable: Whether a block takes an ``attention_mask``.
        any_size: Whether the encoder fits its positions to images of any size.
    """

    blocks: str = "encoder.layers"
    pre_norm: str | None = None
    norm: str = "post_layernorm"
    patches: str = "embeddings.patch_embedding"
    positions: str | None = "embeddings.position_embedding"
    prefix: int = 1
    norms: tuple[str, str] = ("layer_norm1", "layer_norm2")
    attention: str = "self_attn"
    projections: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    out: str = "out_proj"
    after: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    maskable: bool = True
    any_size: bool = False


_CLIP = Family(pre_norm="pre_layrnorm")
_SIGLIP = Family(prefix=0)
_OWL = Family(pre_norm="pre_layernorm")
_BLIP = Family(projections=("qkv",), out="projection", maskable=False)
_VIT = Family(
    blocks="layers",
    norm="layernorm",
    patches="embeddings.patch_embeddings.projection",
    positions="embeddings.position_embeddings",
    norms=("layernorm_before", "layernorm_after"),
    attention="attention",
    out="o_proj",
    after=(("dropout",), ("dropout",)),
)
_DINOV2 = replace(
    _VIT,
    blocks="encoder.layer",
    norms=("norm1", "norm2"),
    after=(("layer_scale1", "drop_path"), ("layer_scale2", "drop_path")),
    any_size=True,
)
_DINOV3 = replace(_DINOV2, blocks="model.layer", norm="norm", patches="embeddings.patch_embeddings", positions=None)

FAMILIES: Mapping[str, Family] = {
    "clip": _CLIP,
    "metaclip_2": _CLIP,
    "chinese_clip": _CLIP,
    "altclip": _CLIP,
    "clipseg": replace(_CLIP, any_size=True),
    "siglip": _SIGLIP,
    "siglip2": _SIGLIP,
    "owlvit": _OWL,
    "owlv2": _OWL,
    "blip": _BLIP,
    "vit": _VIT,
    "deit": replace(_VIT, prefix=2),
    "dinov2": _DINOV2,
    "dinov2_with_registers": _DINOV2,
    "dinov3_vit": _DINOV3,
}
"""``config.model_type`` -> where the parts are; the model types of image encoders end in ``_vision_model``."""


@dataclass(frozen=True)
class Kind:
    """What a class of models makes of the tokens after the last block.

    Attributes:
        pool: Turns them into one vector an image.
        head: The layer of the model that this vector passes, if any.
        encoder: Where the class holds its image encoder; a class without such a part is one.
    """

    pool: Pool
    head: str | None = None
    encoder: str = "vision_model"


CLASSES: Mapping[str, Kind] = {
    **{
        f"{name}{what}": Kind(pooling.class_token, "visual_projection")
        for name in ("CLIP", "MetaClip2")
        for what in ("Model", "VisionModelWithProjection")
    },
    **{
        f"{name}Model": Kind(pooling.class_token, "visual_projection")
        for name in ("ChineseCLIP", "AltCLIP", "CLIPSeg", "OwlViT", "Owlv2")
    },
    **{
        f"{name}VisionModel": Kind(pooling.class_token)
        for name in ("CLIP", "MetaClip2", "ChineseCLIP", "AltCLIP", "CLIPSeg", "OwlViT", "Owlv2")
    },
    "CLIPForImageClassification": Kind(pooling.mean_of_raw_patches, "classifier"),
    "MetaClip2ForImageClassification": Kind(pooling.mean_of_raw_patches, "classifier"),
    "SiglipModel": Kind(pooling.by_attention),
    "SiglipVisionModel": Kind(pooling.by_attention),
    "SiglipForImageClassification": Kind(pooling.mean_of_patches, "classifier"),
    "Siglip2Model": Kind(pooling.by_attention),
    "Siglip2VisionModel": Kind(pooling.by_attention),
    "BlipModel": Kind(pooling.class_token_normed_twice, "visual_projection"),
    "BlipVisionModel": Kind(pooling.class_token_normed_twice),
    "ViTModel": Kind(pooling.by_pooler),
    "ViTForImageClassification": Kind(pooling.class_token, "classifier", "vit"),
    "DeiTModel": Kind(pooling.by_pooler),
    "DeiTForImageClassification": Kind(pooling.class_token, "classifier", "deit"),
    "Dinov2Model": Kind(pooling.class_token),
    "Dinov2ForImageClassification": Kind(pooling.class_token_and_mean, "classifier", "dinov2"),
    "Dinov2WithRegistersModel": Kind(pooling.class_token),
    "Dinov2WithRegistersForImageClassification": Kind(
        pooling.class_token_and_mean, "classifier", "dinov2_with_registers"
    ),
    "DINOv3ViTModel": Kind(pooling.class_token),
}
"""Class of transformers -> what it makes of the tokens; its feature is what a user calls the image feature."""


def family_name(model: Any) -> str:
    """The family of a model, or of a class of models, by the model type of its configuration."""
    config = getattr(model, "config_class" if isinstance(model, type) else "config")
    return str(config.model_type).removesuffix("_vision_model")


def kind_of(model: nn.Module) -> Kind | None:
    """What the class of a model, or the class of transformers it derives from, makes of tokens; None if unknown."""
    names = (kind.__name__ for kind in type(model).__mro__ if kind.__module__.startswith("transformers."))
    name = next(names, None)
    return None if name is None else CLASSES.get(name)
