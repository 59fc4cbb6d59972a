"""View of a timm vision transformer, registers included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from patchranking.errors import UserError
from patchranking.towers.base import VisionTower, activation_name, masked, weighted

__all__ = ["TimmTower", "wrap"]


def wrap(model: nn.Module) -> TimmTower | None:
    """Returns a tower for timm's ``VisionTransformer``, None for anything else."""
    return TimmTower(model) if isinstance(model, VisionTransformer) else None


class TimmTower(VisionTower):
    """A timm vision transformer; features are what ``model(pixels)`` returns."""

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

    def pool(self, tokens: Tensor, gates: Tensor | None = None) -> Tensor:
        normed = self.module.norm(tokens)
        if gates is not None and self.module.attn_pool is not None:
            if self.module.attn_pool.pos_embed is not None:
                raise self._no_gated_pool()
            prefix = self.num_prefix_tokens if self.module.pool_include_prefix else 0
            with masked(self.module.attn_pool, F.pad(gates, (prefix, 0), value=1.0)):
                return self.module.forward_head(normed)
        if gates is not None and self.module.global_pool != "token":
            if self.module.global_pool != "avg" or self.module.pool_include_prefix:
                raise self._no_gated_pool()
            normed = weighted(normed, gates)
        return self.module.forward_head(normed)

    @property
    def position_embedding(self) -> Tensor:
        return self.module.pos_embed

    def identity(self) -> Sequence[Tensor]:
        norm = self.module.norm if hasattr(self.module.norm, "weight") else self.module.fc_norm
        return self.module.patch_embed.proj.weight, self.blocks[-1].mlp.fc1.weight, norm.weight

    def _embed(self, pixels: Tensor) -> Tensor:
        tokens = self.module._pos_embed(self.module.patch_embed(pixels))
        return self.module.norm_pre(self.module.patch_drop(tokens))

    def _run_block(self, block: Any, tokens: Tensor, key_bias: Tensor | None) -> Tensor:
        return block(tokens) if key_bias is None else block(tokens, attn_mask=key_bias[:, None, None])

    def _check_plain(self, block: Any) -> None:
        plain = isinstance(block, Block) and isinstance(block.attn, Attention)
        if not plain or getattr(block.attn, "gate", None) is not None:
            raise UserError("Attention cannot be read in this kind of timm's blocks: use another method.")

    def _class_query_and_keys(self, block: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
        attention, normed = block.attn, block.norm1(tokens)
        q_weight, k_weight, _ = attention.qkv.weight.chunk(3)
        q_bias, k_bias, _ = (None, None, None) if attention.qkv.bias is None else attention.qkv.bias.chunk(3)
        query, keys = F.linear(normed[:, 0], q_weight, q_bias), F.linear(normed, k_weight, k_bias)
        query = attention.q_norm(query.unflatten(-1, (self.num_heads, -1)))
        return query, attention.k_norm(keys.unflatten(-1, (self.num_heads, -1)))

    def _queries_keys_values(self, block: Any, tokens: Tensor) -> tuple[Tensor, ...]:
        together = block.attn.qkv(block.norm1(tokens))
        queries, keys, values = together.unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        return block.attn.q_norm(queries), block.attn.k_norm(keys), values

    def _add_attention(self, block: Any, tokens: Tensor, mixed: Tensor) -> Tensor:
        return tokens + block.drop_path1(block.ls1(block.attn.proj(block.attn.norm(mixed))))

    def _feed_forward(self, block: Any, tokens: Tensor) -> Tensor:
        return tokens + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens))))
