"""View of the DINOv3 of transformers, which rotates queries and keys by where their patches are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers.models.dinov3_vit.modeling_dinov3_vit import apply_rotary_pos_emb

from patchranking.towers.rotary import waves_at
from patchranking.towers.transformers.tower import TransformersTower

__all__ = ["Dinov3Tower"]


class Dinov3Tower(TransformersTower):
    """A DINOv3 ViT; its blocks are given cosines and sines of all patches."""

    rotary = True

    def turns(self, block: int) -> dict[str, Any]:
        no_pixels = self.module.embeddings.patch_embeddings.weight.new_empty(0, 3, *self.image_size)
        return {"position_embeddings": self.module.rope_embeddings(no_pixels)}

    def turns_at(self, given: Mapping[str, Any], tokens: Tensor, positions: Tensor | None) -> dict[str, Any]:
        patches, (cosines, sines) = tokens.shape[1] - self.num_prefix_tokens, given["position_embeddings"]
        turns = waves_at(cosines, positions, patches, still=1), waves_at(sines, positions, patches, still=0)
        return {"position_embeddings": turns}

    def _turned(self, block: Any, heads: Tensor, turns: Mapping[str, Any]) -> Tensor:
        turned, _ = apply_rotary_pos_emb(heads, heads, *turns["position_embeddings"])
        return turned
