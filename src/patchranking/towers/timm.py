"""Views of timm's vision transformers, registers included: the plain one, and the rotary ones of its ``Eva`` class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.layers import AttentionRope, apply_rot_embed_cat
from timm.models.eva import Eva, EvaAttention, EvaBlock
from timm.models.vision_transformer import (
    Attention,
    Block,
    DiffParallelScalingBlock,
    ParallelScalingBlock,
    VisionTransformer,
)
from torch import Tensor, nn
from torch.nn import functional as F

from patchranking.errors import UserError
from patchranking.towers.base import VisionTower, activation_name, masked, weighted
from patchranking.towers.rotary import waves_at

__all__ = ["EvaTower", "TimmTower", "wrap"]

_PARALLEL = (ParallelScalingBlock, DiffParallelScalingBlock)


def wrap(model: nn.Module, head: nn.Module | None = None) -> TimmTower | None:
    """Returns a tower for timm's ``VisionTransformer`` or ``Eva``, with the head on it, None for anything else."""
    if isinstance(model, Eva):
        return EvaTower(model, head)
    return TimmTower(model, head) if isinstance(model, VisionTransformer) else None


def _dimensions(part: nn.Module) -> int:
    """How many dimensions the weight of a module has; 0 if it has none."""
    return getattr(getattr(part, "weight", None), "ndim", 0)


def _layers(mlp: nn.Module) -> list[Any]:
    """Linear layers of an MLP in order: those that go in, of which one may gate another, and the one that comes out."""
    return [part for part in mlp.children() if hasattr(part, "out_features")]


class TimmTower(VisionTower):
    """A timm vision transformer; features are what ``model(pixels)`` returns, or what a head makes of it.

    Args:
        model: The transformer. Its patches may come out of convolutions.
        head: What features go through in the model that holds it.

    Raises:
        UserError: If its blocks are of a kind that is not known.
    """

    def __init__(self, model: VisionTransformer | Eva, head: nn.Module | None = None) -> None:
        self.module = model
        self._head = head
        self.blocks = model.blocks
        self.num_prefix_tokens = model.num_prefix_tokens
        self.has_class_token = model.cls_token is not None
        self.grid = tuple(model.patch_embed.grid_size)
        self.image_size = tuple(model.patch_embed.img_size)
        self.width = model.embed_dim
        block = model.blocks[0]
        if isinstance(block, _PARALLEL):
            self.num_heads, self.mlp_width, activation = block.num_heads, block.in_split[0], block.mlp_act
        elif hasattr(block, "attn") and hasattr(block, "mlp"):
            *first, last = _layers(block.mlp)
            self.num_heads, self.mlp_width, activation = block.attn.num_heads, last.in_features, block.mlp.act
            self.mlp_layers = 1 + sum(layer.out_features for layer in first) // last.in_features
        else:
            raise UserError(
                f"The blocks of this {type(model).__name__} are {type(block).__name__}s, which patchranking does not "
                "know: give a model whose blocks have one attention and one MLP."
            )
        self.activation = activation_name(activation)

    def pool(self, tokens: Tensor, gates: Tensor | None = None) -> Tensor:
        pooled = self._pool(tokens, gates)
        return pooled if self._head is None else self._head(pooled)

    def _pool(self, tokens: Tensor, gates: Tensor | None) -> Tensor:
        normed = self.module.norm(tokens)
        if gates is not None and self.module.attn_pool is not None:
            if self.module.attn_pool.pos_embed is not None:
                raise self._no_gated_pool()
            prefix = self.num_prefix_tokens if self._pools_prefix else 0
            with masked(self.module.attn_pool, F.pad(gates, (prefix, 0), value=1.0)):
                return self.module.forward_head(normed)
        if gates is not None and self.module.global_pool != "token":
            if self.module.global_pool != "avg" or self._pools_prefix:
                raise self._no_gated_pool()
            normed = weighted(normed, gates)
        return self.module.forward_head(normed)

    @property
    def _pools_prefix(self) -> bool:
        return bool(self.module.pool_include_prefix)

    @property
    def position_embedding(self) -> Tensor | None:
        return self.module.pos_embed

    def identity(self) -> Sequence[Tensor]:
        last, stem = self.blocks[-1], self.module.patch_embed
        mlp = last.in_proj if isinstance(last, _PARALLEL) else _layers(last.mlp)[-2]
        norms = [part for part in (self.module.norm, self.module.fc_norm, *last.modules()) if _dimensions(part) == 1]
        first = stem.proj if hasattr(stem.proj, "weight") else next(p for p in stem.modules() if _dimensions(p) == 4)
        return first.weight, mlp.weight, norms[0].weight

    def _embed(self, pixels: Tensor) -> Tensor:
        tokens = self.module._pos_embed(self.module.patch_embed(pixels))
        return self.module.norm_pre(self.module.patch_drop(tokens))

    def mask_arguments(self, tokens: Tensor, key_bias: Tensor | None) -> dict[str, Tensor | None]:
        return {} if key_bias is None else {"attn_mask": key_bias[:, None, None]}

    def _check_plain(self, block: Any) -> None:
        if not self._is_plain(block) or getattr(block.attn, "gate", None) is not None:
            raise UserError("Attention cannot be read in this kind of timm's blocks: use another method.")

    def _is_plain(self, block: Any) -> bool:
        return isinstance(block, Block) and isinstance(block.attn, Attention)

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


