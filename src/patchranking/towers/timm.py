"""View of a timm vision transformer, registers included."""

from __future__ import annotations

from collections.abc import Sequence

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from patchranking.towers.base import VisionTower, activation_name

__all__ = ["TimmTower", "wrap"]


def wrap(model: nn.Module) -> TimmTower | None:
    """Returns a tower for timm's ``VisionTransformer``, None for anything else."""
    return TimmTower(model) if isinstance(model, VisionTransformer) else None


class TimmTower(VisionTower):
    """A timm vision transformer; features are what ``model(pixels)`` returns."""

    library = "timm"

    def __init__(self, model: VisionTransformer) -> None:
        self.module = model
        self.blocks = model.blocks
        self.num_prefix_tokens = model.num_prefix_tokens
        self.has_class_token = model.cls_token is not None
        self.grid = tuple(model.patch_embed.grid_size)
        self.image_size = tuple(model.patch_embed.img_size)
        self.width = model.embed_dim
        self.num_heads = model.blocks[0].attn.num_heads
        self.mlp_width = model.blocks[0].mlp.fc1.out_features
        self.activation = activation_name(model.blocks[0].mlp.act)

    def pool(self, tokens: Tensor) -> Tensor:
        return self.module.forward_head(self.module.norm(tokens))

    def identity(self) -> Sequence[Tensor]:
        norm = self.module.norm if hasattr(self.module.norm, "weight") else self.module.fc_norm
        return self.module.patch_embed.proj.weight, self.blocks[-1].mlp.fc1.weight, norm.weight

    def _embed(self, pixels: Tensor) -> Tensor:
        tokens = self.module._pos_embed(self.module.patch_embed(pixels))
        return self.module.norm_pre(self.module.patch_drop(tokens))

    def _run_block(self, block: nn.Module, tokens: Tensor) -> Tensor:
        return block(tokens)

    def _queries_and_keys(self, block: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor]:
        attention = block.attn
        query, key, _ = attention.qkv(block.norm1(tokens)).chunk(3, dim=-1)
        heads = (*tokens.shape[:2], self.num_heads, -1)
        query, key = attention.q_norm(query.view(heads)), attention.k_norm(key.view(heads))
        return query.flatten(2), key.flatten(2)
