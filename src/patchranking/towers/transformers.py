"""View of a Hugging Face transformers CLIP image encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel, CLIPVisionModelWithProjection

from patchranking.towers.base import VisionTower
from patchranking.towers.text import TextTower

__all__ = ["TransformersTower", "wrap", "wrap_text"]


def wrap(model: nn.Module) -> TransformersTower | None:
    """Returns a tower for a ``CLIPModel`` or ``CLIPVisionModelWithProjection``, None for anything else."""
    if isinstance(model, CLIPModel | CLIPVisionModelWithProjection):
        return TransformersTower(model)
    return None


def wrap_text(model: nn.Module, tokenizer: Any) -> TextTower | None:
    """Returns the text side of a ``CLIPModel`` with its tokenizer, None for anything else."""
    if not isinstance(model, CLIPModel):
        return None
    longest = min(tokenizer.model_max_length, model.config.text_config.max_position_embeddings)

    def tokenize(texts: list[str]) -> Tensor:
        found = tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        return found["input_ids"].to(model.device)

    return TextTower(
        tokenize=tokenize,
        encode=lambda ids: F.normalize(model.get_text_features(input_ids=ids).pooler_output, dim=-1),
        context_length=longest,
        embedding=model.text_model.embeddings.token_embedding,
        blocks=model.text_model.encoder.layers,
    )


class TransformersTower(VisionTower):
    """The image side of a transformers CLIP; features are the projected ``image_embeds``."""

    num_prefix_tokens = 1

    def __init__(self, model: CLIPModel | CLIPVisionModelWithProjection) -> None:
        self.module = model.vision_model
        self.blocks = self.module.encoder.layers
        self._projection = model.visual_projection
        config = self.module.config
        side = config.image_size // config.patch_size
        self.grid = (side, side)
        self.image_size = (config.image_size, config.image_size)
        self.width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.mlp_width = config.intermediate_size
        self.activation = config.hidden_act

    def pool(self, tokens: Tensor, gates: Tensor | None = None) -> Tensor:
        return self._projection(self.module.post_layernorm(tokens[:, 0, :]))

    @property
    def position_embedding(self) -> Tensor:
        return self.module.embeddings.position_embedding.weight

    def identity(self) -> Sequence[Tensor]:
        return (
            self.module.embeddings.patch_embedding.weight,
            self.blocks[-1].mlp.fc1.weight,
            self.module.post_layernorm.weight,
        )

    def _embed(self, pixels: Tensor) -> Tensor:
        return self.module.pre_layrnorm(self.module.embeddings(pixels))

    def _run_block(self, block: Any, tokens: Tensor, key_bias: Tensor | None) -> Tensor:
        return block(tokens, attention_mask=None if key_bias is None else key_bias[:, None, None])

    def _check_plain(self, block: Any) -> None:
        """All blocks of this model are alike."""

    def _class_query_and_keys(self, block: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
        normed = block.layer_norm1(tokens)
        query, keys = block.self_attn.q_proj(normed[:, 0]), block.self_attn.k_proj(normed)
        return query.unflatten(-1, (self.num_heads, -1)), keys.unflatten(-1, (self.num_heads, -1))

    def _queries_keys_values(self, block: Any, tokens: Tensor) -> tuple[Tensor, ...]:
        attention, normed = block.self_attn, block.layer_norm1(tokens)
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        return tuple(project(normed).unflatten(-1, (self.num_heads, -1)) for project in projections)

    def _add_attention(self, block: Any, tokens: Tensor, mixed: Tensor) -> Tensor:
        return tokens + block.self_attn.out_proj(mixed)

    def _feed_forward(self, block: Any, tokens: Tensor) -> Tensor:
        return tokens + block.mlp(block.layer_norm2(tokens))