class EvaTower(TimmTower):
    """A timm ``Eva``: EVA-01 and EVA-02, DINOv3, the Perception Encoder and other ViTs with rotations or gated MLPs."""

    def __init__(self, model: Eva, head: nn.Module | None = None) -> None:
        super().__init__(model, head)
        self.rotary = model.rope is not None

    @property
    def _pools_prefix(self) -> bool:
        return self.module.attn_pool is not None

    def _embed(self, pixels: Tensor) -> Tensor:
        tokens, _ = self.module._pos_embed(self.module.patch_embed(pixels))
        self._check_places(tokens, None)
        return self.module.norm_pre(tokens)

    def turns(self, block: int) -> dict[str, Any]:
        if not self.rotary:
            return {}
        rope = self.module.rope
        cached = hasattr(rope, "feat_shape") and not self.module.dynamic_img_size
        waves = rope.get_embed() if cached else rope.get_embed(shape=self.grid)
        return {"rope": waves[block] if self.module.rope_mixed else waves}

    def turns_at(self, given: Mapping[str, Any], tokens: Tensor, positions: Tensor | None) -> dict[str, Any]:
        if not self.rotary:
            return {}
        patches, waves = tokens.shape[1] - self.num_prefix_tokens, given["rope"]
        if positions is None and patches == waves.shape[-2]:
            return {"rope": waves}
        sines, cosines = waves.chunk(2, -1)
        turns = waves_at(sines, positions, patches, still=0), waves_at(cosines, positions, patches, still=1)
        return {"rope": torch.cat(turns, -1)}

    def _turned(self, block: Any, heads: Tensor, turns: Mapping[str, Any]) -> Tensor:
        if not turns:
            return heads
        still, patches = heads.tensor_split([self.num_prefix_tokens], dim=2)
        turned = apply_rot_embed_cat(patches, turns["rope"], half=block.attn.rotate_half)
        return torch.cat([still, turned], dim=2).to(heads.dtype)

    def _is_plain(self, block: Any) -> bool:
        plain = isinstance(block, EvaBlock) and isinstance(block.attn, EvaAttention | AttentionRope)
        return plain and getattr(block.attn, "num_kv_groups", 1) == 1

    def _class_query_and_keys(self, block: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
        queries, keys, _ = self._queries_keys_values(block, tokens)
        return queries[:, 0], keys

    def _queries_keys_values(self, block: Any, tokens: Tensor) -> tuple[Tensor, ...]:
        attention, normed = block.attn, block.norm1(tokens)
        if attention.qkv is None:
            three = [project(normed) for project in (attention.q_proj, attention.k_proj, attention.v_proj)]
        else:
            together = attention.qkv(normed)
            if getattr(attention, "q_bias", None) is not None:
                together = together + torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
            three = list(together.chunk(3, -1))
        queries, keys, values = (own.unflatten(-1, (self.num_heads, -1)) for own in three)
        return attention.q_norm(queries), attention.k_norm(keys), values

    def _add_attention(self, block: Any, tokens: Tensor, mixed: Tensor) -> Tensor:
        added = block.attn.proj(block.attn.norm(mixed))
        return tokens + block.drop_path1(added if block.gamma_1 is None else block.gamma_1 * added)

    def _feed_forward(self, block: Any, tokens: Tensor) -> Tensor:
        added = block.mlp(block.norm2(tokens))
        return tokens + block.drop_path2(added if block.gamma_2 is None else block.gamma_2 * added)
