"""The models that coverage.py tries, and the families in which the docs list them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from patchranking.extras import declare_missing_operators

declare_missing_operators()

import open_clip  # noqa: E402
import timm  # noqa: E402
import transformers  # noqa: E402

from patchranking.towers.transformers.families import CLASSES, family_name  # noqa: E402


@dataclass(frozen=True)
class Listed:
    """A model that is tried.

    Attributes:
        library: open_clip, transformers or timm.
        name: Of a configuration, a class or a model.
        family: The line of the docs' table that it is counted in.
        model: The MODEL argument of such a model; None where no public weights load by one.
    """

    library: str
    name: str
    family: str
    model: str | None


_OPEN_CLIP: Mapping[str, str] = {
    "coca": "CoCa",
    "RN": "ResNet",
    "nllb": "NLLB-CLIP",
    "EVA": "EVA-CLIP",
    "PE-Core": "Perception Encoder",
    "MobileCLIP-S": "MobileCLIP-S, 2-S",
    "MobileCLIP2-S": "MobileCLIP-S, 2-S",
    "MobileCLIP": "MobileCLIP-B, 2-B, 2-L",
    "convnext": "ConvNeXt",
    "swin": "Swin",
    "vit_relpos": "ViT with relative positions",
    "vit_": "ViT with average pooling",
    "ViTamin": "ViTamin",
}
"""Start of a configuration's name -> family; for the others see ``_open_clip_family``."""

_TRANSFORMERS: Mapping[str, tuple[str, str | None]] = {
    "clip": ("CLIP", "openai/clip-vit-base-patch32"),
    "metaclip_2": ("MetaCLIP 2", "facebook/metaclip-2-worldwide-huge-quickgelu"),
    "chinese_clip": ("Chinese-CLIP", "OFA-Sys/chinese-clip-vit-base-patch16"),
    "altclip": ("AltCLIP", "BAAI/AltCLIP"),
    "clipseg": ("CLIPSeg", "CIDAS/clipseg-rd64-refined"),
    "owlvit": ("OWL-ViT", "google/owlvit-base-patch32"),
    "owlv2": ("OWLv2", "google/owlv2-base-patch16-ensemble"),
    "siglip": ("SigLIP, SigLIP 2", "google/siglip2-base-patch16-224"),
    "siglip2": ("SigLIP 2 NaFlex, on a square grid", "google/siglip2-base-patch16-naflex"),
    "blip": ("BLIP", None),
    "vit": ("ViT", "google/vit-base-patch16-224"),
    "deit": ("DeiT", "facebook/deit-base-distilled-patch16-224"),
    "dinov2": ("DINOv2", "facebook/dinov2-base"),
    "dinov2_with_registers": ("DINOv2 with registers", "facebook/dinov2-with-registers-base"),
    "dinov3_vit": ("DINOv3", "facebook/dinov3-vitb16-pretrain-lvd1689m"),
}
"""Model type -> family, and weights on the Hub."""

_OTHER_CLASSES = ("SwinModel", "ConvNextModel", "ResNetModel", "BeitModel", "ViTMAEModel", "PvtV2Model")

