"""View of the text encoders of Hugging Face transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from patchranking.towers.text import TextTower
from patchranking.towers.transformers.families import family_name, kind_of

__all__ = ["wrap_text"]


@dataclass(frozen=True)
class _Family:
    """Where a text encoder keeps its parts, as dotted names from the model, and how it takes texts.

    Attributes:
        embedding: The layer that embeds ids.
        blocks: The transformer blocks.
        padding: How texts are padded, in the tokenizer's words.
        causal: Whether no token sees those behind it, so that padding needs no mask.
        reserved: Positions that no token takes.
    """

    embedding: str = "text_model.embeddings.token_embedding"
    blocks: str = "text_model.encoder.layers"
    padding: str = "longest"
    causal: bool = True
    reserved: int = 0


_CLIP = _Family()
_SIGLIP = _Family(padding="max_length", causal=False)
_BERT = _Family("text_model.embeddings.word_embeddings", "text_model.encoder.layer", causal=False)
_ROBERTA = replace(
    _BERT,
    embedding="text_model.roberta.embeddings.word_embeddings",
    blocks="text_model.roberta.encoder.layers",
    reserved=2,
)

_FAMILIES: Mapping[str, _Family] = {
    "clip": _CLIP,
    "metaclip_2": _CLIP,
    "clipseg": _CLIP,
    "owlvit": _CLIP,
    "owlv2": _CLIP,
    "siglip": _SIGLIP,
    "siglip2": _SIGLIP,
    "chinese_clip": _BERT,
    "blip": _BERT,
    "altclip": _ROBERTA,
}


def wrap_text(model: Any, tokenizer: Any) -> TextTower | None:
    """Returns the text side of a transformers model with its tokenizer; None where it has none.

    Texts are padded as the model was trained with them, and the padding is masked where the tokenizer says so and
    other tokens would see it.
    """
    if kind_of(model) is None or not hasattr(model, "get_text_features"):
        return None
    family = _FAMILIES.get(family_name(model))
    if family is None:
        return None
    positions = model.config.text_config.max_position_embeddings - family.reserved
    longest = min(tokenizer.model_max_length, positions)
    masked = not family.causal and "attention_mask" in tokenizer.model_input_names

    def tokenize(texts: list[str]) -> Tensor:
        found = tokenizer(texts, padding=family.padding, truncation=True, max_length=longest, return_tensors="pt")
        return found["input_ids"].to(model.device)

    def encode(ids: Tensor) -> Tensor:
        mask = _real(ids, tokenizer).long() if masked else None
        return F.normalize(model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output, dim=-1)

    return TextTower(
        tokenize=tokenize,
        encode=encode,
        context_length=longest,
        embedding=attrgetter(family.embedding)(model),
        blocks=attrgetter(family.blocks)(model),
        tokenizer=tokenizer,
    )


def _real(ids: Tensor, tokenizer: Any) -> Tensor:
    """Which ids belong to a text; where padding is told by its end, the first of these is the end itself."""
    padding = ids.eq(tokenizer.pad_token_id)
    return ~padding | ((padding.cumsum(1) == 1) & (tokenizer.pad_token_id == tokenizer.eos_token_id))
