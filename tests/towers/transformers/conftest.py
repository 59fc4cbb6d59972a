from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers.models.siglip2.image_processing_siglip2 import convert_image_to_patches

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 3}
WORDS = ["a", "photo", "of", "the", "sun", "red", "small", "umbrella"]

# Tokens before the words of the vocabulary, those around a text, the one that pads, and what the tokenizer returns.
TOKENIZERS = {
    "clip": (["<s>", "<e>"], "<s> $A <e>", "<e>", ["input_ids", "attention_mask"]),
    "metaclip_2": (["<s>", "<pad>", "<e>"], "<s> $A <e>", "<pad>", ["input_ids", "attention_mask"]),
    "siglip": (["<pad>", "<e>"], "$A <e>", "<e>", ["input_ids"]),
    "siglip2": (["<pad>", "<e>"], "$A <e>", "<pad>", ["input_ids", "attention_mask"]),
}
TOKENIZERS |= dict.fromkeys(("clipseg", "owlvit", "owlv2"), TOKENIZERS["clip"])
TOKENIZERS |= {"altclip": TOKENIZERS["metaclip_2"]}
TOKENIZERS |= {
    name: (["<pad>", "<s>", "<e>"], "<s> $A <e>", "<pad>", ["input_ids", "attention_mask"])
    for name in ("chinese_clip", "blip")
}


def make_tokenizer(family: str, longest: int = 12) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer of a few words that pads, begins and ends texts as that of a family does."""
    special, template, pad, returned = TOKENIZERS[family]
    numbers = {token: number for number, token in enumerate([*special, "<unk>", *WORDS])}
    words = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    around = [(token, numbers[token]) for token in special if token in template]
    words.post_processor = processors.TemplateProcessing(single=template, special_tokens=around)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<unk>",
        pad_token=pad,
        eos_token="<e>",
        model_max_length=longest,
        model_input_names=returned,
    )


def _config(kind: type, **vision: object) -> transformers.PreTrainedConfig:
    config = kind.config_class
    family = config.model_type.removesuffix("_vision_model")
    sizes = {**SIZES, "image_size": 32, "patch_size": 8}
    if family == "siglip2":
        sizes = {**SIZES, "num_patches": 16, "patch_size": 8}
    elif family.startswith("dinov2"):
        del sizes["intermediate_size"]
        sizes["mlp_ratio"] = 2
    elif family == "blip":
        sizes["initializer_range"] = 0.1
    if "registers" in family or family == "dinov3_vit":
        sizes["num_register_tokens"] = 3
    sizes |= vision
    if "vision_config" not in config.sub_configs:
        return config(**sizes, num_labels=7, **({"projection_dim": 24} if "Projection" in kind.__name__ else {}))
    special, _, pad, _ = TOKENIZERS.get(family, TOKENIZERS["clip"])
    text = {**SIZES, "num_hidden_layers": 2, "vocab_size": 32, "max_position_embeddings": 16}
    text |= {"eos_token_id": special.index("<e>"), "pad_token_id": special.index(pad), "bos_token_id": 0}
    text |= {"project_dim": 24} if family == "altclip" else {}
    text |= {"projection_size": 32} if "siglip" in family else {}
    return config(text_config=text, vision_config=sizes, projection_dim=24, num_labels=7)


def encode(model: nn.Module, pixels: Tensor) -> Tensor:
    """The image feature as a user of the library gets it."""
    if "Siglip2" in type(model).__name__:
        flat = torch.stack([convert_image_to_patches(image, 8) for image in pixels])
        shapes = torch.tensor([[4, 4]] * len(flat))
        given = {"pixel_values": flat, "spatial_shapes": shapes, "pixel_attention_mask": torch.ones(len(flat), 16)}
    else:
        given = {"pixel_values": pixels}
    if hasattr(model, "get_image_features"):
        return model.get_image_features(**given).pooler_output
    found = model(**given)
    return next(found[name] for name in ("logits", "image_embeds", "pooler_output") if name in found)


@dataclass
class Made:
    """A small random model of a class of transformers, and its own image features."""

    model: nn.Module
    encode: Callable[[Tensor], Tensor]


def make(name: str, attention: str = "sdpa", **vision: object) -> Made:
    """A small random model of a class by its name, without zeros among its weights."""
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    model = kind(_config(kind, **vision)).eval()
    if kind.config_class.model_type.split("_")[0] != "blip":
        model.set_attn_implementation(attention)
    for weight in model.parameters():
        if not weight.any():
            nn.init.normal_(weight, std=0.1)
    return Made(model.requires_grad_(False), partial(encode, model))


def save(model: nn.Module, folder: Path, size: int = 32) -> str:
    """Saves a model with its image processor and tokenizer; returns the MODEL argument."""
    family = model.config.model_type.removesuffix("_vision_model")
    if family == "siglip2":
        processor = transformers.Siglip2ImageProcessor(patch_size=8, max_num_patches=16)
    elif family.startswith("dino"):
        edge, crop = {"shortest_edge": size + 8}, {"height": size, "width": size}
        processor = transformers.BitImageProcessor(size=edge, crop_size=crop)
    else:
        processor = transformers.ViTImageProcessor(size={"height": size, "width": size}, image_mean=[0.2, 0.3, 0.4])
    processor.save_pretrained(folder)
    if hasattr(model, "get_text_features"):
        make_tokenizer(family).save_pretrained(folder)
    model.save_pretrained(folder)
    return f"hf:{folder}"


@pytest.fixture(name="encode", scope="session")
def encode_fixture() -> Callable[..., Tensor]:
    """Makes a model's image features as a user of the library does."""
    return encode


@pytest.fixture(name="save", scope="session")
def save_fixture() -> Callable[..., str]:
    """Saves a model with its image processor and tokenizer and returns the MODEL argument."""
    return save


@pytest.fixture(name="make", scope="session")
def make_fixture() -> Callable[..., Made]:
    """Makes a small random model of a class of transformers by its name."""
    return make


@pytest.fixture(name="make_tokenizer", scope="session")
def make_tokenizer_fixture() -> Callable[..., transformers.PreTrainedTokenizerFast]:
    """Makes the tokenizer of a family by its model type."""
    return make_tokenizer