_TIMM: Mapping[str, Sequence[str]] = {
    "ViT, DeiT": (
        "vit_base_patch16_224",
        "vit_tiny_patch16_224",
        "vit_large_patch16_384",
        "vit_base_patch8_224",
        "deit_base_distilled_patch16_224",
        "deit3_base_patch16_224",
        "flexivit_base",
        "vit_base_patch16_rpn_224",
        "vit_base_patch32_plus_256",
    ),
    "CLIP": ("vit_base_patch16_clip_224", "vit_huge_patch14_clip_378", "vit_base_patch16_clip_quickgelu_224"),
    "DINOv2": ("vit_base_patch14_dinov2", "vit_base_patch14_reg4_dinov2", "vit_giant_patch14_reg4_dinov2"),
    "DINOv3": ("vit_base_patch16_dinov3", "vit_small_plus_patch16_dinov3", "vit_huge_plus_patch16_dinov3"),
    "SigLIP": (
        "vit_base_patch16_siglip_224",
        "vit_so400m_patch14_siglip_378",
        "vit_so400m_patch14_siglip_gap_224",
        "vit_giantopt_patch16_siglip_256",
    ),
    "EVA": (
        "eva02_base_patch14_448",
        "eva02_tiny_patch14_224",
        "eva02_large_patch14_clip_336",
        "eva_giant_patch14_224",
        "eva_large_patch14_196",
    ),
    "Perception Encoder": (
        "vit_pe_core_base_patch16_224",
        "vit_pe_lang_large_patch14_448",
        "vit_pe_spatial_base_patch16_512",
    ),
    "ViT with rotary positions": (
        "vit_base_patch16_rope_224",
        "vit_base_patch16_rope_ape_224",
        "vit_base_patch16_rope_mixed_224",
        "vit_base_patch16_rope_reg1_gap_256",
    ),
    "ViT with average pooling, registers": (
        "vit_medium_patch16_gap_256",
        "vit_base_patch16_reg4_gap_256",
        "vit_so150m_patch16_reg4_map_256",
        "vit_betwixt_patch16_reg4_gap_256",
    ),
    "I-JEPA, AIMv2, BEiT-3, TIPS": (
        "vit_huge_patch14_gap_224",
        "aimv2_large_patch14_224",
        "beit3_base_patch16_224",
        "vit_base_patch14_reg1_tipsv2",
    ),
    "ViT with parallel blocks": ("vit_base_patch16_xp_224", "vit_large_patch14_xp_224"),
    "ViT with a convolutional stem, ViTamin": (
        "vit_base_mci_224",
        "vit_base_r50_s16_224",
        "vit_base_resnet50d_224",
        "vitamin_base_224",
    ),
    "ViT with two paths": ("vit_small_patch16_18x2_224",),
    "ViT with relative positions, BEiT": ("vit_relpos_base_patch16_224", "beit_base_patch16_224"),
    "NaFlex": ("naflexvit_base_patch16_gap", "naflexvit_base_patch16_siglip"),
    "SAM": ("samvit_base_patch16",),
    "ViT of another kind": ("cait_s24_224", "xcit_small_12_p16_224", "volo_d1_224", "crossvit_base_240", "pit_b_224"),
    "Swin, Hiera, DaViT, MaxViT": (
        "swin_base_patch4_window7_224",
        "swinv2_base_window8_256",
        "hiera_base_224",
        "davit_base",
        "maxvit_base_tf_224",
    ),
    "ResNet, ConvNeXt, FastViT, EfficientNet": (
        "resnet50",
        "convnext_base",
        "convnextv2_base",
        "fastvit_mci0",
        "efficientnet_b0",
        "mobilenetv4_conv_small",
    ),
}
"""Family -> models of timm."""


def listed() -> Iterator[Listed]:
    """All that is tried, library by library."""
    for name in open_clip.list_models():
        tags = open_clip.list_pretrained_tags_by_model(name)
        yield Listed("open_clip", name, _open_clip_family(name), f"open_clip:{name}/{tags[0]}" if tags else None)
    for name in CLASSES:
        family, weights = _TRANSFORMERS[family_name(getattr(transformers, name))]
        yield Listed("transformers", name, family, None if weights is None else f"hf:{weights}")
    for name in _OTHER_CLASSES:
        yield Listed("transformers", name, "other classes", None)
    for family, names in _TIMM.items():
        for name in names:
            yield Listed("timm", name, family, f"timm:{name}" if timm.is_model_pretrained(name) else None)


def _open_clip_family(name: str) -> str:
    for start, family in _OPEN_CLIP.items():
        if name.startswith(start):
            return family
    for part, family in (("SigLIP", "SigLIP, SigLIP 2"), ("CLIPA", "CLIPA")):
        if part in name:
            return family
    return "CLIP" if name.startswith("ViT") else "CLIP with another text encoder"
